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
EXAMPLES = [
    "saekit bench train --quick",
    "saekit bench train --against eai-sparsify",
    "saekit bench kernels --shapes 768x24576x8192 --csv gpu.csv",
]


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
    against: Annotated[
        tuple[str, ...], Doc("Peer to run too: eai-sparsify (train).", metavar="PEER...")
    ] = (),
    device: Device = "auto",
    csv: Annotated[
        str | Path | None,
        Doc("Write the measurements here, with machine, versions, commit and date."),
    ] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure the speed of this machine, as ratios to dense torch from one interleaved run."""
    from saekit.bench import run_suite
    from saekit.bench.timing import machine, write_csv
    from saekit.device import pick_device

    where = pick_device(device)
    report = (lambda _: None) if quiet else (lambda text: message("bench", text))
    results = run_suite(suite, list(shapes), k, list(against), quick, where, report)
    if csv is not None:
        write_csv(Path(csv), [dataclasses.asdict(m) for m in results], machine(where))
    if json_:
        print_json(results)
        return
    about = machine(where)
    typer.echo(f"{about['device']}, torch {about['torch']}, {about['date']}")
    rows = [_row(m) for m in results]
    header = [
        "op",
        "mode",
        "backend",
        "shape",
        "ms",
        "p20-p80",
        "x dense",
        "x floor",
        "rows/s",
        "l0",
    ]
    typer.echo(table(header, rows, left=(0, 1, 2, 3)))


def _row(m: Measurement) -> list[str]:
    spread = f"{figure(m.ms_p20, '.2f')}-{figure(m.ms_p80, '.2f')}"
    figures = (figure(m.ratio, ".2f"), figure(m.of_floor, ".2f"), figure(m.rows_per_s, ",.0f"))
    named = [m.op, m.mode, m.backend, m.shape]
    return [*named, figure(m.ms, ".2f"), spread, *figures, figure(m.l0, ".0f")]
