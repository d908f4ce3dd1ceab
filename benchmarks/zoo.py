"""Every sparsity variant on the same rows of a language model, at the same number of active
latents.

    python benchmarks/zoo.py [--quick] [--names NAME ...] [--dense NAME ...] [--csv FILE]

SmolLM2-135M after block 9 on Python's documentation, with k or target L0 of 32. The store is
harvested once and the variants train one after the other. Each trains a second time by dense
autograd (saekit.bench.reference), from the same start on the same rows, where that is asked for.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

from output import give, parser, reporter, run
from saekit_cli.screen import figure, table

from saekit.bench.reference import dense
from saekit.bench.shapes import active_options
from saekit.bench.timing import CsvFile, machine
from saekit.device import pick_device
from saekit.errors import NumericsError
from saekit.models.sparsity import VARIANTS
from saekit.store.checkpoint import METRICS
from saekit.store.reader import Store
from saekit.training.run import train

MODEL, DATA, HOOK = "embedded:smollm2-135m", "embedded:pydocs", "blocks.9"
ACTIVE = 32
FULL_DENSE = ("topk", "batchtopk")
# Dead latents are counted over one epoch; the controller of L0 needs a hundred steps. L0 depends on
# the documents: with a twentieth of the rows held out it varies by a seventh (docs/notes/log.md).
HOLDOUT = 0.25
FULL = {"rows": 240_000, "latents": 32 * 576, "batch": 2048, "epochs": 2}
QUICK = {"rows": 40_000, "latents": 2048, "batch": 512, "epochs": 2}


@dataclass(frozen=True)
class ZooResult:
    sparsity: str
    latents: int
    rows: int
    fvu: float | None
    """On held-out rows, like l0 and dead; None: the run diverged."""
    l0: float | None
    dead: float | None
    dead_train: float | None
    """Share of latents silent over the last epoch of training."""
    rows_per_s: float | None
    fvu_dense: float | None = None
    """Of the dense reference; None: it was not trained."""
    fvu_ratio: float | None = None
    """fvu / fvu_dense."""
    l0_train: float | None = None
    """Mean over the batches of the last tenth of training."""


def bench_zoo(
    quick: bool,
    progress: Callable[[str], None],
    store: Path | None = None,
    names: tuple[str, ...] = tuple(VARIANTS),
    referenced: tuple[str, ...] | None = None,
    size: dict[str, int] | None = None,
    active: float = ACTIVE,
    done: Callable[[ZooResult], None] = lambda _: None,
) -> list[ZooResult]:
    """One result per variant in `names`, with which `done` is called when it is there. `store`: an
    existing store with layout sequence; None: harvest one.

    `referenced`: variants to train with the dense reference too. None: all, or FULL_DENSE without
    `quick`, since a dense step takes several times as long.
    """
    size = size or (QUICK if quick else FULL)
    with tempfile.TemporaryDirectory(prefix="saekit-zoo-") as folder:
        if store is None:
            from saekit.harvesting.run import harvest

            store = Path(folder) / "store"
            harvested = harvest(
                MODEL, DATA, store, hook=HOOK, rows=size["rows"], layout="sequence", holdout=HOLDOUT
            )
            progress(f"{harvested.rows:,} rows of {MODEL} {HOOK}")
        results = []
        for name in names:
            result = _trained(name, store, Path(folder) / name, size, active)
            if name in (referenced if referenced is not None else names if quick else FULL_DENSE):
                with dense(name):
                    fvu = _trained(name, store, Path(folder) / f"{name}-dense", size, active).fvu
                result = replace(
                    result,
                    fvu_dense=fvu,
                    fvu_ratio=result.fvu / fvu if result.fvu and fvu else None,
                )
            results.append(result)
            done(result)
            progress(str(result))
    return results


def _trained(name: str, store: Path, out: Path, size: dict[str, int], active: float) -> ZooResult:
    rows = size["epochs"] * len(Store(store).split("train"))
    options = active_options(name, active)
    try:
        result = train(
            store,
            out,
            sparsity=name,
            latents=size["latents"],
            rows=rows,
            batch=size["batch"],
            save_seconds=1e9,
            **options,
        )
    except NumericsError:
        return ZooResult(name, size["latents"], rows, None, None, None, None, None)
    figures = [result.metrics[key] for key in ("fvu", "l0", "dead", "dead_train")]
    return ZooResult(
        name, size["latents"], result.rows, *figures, result.rows_per_s, l0_train=_last_l0(out)
    )


def _last_l0(out: Path) -> float:
    lines = [json.loads(line) for line in (out / METRICS).read_text().splitlines()]
    return fmean(line["l0"] for line in lines if line["step"] > 0.9 * lines[-1]["step"])


def main(arguments: list[str] | None = None) -> None:
    flags = parser(__doc__)
    flags.add_argument(
        "--store", type=Path, help="an existing store with layout sequence, instead of a new one"
    )
    flags.add_argument(
        "--names",
        nargs="+",
        default=list(VARIANTS),
        choices=list(VARIANTS),
        metavar="NAME",
        help="only these variants",
    )
    flags.add_argument(
        "--dense",
        nargs="*",
        choices=list(VARIANTS),
        metavar="NAME",
        help="these by dense autograd too (default: topk and batchtopk; with --quick all)",
    )
    asked = flags.parse_args(arguments)
    # Each line of the file is written when its variant has been trained.
    file = None if asked.csv is None else CsvFile(asked.csv, machine(pick_device("cpu")))
    results = bench_zoo(
        asked.quick,
        reporter(asked.quiet),
        asked.store,
        tuple(asked.names),
        None if asked.dense is None else tuple(asked.dense),
        done=lambda result: None if file is None else file.write(asdict(result)),
    )
    rows = [
        [r.sparsity, figure(r.fvu, ".4f"), figure(r.l0, ".1f"), figure(r.l0_train, ".1f"),
        figure(r.dead_train, ".1%"),
         figure(r.rows_per_s, ",.0f"), figure(r.fvu_ratio, ".4f")]
        for r in results
    ]  # fmt: skip
    text = table(["sparsity", "fvu", "l0", "l0 train", "dead_train", "rows/s", "fvu / dense"], rows)
    give(
        results,
        [asdict(r) for r in results],
        asked,
        f"{results[0].latents:,} latents, {results[0].rows:,} rows",
        text,
    )


if __name__ == "__main__":
    run(main)
