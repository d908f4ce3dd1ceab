"""How fast the shuffled loader is when the store is in the page cache.

    python benchmarks/bench_loader.py [--rows 400000 --d 768 --batch 4096]

Writes a float16 store of random rows to a temporary folder, reads one epoch to warm the page cache
and verify the checksums, then times an epoch of shuffled batches. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from saekit.store.reader import open_store
from saekit.store.shards import StoredExample
from saekit.store.writer import RowBlock, StoreWriter
from saekit.types import ActivationSpec


def write(path: Path, rows: int, d: int) -> None:
    spec = ActivationSpec(
        "random", None, "none", "text", d, "float16", "flat", "content", None, "random", 128, seed=0
    )
    writer = StoreWriter(path, spec, {}, shard_bytes=256 << 20)
    for first in range(0, rows, 12_800):
        count = min(12_800, rows - first)
        index = torch.arange(first, first + count)
        examples = [
            StoredExample(
                e, e // 4, e * 128 - first, min(128, first + count - e * 128), None, "", None
            )
            for e in (index // 128).unique().tolist()
        ]
        writer.append(
            RowBlock(
                torch.randn(count, d).half(),
                index // 512,
                index // 128,
                (index % 128).int(),
                examples,
            )
        )
    writer.finish()


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("rows", 400_000), ("d", 768), ("batch", 4096)):
        parser.add_argument(f"--{name}", type=int, default=default)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "store", a.rows, a.d)
        store = open_store(Path(folder) / "store")
        began = time.perf_counter()
        for _ in store.batches(a.batch):
            pass
        first = time.perf_counter() - began
        rates = []
        for epoch in range(3):
            batches = store.batches(a.batch, seed=epoch, split="train")
            count = len(store.split("train")) // a.batch
            began = time.perf_counter()
            for _ in range(count):
                next(batches)
            rates.append(count * a.batch / (time.perf_counter() - began))
    result = {
        "rows": a.rows,
        "d": a.d,
        "batch": a.batch,
        "first pass in order, with checksums, rows/s": round(a.rows / first),
        "shuffled epochs, rows/s": [round(rate) for rate in rates],
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
