from __future__ import annotations

import typer

from saekit.options import Option, options_of
from saekit_cli.command import Given
from saekit_cli.screen import figure, message, print_json, table
from saekit_cli.settings import Config, Json

NAME = "dictionaries"
EXAMPLES = [
    "saekit dictionaries 'res 16k' --model gemma-2-2b",
    "saekit dictionaries --model gpt2 --json",
]


def takes(arguments: list[str]) -> dict[str, Option]:
    from saekit.interop.registry import dictionaries

    return options_of(dictionaries)


def run(given: Given, config: Config = None, json_: Json = False) -> None:
    """List the published dictionaries that SAELens' registry names."""
    from saekit.interop.registry import dictionaries

    rows = dictionaries(**given)
    if json_:
        print_json(rows)
        return
    if not rows:
        message("note", "no dictionary has all of these words in its name, model or hook")
    cells = [
        (
            row.name,
            row.model,
            row.hook or "-",
            "-" if row.latents is None else f"{row.latents:,}",
            figure(row.l0, "g"),
        )
        for row in rows
    ]
    typer.echo(table(("name", "model", "hook", "latents", "l0"), cells, left=(0, 1, 2)))
