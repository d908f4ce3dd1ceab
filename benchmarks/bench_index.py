"""The pass of `saekit index` beside the encoder, and the time of questions to an index.

    OMP_NUM_THREADS=1 python benchmarks/bench_index.py CKPT STORE
    OMP_NUM_THREADS=1 python benchmarks/bench_index.py --synthetic 262144 --rows 1000000

With CKPT and STORE: CPU seconds of encoding every row, and of indexing the store, in turns, the
median of three; then questions about the median, the 90 % and the densest latent, the median of
nine each. With --synthetic: only the questions, of so many latents, 32 entries per row, drawn by a
power law. Prints one JSON object; peak memory is that of the whole process.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

import saekit
from saekit.indexing.association import label_figures, token_figures
from saekit.indexing.beside import open_index
from saekit.indexing.entries import CHUNK_ROWS, encoded_chunks
from saekit.indexing.manifest import IndexManifest, indexed_store
from saekit.indexing.merge import merge
from saekit.indexing.reader import Index
from saekit.indexing.runs import Entries, RunWriter
from saekit.store.reader import open_store
from saekit.store.shards import StoredExample
from saekit.store.writer import RowBlock, StoreWriter
from saekit.types import ActivationSpec

TURNS, REPEATS, K, CONTEXT = 3, 9, 32, 128


def cpu_seconds(act: Callable[[], object]) -> float:
    began = time.process_time()
    act()
    return time.process_time() - began


def passes(checkpoint: Path, store: Path, budget: int) -> dict[str, float]:
    """CPU seconds of encoder and index, and the share of the encoder's rows per second that the
    index reaches."""
    model, rows = saekit.load(checkpoint), open_store(store)
    encode = lambda: [len(found.row) for _, found in encoded_chunks(model, rows)]
    index = lambda: saekit.index(checkpoint, store, budget=budget, overwrite=True)
    index()
    turns = [(cpu_seconds(encode), cpu_seconds(index)) for _ in range(TURNS)]
    encoder, indexing = (statistics.median(times) for times in zip(*turns))
    return {
        "rows": len(rows),
        "encoder, s": round(encoder, 2),
        "index, s": round(indexing, 2),
        "share of the encoder's speed": round(statistics.median(e / i for e, i in turns), 3),
    }


def questions(index: Index) -> dict[str, dict[str, float]]:
    """Milliseconds of each question, for latents of three densities."""
    order = np.argsort(index.active, kind="stable")
    order = order[index.active[order] > 0]
    chosen = {
        "median": order[len(order) // 2],
        "90 %": order[len(order) * 9 // 10],
        "densest": order[-1],
    }
    asked: dict[str, Callable[[int], object]] = {
        "activations": index.activations,
        "histogram": index.histogram,
        "top 20": index.top,
        "quantiles": index.quantiles,
        "random": index.random,
        "coactivation": index.coactivation,
        "coactivation of counts only": lambda j: index.by_row.counts(index.activations(j).rows),
        "coactivation, lag 1": lambda j: index.coactivation(j, 1),
    }
    figures: dict[str, dict[str, float]] = {}
    for name, latent in chosen.items():
        figures[name] = {"rows": int(index.active[latent])}
        for question, act in asked.items():
            figures[name][question] = milliseconds(lambda act=act, j=int(latent): act(j))
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(index.rows, index.rows // 200, replace=False))
    figures["all"] = {
        "a token of 0.5 % of the rows": milliseconds(lambda: token_figures(index, rows))
    }
    if index.origin.labels:
        figures["all"]["a label"] = milliseconds(lambda: label_figures(index, 0), 3)
    return figures


def milliseconds(act: Callable[[], object], repeats: int = REPEATS) -> float:
    act()
    return round(1000 * statistics.median(cpu_seconds(act) for _ in range(repeats)), 2)


def synthetic(folder: Path, latents: int, rows: int, budget: int) -> tuple[Index, dict[str, float]]:
    """An index of entries that no model made."""
    store = open_store(synthetic_store(folder / "store", rows))
    manifest = IndexManifest(
        "0" * 64, [indexed_store(store)], latents, rows, "float32", "cpu", CHUNK_ROWS
    )
    where = folder / "index"
    where.mkdir()
    began = time.process_time()
    writer = RunWriter(where, manifest, budget * 1_000_000)
    for entries in synthetic_entries(latents, rows):
        writer.append(entries)
    writer.close()
    sorted_by = time.process_time()
    runs = len(manifest.runs)
    manifest.entries = sum(run.entries for run in manifest.runs)
    manifest.files = merge(where, manifest, store, budget * 1_000_000)
    figures = {
        "rows": rows,
        "latents": latents,
        "entries": manifest.entries,
        "runs": runs,
        "runs with their entries drawn, s": round(sorted_by - began, 1),
        "merge, s": round(time.process_time() - sorted_by, 1),
    }
    shutil.rmtree(where / "runs")
    return Index(where, manifest), figures


def synthetic_entries(latents: int, rows: int) -> Iterator[Entries]:
    rng = np.random.default_rng(0)
    weight = (np.arange(latents) + 10.0) ** -0.8
    bounds = np.cumsum(weight / weight.sum())
    for first in range(0, rows, CHUNK_ROWS):
        count = min(CHUNK_ROWS, rows - first)
        drawn = np.sort(np.searchsorted(bounds, rng.random((count, K))).clip(max=latents - 1))
        kept = np.ones(drawn.shape, bool)
        kept[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
        value = rng.exponential(size=int(kept.sum())).astype(np.float32)
        yield Entries(kept.sum(1), drawn[kept].astype(np.int32), value)


def synthetic_store(path: Path, rows: int) -> Path:
    """Texts of CONTEXT tokens with ten labels, whose rows have one number."""
    spec = ActivationSpec(
        "none",
        None,
        "none",
        "text",
        1,
        "float16",
        "flat",
        "content",
        None,
        "none",
        CONTEXT,
        0,
    )
    writer = StoreWriter(path, spec, {"rows": rows}, shard_bytes=1 << 20)
    rng = np.random.default_rng(1)
    block = CONTEXT * 512
    for first in range(0, rows, block):
        count = min(block, rows - first)
        example = (first + torch.arange(count)) // CONTEXT
        tokens = rng.integers(0, 50_000, count)
        examples = [
            StoredExample(e, e, at, min(CONTEXT, count - at), tokens[at : at + CONTEXT].tolist(),
                          f"document {e}", str(e % 10))
            for at, e in ((at, (first + at) // CONTEXT) for at in range(0, count, CONTEXT))
        ]  # fmt: skip
        position = (torch.arange(count) % CONTEXT).int()
        writer.append(RowBlock(torch.ones(count, 1), example, example, position, examples))
    writer.finish()
    return path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("store", type=Path, nargs="?")
    parser.add_argument("--synthetic", type=int, metavar="LATENTS")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--budget", type=int, default=1024, metavar="MB")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if a.synthetic:
            index, figures = synthetic(Path(folder), a.synthetic, a.rows, a.budget)
        else:
            figures = passes(a.checkpoint, a.store, a.budget)
            index = open_index(a.checkpoint, a.store)
            figures |= {"latents": len(index), "entries": index.manifest.entries}
        sizes = {
            path.name: path.stat().st_size for path in sorted(index.path.glob("*.safetensors"))
        }
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        opened = cpu_seconds(lambda: (index.activations(0), index.by_row, index.origin))
        print(
            json.dumps(
                figures
                | {"bytes": sizes, "peak memory while made, MB": memory // 1000}
                | {"checksums when first read, s": round(opened, 2), "ms": questions(index)},
                indent=1,
            )
        )


if __name__ == "__main__":
    main()
