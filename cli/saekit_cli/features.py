from __future__ import annotations

import typer

from saekit.options import Option, options_of
from saekit_cli.command import Given
from saekit_cli.screen import Reporter, figure, print_json, table
from saekit_cli.settings import Config, Json, Quiet

NAME = "features"
EXAMPLES = [
    "saekit features runs/topk --store acts/text --text 'The cat sat'",
    "saekit features runs/topk --store acts/text --index 123",
    "saekit features runs/topk --store acts/text --sort score",
]


def takes(arguments: list[str]) -> dict[str, Option]:
    from saekit.inspection.query import features

    return options_of(features)


def run(given: Given, config: Config = None, json_: Json = False, quiet: Quiet = False) -> None:
    """Rank the latents for a text or an image, describe one, or list those worth reading first."""
    from saekit.inspection.query import features

    with Reporter(quiet or json_) as reporter:
        rows = features(**given, progress=reporter)
    if json_:
        print_json(rows)
        return
    scored = any(row.score is not None for row in rows)
    header = ["feature", "act", "max", "density", "fires most on"]
    cells = [
        [
            str(row.index),
            figure(row.act, ".4g"),
            figure(row.max, ".4g"),
            figure(row.density, ".3%"),
            "  ".join(map(repr, row.tokens)),
        ]
        for row in rows
    ]
    if scored:
        header[4:4] = ["score", "automatic label"]
        for row, line in zip(rows, cells):
            line[4:4] = [figure(row.score, ".2f"), row.label or ""]
    typer.echo(table(header, cells, left=(0, 5, 6) if scored else (0, 4)))
