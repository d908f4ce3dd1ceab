from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from saekit.options import Option, options_of
from saekit_cli.command import Given
from saekit_cli.screen import Reporter, figure, print_json, table
from saekit_cli.settings import Config, Json, Quiet

if TYPE_CHECKING:
    from saekit.evaluation.compare import ComparisonRow

NAME = "compare"
EXAMPLES = ["saekit compare runs/dense runs/vae --store raw/mnist --out report"]


def takes(arguments: list[str]) -> dict[str, Option]:
    from saekit.report.comparison import compare

    return options_of(compare)


def run(given: Given, config: Config = None, json_: Json = False, quiet: Quiet = False) -> None:
    """Compare runs with PCA, k-means and an untrained SAE of the same code size on the same rows,
    and write a report."""
    from saekit.report.comparison import compare

    with Reporter(quiet) as reporter:
        comparison = compare(**given, progress=reporter)
    if json_:
        print_json(comparison)
        return
    others = [
        name
        for name in ("elbo", "auroc")
        if any(row.metrics[name] is not None for row in comparison.rows)
    ]
    header = ["", "model", "params", "latents", "code", "fvu", "mse", "cosine", "l0", "dead", "knn"]
    rows = [_row(row, others) for row in comparison.rows]
    typer.echo(table(header + others, rows, left=(0, 1)))
    for note in comparison.notes:
        typer.echo(f"note    {note}")
    if comparison.report:
        typer.echo(f"open    {comparison.report}")


def _row(row: ComparisonRow, others: list[str]) -> list[str]:
    """A run, or with an indent one of its controls."""
    m, own = row.metrics, row.role == "run"
    return [
        row.name if own else f"  {row.name}",
        row.model if own else "",
        *(f"{row.params:,}", f"{row.latents:,}", f"{row.code_size:,}"),
        *(figure(m["fvu"]), figure(m["mse"], ".4g"), figure(m["cosine"])),
        *(figure(m["l0"], ".1f"), figure(m["dead"], ".1%"), figure(m["knn"], ".1%")),
        *(figure(m[name], ".3f") for name in others),
    ]
