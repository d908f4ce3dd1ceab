from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saekit_cli.options import Json, Quiet
from saekit_cli.screen import figure, message, print_json, table

if TYPE_CHECKING:
    from saekit.bench.timing import Measurement

NAME = "bench"
EXAMPLES = """Examples:
saekit bench train --quick |
saekit bench train --against eai-sparsify |
saekit bench kernels --shapes 768x24576x8192 --csv gpu.csv"""


def run(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="kernels | train")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer rounds: minutes on two cores.")
    ] = False,
    shapes: Annotated[
        list[str] | None,
        typer.Option(metavar="DxFxB", help="Width x latents x rows; may be given again."),
    ] = None,
    k: Annotated[int, typer.Option(help="Active latents per row.")] = 32,
    against: Annotated[
        list[str] | None, typer.Option(help="Peer to run too: eai-sparsify (train).")
    ] = None,
    device: Annotated[str, typer.Option(help="auto | cpu | cuda | cuda:N")] = "auto",
    csv: Annotated[
        Path | None,
        typer.Option(help="Write the measurements here, with machine, versions, commit and date."),
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
    results = run_suite(suite, shapes or [], k, against or [], quick, where, report)
    if csv is not None:
        write_csv(csv, [dataclasses.asdict(m) for m in results], machine(where))
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
