"""What each way of bringing back dead latents does to the error and to the dead latents.

    python benchmarks/revival.py [--quick] [--csv FILE] [--stores FOLDER] [--data NAME ...]
    [--names NAME ...] [--ways WAY ...] [--seeds N] [--table]

Every run appends its row to the CSV file at once, and runs that the file has are skipped, so an
interrupted benchmark continues. At the end a table of all rows in the file is printed; with
`--table` nothing else is done. `--quick`: one seed of digits.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import torch
from output import run
from saekit_cli.screen import message, table

from saekit.harvesting.run import harvest
from saekit.models.catalog import model_options
from saekit.models.codes import firing_counts
from saekit.models.sae.config import Revival
from saekit.store.reader import Store
from saekit.training.run import TrainResult, train

NAMES = (
    "topk", "batchtopk", "matryoshka", "jumprelu", "gated", "l1", "tanh", "log", "p-anneal"
)  # fmt: skip
SEEDS = 3


@dataclass(frozen=True)
class Case:
    """Rows, and the size of a run on them."""

    model: str
    data: str
    harvest: dict[str, Any]
    latents: int
    active: int
    rows: int
    batch: int
    lr: float | None = None


DIGITS = Case(
    "embedded:digits-vit",
    "embedded:digits",
    {"hook": "blocks.2", "batch": 128},
    latents=2048,
    active=16,
    rows=600_000,
    batch=1024,
)
MNIST = Case("raw:pixels", "embedded:mnist-5k", {"holdout": 0.2}, 2048, 16, 120_000, 256)
CASES = {
    "digits": DIGITS,
    "digits, lr 1e-3": replace(DIGITS, lr=1e-3),
    "mnist": MNIST,
    "mnist, 1,024 latents": replace(MNIST, latents=1024),
    "emoji": Case(
        "embedded:openmoji-vit",
        "embedded:openmoji",
        {"hook": "blocks.4", "rows": 100_000},
        latents=2048,
        active=16,
        rows=400_000,
        batch=1024,
        lr=1e-3,
    ),
    "photos": Case("raw:pixels", "embedded:photos", {"holdout": 0.2}, 1024, 16, 20_000, 64),
    "smollm2": Case(
        "embedded:smollm2-135m",
        "embedded:pydocs",
        {"hook": "blocks.9", "rows": 60_000},
        18_432,
        32,
        240_000,
        4096,
    ),
}


@dataclass(frozen=True)
class RevivalResult:
    data: str
    sparsity: str
    revive: str
    seed: int
    fvu: float
    """On held-out rows, like l0."""
    l0: float
    dead_train: float
    """Share of latents silent for the last epoch of training."""
    silent: float
    """Share of latents that the trained model uses on no row of the store."""
    cpu_s: float
    """Of the training, on one thread."""
    rows: int


def measure(
    name: str, case: Case, sparsity: str, way: str, seed: int, store: Path
) -> RevivalResult:
    options = model_options("sae", sparsity)
    chosen: dict[str, Any] = (
        {"k": case.active} if "k" in options else {"target_l0": float(case.active)}
    )
    chosen |= {"sparsity": sparsity, "revive": way}
    began = time.process_time()
    result = train(
        store,
        None,
        latents=case.latents,
        rows=case.rows,
        batch=case.batch,
        lr=case.lr,
        seed=seed,
        **chosen,
    )
    seconds = time.process_time() - began
    fvu, l0, dead = (result.metrics[key] for key in ("fvu", "l0", "dead_train"))
    assert fvu is not None and l0 is not None and dead is not None
    silent = silent_share(result, Store(store))
    return RevivalResult(
        name, sparsity, way, seed, fvu, l0, dead, silent, round(seconds, 1), result.rows
    )


@torch.no_grad()
def silent_share(result: TrainResult, store: Store) -> float:
    """Share of latents that are active in no row of the store, held-out rows included."""
    model = result.model
    assert model.active_above is not None
    counts = torch.zeros(model.latents, dtype=torch.int64)
    for batch in store.batches(1024):
        counts += firing_counts(model.encode(batch.x.float()), model.active_above)
    return float((counts == 0).double().mean())


def finished(path: Path) -> list[RevivalResult]:
    """The rows of the CSV file."""
    if not path.exists():
        return []
    kinds: dict[str, type] = {
        "data": str, "sparsity": str, "revive": str, "seed": int, "rows": int
    }  # fmt: skip
    with path.open(newline="") as file:
        return [
            RevivalResult(**{key: kinds.get(key, float)(value) for key, value in row.items()})
            for row in csv.DictReader(file)
        ]


def append(path: Path, result: RevivalResult) -> None:
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(RevivalResult)])
        if is_new:
            writer.writeheader()
        writer.writerow(asdict(result))


def summary(results: list[RevivalResult]) -> str:
    """Means over seeds; the fvu with its standard deviation."""
    groups: dict[tuple[str, str, str], list[RevivalResult]] = defaultdict(list)
    for result in results:
        groups[result.data, result.sparsity, result.revive].append(result)
    lines = []
    for (data, sparsity, way), runs in groups.items():
        fvus = [r.fvu for r in runs]
        spread = f" ± {statistics.stdev(fvus):.5f}" if len(runs) > 1 else ""
        lines.append([
            data, sparsity, way, str(len(runs)), f"{statistics.fmean(fvus):.5f}{spread}",
            f"{statistics.fmean(r.l0 for r in runs):.1f}",
            f"{statistics.fmean(r.dead_train for r in runs):.1%}",
            f"{statistics.fmean(r.silent for r in runs):.1%}",
            f"{statistics.fmean(r.cpu_s for r in runs):.0f}",
        ])  # fmt: skip
    lines.sort(key=lambda line: (list(CASES).index(line[0]), NAMES.index(line[1])))
    header = ("rows", "sparsity", "revive", "seeds", "fvu", "l0", "dead_train", "silent", "cpu s")
    return table(header, lines, left=(0, 1, 2))


def main(arguments: list[str] | None = None) -> None:
    description = (__doc__ or "").partition("\n")[0]
    flags = argparse.ArgumentParser(description=description, allow_abbrev=False)
    flags.add_argument("--quick", action="store_true", help="one seed of digits")
    flags.add_argument("--csv", type=Path, default=Path("revival.csv"), metavar="FILE")
    flags.add_argument("--stores", type=Path, default=Path("revival-stores"), metavar="FOLDER")
    flags.add_argument("--data", nargs="+", default=list(CASES), choices=list(CASES))
    flags.add_argument("--names", nargs="+", default=list(NAMES), choices=list(NAMES))
    flags.add_argument("--ways", nargs="+", default=list(get_args(Revival)))
    flags.add_argument("--seeds", type=int, default=SEEDS, metavar="N")
    flags.add_argument("--table", action="store_true", help="only print the table of the file")
    asked = flags.parse_args(arguments)
    torch.set_num_threads(1)
    if asked.quick:
        asked.data, asked.seeds = ["digits"], 1
    wanted = [
        (data, sparsity, way, seed)
        for data in asked.data
        for seed in range(asked.seeds)
        for sparsity in asked.names
        for way in asked.ways
    ]
    for data, sparsity, way, seed in [] if asked.table else wanted:
        done = {(r.data, r.sparsity, r.revive, r.seed) for r in finished(asked.csv)}
        if (data, sparsity, way, seed) in done:
            continue
        case = CASES[data]
        # one store for all cases with the same rows
        store = asked.stores / case.data.partition(":")[2]
        harvest(case.model, case.data, store, resume=True, **case.harvest)
        result = measure(data, case, sparsity, way, seed, store)
        append(asked.csv, result)
        message("bench", str(result))
    print(summary(finished(asked.csv)))


if __name__ == "__main__":
    run(main)
