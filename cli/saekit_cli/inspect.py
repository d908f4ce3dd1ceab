from __future__ import annotations

from typing import Annotated

import typer

from saekit_cli.options import Config, Json, Overwrite, Quiet
from saekit_cli.screen import Reporter, print_json, size

NAME = "inspect"
EXAMPLES = "Example: saekit inspect runs/topk --store acts/text --out page --features top:500"


def run(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CKPT", help="Folder that `saekit train` wrote.")
    ],
    store: Annotated[
        list[str],
        typer.Option(
            help="Folder that `saekit harvest` wrote; again for each store of a crosscoder."
        ),
    ],
    out: Annotated[str, typer.Option(help="Folder for the page.")],
    features: Annotated[
        str, typer.Option(metavar="SPEC", help="0-255,1024 | top:500 (by density) | all")
    ] = "top:500",
    top: Annotated[int, typer.Option(help="Top examples per feature.")] = 20,
    single_file: Annotated[
        bool, typer.Option("--single-file", help="Everything in index.html.")
    ] = False,
    overwrite: Overwrite = False,
    config: Config = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a page that shows what the features respond to."""
    from saekit.inspection.run import inspect

    reporter = Reporter(quiet)
    result = inspect(
        checkpoint,
        store,
        out,
        features=features,
        top=top,
        single_file=single_file,
        overwrite=overwrite,
        progress=reporter,
    )
    reporter.close()
    if json_:
        print_json(result)
    else:
        typer.echo(f"{result.index_html}  {result.features:,} features, {size(result.bytes)}")
