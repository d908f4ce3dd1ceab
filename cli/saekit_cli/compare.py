from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from saekit.options import Option, options_of
from saekit_cli.command import Given
from saekit_cli.screen import Reporter, print_json, table
from saekit_cli.settings import Config, Json, Quiet

if TYPE_CHECKING:
    from saekit.evaluation.compare import ComparisonRow

NAME = "compare"
EXAMPLES = ["saekit compare runs/dense runs/vae --store raw/mnist --out report"]
KEY = ("store", "out", "rows", "split", "anomalies", "overwrite", "json_")
ALWAYS = ("fvu", "mse", "cosine", "l0", "dead", "knn")  # the others only where they apply


def takes(arguments: list[str]) -> dict[str, Option]:
    from saekit.report.comparison import compare

    return options_of(compare)


def run(given: Given, config: Config = None, json_: Json = False, quiet: Quiet = False) -> None:
    """Compare runs with PCA, k-means and an untrained SAE of the same code size on the same rows,
    and write a report."""
    from saekit.evaluation.compare import IN_TABLES
    from saekit.report.comparison import compare

    with Reporter(quiet) as reporter:
        comparison = compare(**given, progress=reporter)
    if json_:
        print_json(comparison)
        return
    names = [name for name in IN_TABLES if name in ALWAYS or _is_known(name, comparison.rows)]
    header = ["", "model", "params", "latents", "code", *names]
    typer.echo(table(header, [_row(row, names) for row in comparison.rows], left=(0, 1)))
    for note in comparison.notes:
        typer.echo(f"note    {note}")
    if comparison.report:
        typer.echo(f"open    {comparison.report}")


def _is_known(name: str, rows: list[ComparisonRow]) -> bool:
    return any(row.metrics[name] is not None for row in rows)


def _row(row: ComparisonRow, names: list[str]) -> list[str]:
    """A run, or with an indent one of its controls."""
    from saekit.models.metrics import METRICS

    is_run = row.role == "run"
    return [
        row.name if is_run else f"  {row.name}",
        row.model if is_run else "",
        *(f"{row.params:,}", f"{row.latents:,}", f"{row.code_size:,}"),
        *(METRICS[name].text(row.metrics[name]) for name in names),
    ]
