from __future__ import annotations

from typing import Annotated

import typer

from saekit_cli.options import Config, Json, Quiet, whole_numbers
from saekit_cli.screen import figure, print_json, table

NAME = "evaluate"
EXAMPLES = """Examples:
saekit evaluate runs/topk runs/pca --store acts/text |
saekit evaluate runs/cross --store acts/model.layers.3 --store acts/model.layers.6 |
saekit evaluate runs/hierarchical --store acts/text --k 8,16,32"""


def run(
    checkpoints: Annotated[
        list[str], typer.Argument(metavar="CKPT...", help="Folders that `saekit train` wrote.")
    ],
    store: Annotated[
        list[str],
        typer.Option(
            help="Folder that `saekit harvest` wrote; again for each store of a crosscoder."
        ),
    ],
    rows: Annotated[int | None, typer.Option(help="Evaluate at most this many rows.")] = None,
    split: Annotated[
        str | None,
        typer.Option(help="holdout | train | all (default: holdout on the training store)."),
    ] = None,
    target_store: Annotated[
        str | None, typer.Option(help="Folder of the target store, if it moved since training.")
    ] = None,
    k: Annotated[
        str | None,
        typer.Option(help="Evaluate with these smaller k too, for example 8,16,32: one line each."),
    ] = None,
    max_fvu: Annotated[
        float | None, typer.Option(help="Exit 7 when a checkpoint's fvu is above this.")
    ] = None,
    config: Config = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate checkpoints side by side on the same rows."""
    from saekit.errors import QualityGateError
    from saekit.evaluation.table import evaluate

    results = evaluate(
        checkpoints,
        store,
        split=split,
        rows=rows,
        target_store=target_store,
        k=None if k is None else list(whole_numbers("--k", k, "8,16,32")),
    )
    if json_:
        print_json(results)
    else:
        # all rows of a table read the same stores
        parts = list(results[0].metrics.get("parts", ()))
        header = (
            "checkpoint", "model", "params", "latents", *(() if k is None else ("k",)), "rows",
            "fvu", "mse", "cosine", "l0", "dead",
            *(f"fvu {p}" for p in parts),
        )  # fmt: skip
        typer.echo(table(header, [_row(r, parts) for r in results], left=(0, 1)))
    # `not <=` rather than `>`: a NaN does not pass.
    failed = [r for r in results if max_fvu is not None and not r.metrics["fvu"] <= max_fvu]
    if failed:
        at = "" if failed[0].k is None else f" with k {failed[0].k}"
        raise QualityGateError(
            f"fvu {failed[0].metrics['fvu']:.4f} of {failed[0].checkpoint}{at} is above --max-fvu"
            f" {max_fvu:g}"
        )


def _row(r, parts: list[str]) -> tuple[str, ...]:
    m = r.metrics
    return (
        r.checkpoint, r.model, f"{r.params / 1e6:.2f}M", f"{r.latents:,}",
        *(() if r.k is None else (str(r.k),)), f"{r.rows:,}",
        figure(m["fvu"]), figure(m["mse"], ".4g"), figure(m["cosine"]), figure(m["l0"], ".1f"),
        figure(m["dead"], ".1%"),
        *(figure(m["parts"][p]) for p in parts),
    )  # fmt: skip
