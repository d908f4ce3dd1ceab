from __future__ import annotations

from typing import Annotated

import typer

from saekit_cli.options import Config, Json, Overwrite, Quiet, Resume
from saekit_cli.screen import Reporter, figure, print_json

NAME = "finetune"
EXAMPLES = "Example: saekit finetune runs/topk runs/topk-kl --rows 20000"


def run(
    checkpoint: Annotated[
        str,
        typer.Argument(metavar="CKPT", help="Folder that `saekit train` wrote, of an SAE on text."),
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder for the checkpoint.")],
    store: Annotated[
        str | None, typer.Option(help="Folder of CKPT's store, if it moved since training.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Train on this data (default: the store's, except held-out documents)."),
    ] = None,
    rows: Annotated[
        int | None, typer.Option(help="Rows to train on (default: 5 % of CKPT's).")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="First learning rate; it falls linearly to 0 (default 0.0003)."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(metavar="CONTEXTS", help="Contexts per step (default 4).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Order of the documents.")] = 0,
    device: Annotated[str, typer.Option(help="auto | cpu | cuda | cuda:N")] = "auto",
    resume: Resume = False,
    overwrite: Overwrite = False,
    config: Config = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune an SAE against the logits of its language model."""
    from saekit.intervention.finetune import finetune

    given = {"store": store, "data": data, "rows": rows, "lr": lr, "batch": batch}
    options = {name: value for name, value in given.items() if value is not None}
    reporter = Reporter(quiet)
    result = finetune(
        checkpoint,
        out,
        resume=resume,
        overwrite=overwrite,
        progress=reporter,
        seed=seed,
        device=device,
        **options,
    )
    reporter.close()
    if json_:
        print_json(result)
        return
    forms = {"kl": ".4f", "fvu": ".4f", "l0": ".1f"}
    changes = [
        f"{name} {figure(result.before[name], form)} -> {figure(result.after[name], form)}"
        for name, form in forms.items()
    ]
    typer.echo(
        f"{result.path}  {'  '.join(changes)}  {result.rows_per_s:,.0f} rows/s  ({result.contexts}"
        " held-out contexts)"
    )
