from __future__ import annotations

from typing import Annotated

import typer

from saekit_cli.options import Config, Json, Quiet
from saekit_cli.screen import Reporter, figure, print_json, table

NAME = "features"
EXAMPLES = """Examples:
saekit features runs/topk --store acts/text --text 'The cat sat' |
saekit features runs/topk --store acts/text --index 123"""


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
    index: Annotated[int | None, typer.Option(help="Describe this latent.")] = None,
    text: Annotated[
        str | None, typer.Option(help="Rank the latents that this text activates.")
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="Rank the latents that this image file activates.")
    ] = None,
    top: Annotated[int, typer.Option(help="Latents to print.")] = 10,
    config: Config = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Rank the latents for a text or an image, or describe one."""
    from saekit.inspection.query import features

    reporter = Reporter(quiet or json_)
    rows = features(
        checkpoint, store, index=index, text=text, image=image, top=top, progress=reporter
    )
    reporter.close()
    if json_:
        print_json(rows)
        return
    header = ("feature", "act", "max", "density", "fires most on")
    cells = [
        (
            str(r.index),
            figure(r.act, ".4g"),
            figure(r.max, ".4g"),
            figure(r.density, ".3%"),
            "  ".join(map(repr, r.tokens)),
        )
        for r in rows
    ]
    typer.echo(table(header, cells, left=(0, 4)))
