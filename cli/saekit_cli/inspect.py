from __future__ import annotations

import typer

from saekit.options import Option, options_of
from saekit_cli.command import Given
from saekit_cli.screen import Reporter, print_json, size
from saekit_cli.settings import Config, Json, Quiet

NAME = "inspect"
EXAMPLES = ["saekit inspect runs/topk --store acts/text --out page --features top:500"]
KEY = ("store", "out", "features", "top", "single_file", "overwrite")


def takes(arguments: list[str]) -> dict[str, Option]:
    from saekit.inspection.run import inspect

    return options_of(inspect)


def run(given: Given, config: Config = None, json_: Json = False, quiet: Quiet = False) -> None:
    """Write a page that shows what the features respond to."""
    from saekit.inspection.run import inspect

    with Reporter(quiet) as reporter:
        result = inspect(**given, progress=reporter)
    if json_:
        print_json(result)
    else:
        typer.echo(f"{result.index_html}  {result.features:,} features, {size(result.bytes)}")
