"""How fast a harvest is, compared with the bare forward pass; both are interleaved in one run.

    python benchmarks/bench_harvest.py [--rows 12000 --rounds 3]

`bare` runs the model's blocks up to the hooked one on the same batches, prepared in advance, and
drops the result. `harvest` is the whole verb: reading and tokenizing the documents, the forward
pass, float16, statistics, checksums, shards on disk. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

import saekit
from saekit.harvesting.hooks import capture
from saekit.harvesting.inputs import batches
from saekit.harvesting.models import load_model
from saekit.harvesting.sources import open_data


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="embedded:smollm2-135m")
    parser.add_argument("--data", default="embedded:pydocs")
    parser.add_argument("--hook", default="blocks.9")
    parser.add_argument("--rows", type=int, default=12_000)
    parser.add_argument("--rounds", type=int, default=3)
    a = parser.parse_args()
    live = load_model(a.model)
    inputs, rows = [], 0
    for batch in batches(live, open_data(a.data, modality=live.modality)):
        inputs.append(batch.inputs)
        rows += int(batch.rows_for_scope("content").sum())
        if rows >= a.rows:
            break

    def bare() -> float:
        began = time.perf_counter()
        for batch in inputs:
            with torch.inference_mode(), capture(live, [a.hook], stop=True):
                live.forward(batch)
        return rows / (time.perf_counter() - began)

    def harvest() -> float:
        with tempfile.TemporaryDirectory() as folder:
            return saekit.harvest(
                live, a.data, Path(folder) / "s", hook=a.hook, rows=rows
            ).rows_per_s

    bare()
    rates = {"bare": [], "harvest": []}
    for _ in range(a.rounds):
        rates["bare"].append(bare())
        rates["harvest"].append(harvest())
    medians = {name: statistics.median(values) for name, values in rates.items()}
    share = statistics.median(h / b for h, b in zip(rates["harvest"], rates["bare"]))
    result = {
        "model": a.model,
        "hook": a.hook,
        "rows": rows,
        "rows/s": {k: round(v) for k, v in medians.items()},
    }
    print(json.dumps(result | {"share of the bare forward pass": round(share, 3)}, indent=1))


if __name__ == "__main__":
    main()
