from __future__ import annotations

import typer

from saekit.errors import spelled
from saekit.options import Option, options_of
from saekit_cli.along_input import along_lines
from saekit_cli.command import Given
from saekit_cli.feature_table import feature_lines
from saekit_cli.flags import flag
from saekit_cli.screen import Reporter, columns_of_output, message, print_json
from saekit_cli.settings import Config, Json, Quiet

NAME = "features"
EXAMPLES = [
    "saekit features runs/topk --store acts/text --text 'The cat sat'",
    "saekit features runs/topk --store acts/text --index 123",
    "saekit features runs/topk --store acts/text --index 123 --text 'The cat sat'",
    "saekit features runs/topk --store acts/text --token ' file'",
    "saekit features demo/image/topk --store demo/image/store --label cat-face",
    "saekit features demo/image/topk --store demo/image/store --image 'embedded:openmoji:cat #0'",
    "saekit features runs/topk --store acts/text --explained 'python keywords'",
    "saekit features runs/topk --store acts/text --sort score",
]
KEY = ("store", "index", "text", "image", "token", "label", "near", "explained", "sort")


def takes(arguments: list[str]) -> dict[str, Option]:
    from saekit.inspection.query import features

    return options_of(features)


def run(given: Given, config: Config = None, json_: Json = False, quiet: Quiet = False) -> None:
    """Rank the latents for a text, image, token, label or words, or near another; describe some."""
    from saekit.inspection.query import features

    with Reporter(quiet or json_) as reporter:
        rows = features(**given, progress=reporter)
    if not rows:  # why, for people
        message("note", spelled(rows.raw_note, flag))
    if json_ or not rows:
        if json_:
            print_json(list(rows))
        return
    scored = given.get("sort") == "score" or not given.keys().isdisjoint(("index", "explained"))
    lines = feature_lines(rows, scored, "text" in given, columns_of_output())
    typer.echo("\n".join(lines))
    for row in rows:
        if row.values:
            typer.echo("\n" + along_lines(row.values, row.max))
