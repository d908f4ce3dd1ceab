from __future__ import annotations

import typer

from saekit.options import Option, options_of
from saekit_cli.command import Given
from saekit_cli.screen import print_json
from saekit_cli.settings import Config, Json

NAME = "convert"
EXAMPLES = ["saekit convert runs/topk runs/jump --to jumprelu --store acts/text"]


def takes(arguments: list[str]) -> dict[str, Option]:
    from saekit.evaluation.conversion import convert

    return options_of(convert)


def run(given: Given, config: Config = None, json_: Json = False) -> None:
    """Write a topk or batchtopk dictionary as one with a threshold and the same mean L0."""
    from saekit.evaluation.conversion import convert
    from saekit.models.metrics import METRICS

    result = convert(**given)
    if json_:
        print_json(result)
        return
    changes = [
        f"{name} {METRICS[name].text(result.before[name])} ->"
        f" {METRICS[name].text(result.after[name])}"
        for name in ("l0", "fvu")
    ]
    typer.echo(
        f"{result.path}  {result.sparsity} -> {result.to}, threshold {result.threshold:.4g}"
        f"  {'  '.join(changes)}  ({result.held_out_rows:,} held-out rows)"
    )
