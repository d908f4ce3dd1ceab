from __future__ import annotations

import typer

from saekit.options import Option, options_of
from saekit_cli.command import Given
from saekit_cli.screen import Reporter, print_json
from saekit_cli.settings import Config, Json, Quiet

NAME = "finetune"
EXAMPLES = ["saekit finetune runs/topk runs/topk-e2e"]
KEY = ("data", "rows", "lr", "batch", "resume", "overwrite")


def takes(arguments: list[str]) -> dict[str, Option]:
    from saekit.intervention.config import FinetuneConfig
    from saekit.intervention.finetune import finetune

    return options_of(finetune) | options_of(FinetuneConfig)


def run(given: Given, config: Config = None, json_: Json = False, quiet: Quiet = False) -> None:
    """Fine-tune an SAE against the logits of its language model."""
    from saekit.intervention.finetune import finetune
    from saekit.models.metrics import METRICS

    with Reporter(quiet) as reporter:
        result = finetune(**given, progress=reporter)
    if json_:
        print_json(result)
        return
    texts = [
        (name, METRICS[name].text(result.before[name]), METRICS[name].text(result.after[name]))
        for name in ("kl", "fvu", "l0")
    ]
    changes = [f"{name} {before} -> {after}" for name, before, after in texts]
    rate = f"{result.rows_per_s:,.0f} rows/s  ({result.contexts} held-out contexts)"
    typer.echo(f"{result.path}  {'  '.join(changes)}  {rate}")
