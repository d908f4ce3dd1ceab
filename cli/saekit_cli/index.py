from __future__ import annotations

import typer

from saekit.options import Option, options_of
from saekit_cli.command import Given
from saekit_cli.screen import Reporter, print_json, size
from saekit_cli.settings import Config, Json, Quiet

NAME = "index"
EXAMPLES = ["saekit index runs/topk --store acts/text"]
KEY = ("store", "values", "budget", "resume", "overwrite")


def takes(arguments: list[str]) -> dict[str, Option]:
    from saekit.indexing.build import index

    return options_of(index)


def run(given: Given, config: Config = None, json_: Json = False, quiet: Quiet = False) -> None:
    """Write every activation of a store beside the checkpoint, for search and pages."""
    from saekit.indexing.build import index

    with Reporter(quiet) as reporter:
        result = index(**given, progress=reporter)
    if json_:
        print_json(result)
        return
    rounded = result.rounding
    error = (
        "" if rounded is None else f"  float16: rms error {rounded['relative']:.2g} of the values"
    )
    what = "what is shown" if result.entries is None else f"{result.entries:,} activations"
    typer.echo(
        f"{result.path}  {what} of {result.latents:,} latents on {result.rows:,} rows,"
        f" {size(result.bytes)}{error}"
    )
