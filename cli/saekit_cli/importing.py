from __future__ import annotations

import typer

from saekit.options import Option, options_of
from saekit_cli.command import Given
from saekit_cli.screen import print_json
from saekit_cli.settings import Config, Json

NAME = "import"
EXAMPLES = [
    "saekit import downloads/layer_12/width_16k/average_l0_82 runs/gemma",
    "saekit import downloads/sae runs/sae --format saelens",
    "saekit import saelens:gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82 runs/gemma",
]


def takes(arguments: list[str]) -> dict[str, Option]:
    from saekit.interop.importing import import_dictionary

    return options_of(import_dictionary)


def run(given: Given, config: Config = None, json_: Json = False) -> None:
    """Write a published dictionary as a checkpoint folder."""
    from saekit.interop.importing import import_dictionary

    result = import_dictionary(**given)
    if json_:
        print_json(result)
        return
    of = " ".join(text for text in (result.base_model, result.hook) if text) or "of unknown origin"
    typer.echo(
        f"{result.path}  {result.sparsity} {result.d_in} -> {result.latents:,}, {of} "
        f" ({result.format})"
    )
