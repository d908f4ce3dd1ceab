from __future__ import annotations

import typer

from saekit.options import Option, options_of
from saekit_cli.along_input import along_lines
from saekit_cli.command import Given
from saekit_cli.screen import Reporter, figure, print_json, table
from saekit_cli.settings import Config, Json, Quiet

NAME = "features"
EXAMPLES = [
    "saekit features runs/topk --store acts/text --text 'The cat sat'",
    "saekit features runs/topk --store acts/text --index 123",
    "saekit features runs/topk --store acts/text --index 123 --text 'The cat sat'",
    "saekit features runs/topk --store acts/text --token ' file'",
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
    if json_:
        print_json(rows)
        return
    scored = any(row.score is not None or row.label is not None for row in rows)
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
        header[4:4] = ["score", "label"]
        for row, line in zip(rows, cells):
            line[4:4] = [figure(row.score, ".2f"), row.label or ""]
    # the figures of the question, before the words; what chance reaches is one for all, below
    figures = (rows[0].figures or {}) if rows else {}
    shown = [name for name in figures if not name.endswith("chance")]
    for row, line in zip(rows, cells):
        line[4:4] = [figure((row.figures or {}).get(name), ".3g") for name in shown]
    header[4:4] = shown
    left = {0, len(header) - 1, len(header) - 2 if scored else 0}
    if any(row.at for row in rows):  # beside act, the column that it is about
        header.insert(2, "at")
        for row, line in zip(rows, cells):
            line.insert(2, repr(row.at) if given.get("text") else row.at or "")
        left = {column + (column > 1) for column in left} | {2}
    typer.echo(table(header, cells, left=tuple(left)))
    for name, value in figures.items():
        if name not in shown:
            typer.echo(f"{name} {figure(value, '.3g')}")
    for row in rows:
        if row.values:
            typer.echo("\n" + along_lines(row.values, row.max))
