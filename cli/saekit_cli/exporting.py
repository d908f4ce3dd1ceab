from __future__ import annotations

import typer

from saekit.options import Option, options_of
from saekit_cli.command import Given
from saekit_cli.screen import Reporter, print_json
from saekit_cli.settings import Config, Json, Quiet

NAME = "export"
EXAMPLES = [
    "saekit export runs/topk out --format saelens",
    "saekit export runs/mlp0 runs/mlp1 out --format circuit_tracer",
    "saekit export runs/topk out --format neuronpedia --store acts/text --features top:500",
]


def takes(arguments: list[str]) -> dict[str, Option]:
    from saekit.exporting import export_dictionary

    return options_of(export_dictionary)


def run(given: Given, config: Config = None, json_: Json = False, quiet: Quiet = False) -> None:
    """Write a dictionary, or what its features respond to, as another program's files."""
    from saekit.exporting import export_dictionary

    with Reporter(quiet) as reporter:
        result = export_dictionary(**given, progress=reporter)
    if json_:
        print_json(result)
        return
    features = "" if result.features is None else f", {result.features:,} features"
    typer.echo(f"{result.path}  {result.format}{features}")
    for note in result.notes:
        typer.echo(f"note    {note}", err=True)
