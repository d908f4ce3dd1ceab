from __future__ import annotations

from typing import Annotated, Any

import typer

from saekit_cli.options import Config, Json, Overwrite, Quiet
from saekit_cli.screen import Reporter, figure, print_json, table

NAME = "compare"
EXAMPLES = "Example: saekit compare runs/dense runs/vae --store raw/mnist --out report"


def run(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Folders that `saekit train` wrote.")
    ],
    store: Annotated[str, typer.Option(help="Folder that `saekit harvest` wrote.")],
    out: Annotated[
        str | None, typer.Option(help="Folder for report.html, one file that opens from disk.")
    ] = None,
    rows: Annotated[int | None, typer.Option(help="Evaluate at most this many rows.")] = None,
    split: Annotated[
        str | None, typer.Option(help="holdout | train | all (default holdout)")
    ] = None,
    target_store: Annotated[
        str | None, typer.Option(help="Folder of the target store, if it moved since training.")
    ] = None,
    anomalies: Annotated[
        str | None, typer.Option(help="Store of rows that the runs should reconstruct badly.")
    ] = None,
    neighbours: Annotated[int, typer.Option(help="Neighbors that vote for a label.")] = 5,
    seed: Annotated[
        int, typer.Option(help="Seed of controls, sampled rows and generated samples.")
    ] = 0,
    overwrite: Overwrite = False,
    config: Config = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare runs with PCA, k-means and an untrained SAE of the same code size on the same rows,
    and write a report."""
    from saekit.report.comparison import compare

    reporter = Reporter(quiet)
    comparison = compare(
        runs, store, out, rows=rows, split=split, target_store=target_store, anomalies=anomalies,
        neighbours=neighbours, seed=seed,
        overwrite=overwrite, progress=reporter,
    )  # fmt: skip
    reporter.close()
    if json_:
        print_json(comparison)
        return
    others = [
        name
        for name in ("elbo", "auroc")
        if any(row.metrics[name] is not None for row in comparison.rows)
    ]
    header = (
        "",
        "model",
        "params",
        "latents",
        "code",
        "fvu",
        "mse",
        "cosine",
        "l0",
        "dead",
        "knn",
        *others,
    )
    typer.echo(table(header, [_row(row, others) for row in comparison.rows], left=(0, 1)))
    for note in comparison.notes:
        typer.echo(f"note    {note}")
    if comparison.report:
        typer.echo(f"open    {comparison.report}")


def _row(row: Any, others: list[str]) -> tuple[str, ...]:
    m, own = row.metrics, row.role == "run"
    return (
        row.name if own else f"  {row.name}", row.model if own else "", f"{row.params:,}",
        f"{row.latents:,}",
        f"{row.code_size:,}", figure(m["fvu"]), figure(m["mse"], ".4g"), figure(m["cosine"]),
        figure(m["l0"], ".1f"),
        figure(m["dead"], ".1%"), figure(m["knn"], ".1%"), *(figure(m[name],
        ".3f") for name in others),
    )  # fmt: skip
