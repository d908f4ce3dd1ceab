from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from saekit.options import Device, Doc
from saekit_cli.command import Given
from saekit_cli.screen import figure, message, print_json, table
from saekit_cli.settings import Json, Quiet

if TYPE_CHECKING:
    from saekit.bench.timing import Measurement

NAME = "bench"
NOTHING = "-"  # what `figure` writes for no value
EXAMPLES = [
    "saekit bench train --quick",
    "saekit bench train --variants all --csv variants.csv",
    "saekit bench train --against eai-sparsify",
    "saekit bench kernels --shapes 768x24576x8192 --csv gpu.csv",
]
KEY = ("quick", "shapes", "k", "variants", "against", "csv", "json_")


def run(
    given: Given,
    suite: Annotated[
        Literal["kernels", "train"], Doc("kernels | train", metavar="SUITE", positional=True)
    ],
    quick: Annotated[bool, Doc("Fewer rounds: minutes on two cores.")] = False,
    shapes: Annotated[
        tuple[str, ...], Doc("Width x latents x rows; may be given again.", metavar="DxFxB...")
    ] = (),
    k: Annotated[int, Doc("Active latents per row.")] = 32,
    variants: Annotated[
        tuple[str, ...],
        Doc(
            "A sparsity, or all: its step beside that of topk and its own dense step (train).",
            metavar="NAME...",
        ),
    ] = (),
    against: Annotated[
        tuple[str, ...], Doc("Peer to run too: eai-sparsify (train).", metavar="PEER...")
    ] = (),
    seconds: Annotated[
        float | None, Doc("No case starts later than that; those left out are named.")
    ] = None,
    cpu_time: Annotated[
        bool,
        Doc("Count CPU time, for a machine that others use; with OMP_NUM_THREADS=1."),
    ] = False,
    device: Device = "auto",
    csv: Annotated[
        str | Path | None,
        Doc("Write each measurement here when it is made, with machine, versions, commit, date."),
    ] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure the speed of this machine, as ratios to dense torch from one interleaved run."""
    from saekit.bench import Asked, run_suite
    from saekit.bench.timing import CsvFile, machine
    from saekit.device import pick_device

    where = pick_device(device)
    about = machine(where)
    report = (lambda _: None) if quiet else (lambda text: message("bench", text))
    asked = Asked(suite, shapes, k, variants, against, quick, seconds, cpu_time)
    file, results = None if csv is None else CsvFile(Path(csv), about), []
    for measured in run_suite(asked, where, report):
        results.append(measured)
        if file is not None:
            file.write(dataclasses.asdict(measured))
    if json_:
        print_json(results)
        return
    typer.echo(f"{about['device']}, torch {about['torch']}, {about['date']}")
    typer.echo(_table(results))


def _table(results: list[Measurement]) -> str:
    """The columns that say something about at least one measurement."""
    columns = {
        "op": [m.op for m in results],
        "mode": [m.mode for m in results],
        "backend": [m.backend for m in results],
        "shape": [m.shape for m in results],
        "ms": [figure(m.ms, ".2f") for m in results],
        "p20-p80": [f"{figure(m.ms_p20, '.2f')}-{figure(m.ms_p80, '.2f')}" for m in results],
        "ms / topk": [figure(m.ratio_topk, ".2f") for m in results],
        "x dense": [figure(m.ratio, ".2f") for m in results],
        "x floor": [figure(m.of_floor, ".2f") for m in results],
        "peak MB": [figure(m.peak_mb, ",.0f") for m in results],
        "rows/s": [figure(m.rows_per_s, ",.0f") for m in results],
        "l0": [figure(m.l0, ".1f") for m in results],
        "note": [m.note or NOTHING for m in results],
    }
    shown = {name: cells for name, cells in columns.items() if set(cells) != {NOTHING}}
    left = [
        at for at, name in enumerate(shown) if name in ("op", "mode", "backend", "shape", "note")
    ]
    return table(list(shown), list(zip(*shown.values())), left=left)
