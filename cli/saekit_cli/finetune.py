from __future__ import annotations

import typer

from saekit.options import Option, options_of
from saekit_cli.command import Given
from saekit_cli.screen import Reporter, figure, print_json
from saekit_cli.settings import Config, Json, Quiet

NAME = "finetune"
EXAMPLES = ["saekit finetune runs/topk runs/topk-e2e"]


def takes(arguments: list[str]) -> dict[str, Option]:
    from saekit.intervention.finetune import finetune

    return options_of(finetune)


def run(given: Given, config: Config = None, json_: Json = False, quiet: Quiet = False) -> None:
    """Fine-tune an SAE against the logits of its language model."""
    from saekit.intervention.finetune import finetune

    with Reporter(quiet) as reporter:
        result = finetune(**given, progress=reporter)
    if json_:
        print_json(result)
        return
    forms = {"kl": ".4f", "fvu": ".4f", "l0": ".1f"}
    changes = [
        f"{name} {figure(result.before[name], form)} -> {figure(result.after[name], form)}"
        for name, form in forms.items()
    ]
    rate = f"{result.rows_per_s:,.0f} rows/s  ({result.contexts} held-out contexts)"
    typer.echo(f"{result.path}  {'  '.join(changes)}  {rate}")
