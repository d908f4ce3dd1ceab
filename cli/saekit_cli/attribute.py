from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import typer

from saekit.options import Option, options_of
from saekit_cli.command import Given
from saekit_cli.screen import Reporter, figure, print_json, table
from saekit_cli.settings import Config, Json, Quiet

if TYPE_CHECKING:
    from saekit.intervention.attribute import AttributionResult

NAME = "attribute"
EXAMPLES = [
    "saekit attribute runs/topk --prompt 'The capital of France is' --target ' Paris'",
    "saekit attribute runs/l9 runs/l15 --prompt 'She said that' --versus ' she, he' --top 10",
    "saekit attribute runs/vit --image digit.png --target 3",
]
LEGEND = (
    "effect: by how much it falls without the node, predicted; ablated: measured",
    "error: what the dictionary misses there; below 0: the node speaks against it",
)
KEY = ("prompt", "image", "target", "versus", "positions", "top", "json_")


def takes(arguments: list[str]) -> dict[str, Option]:
    from saekit.intervention.attribute import attribute

    return options_of(attribute)


def run(given: Given, config: Config = None, json_: Json = False, quiet: Quiet = False) -> None:
    """Which latents made a token's logit what it is, checked by ablating them."""
    from saekit.intervention.attribute import attribute

    with Reporter(quiet) as reporter:
        result = attribute(**given, progress=reporter)
    several = len(given["checkpoints"]) > 1
    if json_:
        if not quiet:
            typer.echo(_summary(result), err=True)
        rows = [dataclasses.asdict(node) for node in result.nodes]
        print_json(rows if several else [_without_hook(row) for row in rows])
        return
    is_text = given.get("image") is None
    where = ["position", "token" if is_text else "patch"]
    header = [*(["hook"] if several else []), "latent", *where, "effect", "ablated"]
    cells = [
        [
            *([node.hook] if several else []),
            "error" if node.index is None else str(node.index),
            str(node.position),
            "-" if node.token is None else repr(node.token) if is_text else node.token,
            figure(node.effect, "+.4f"),
            figure(node.ablated, "+.4f"),
        ]
        for node in result.nodes
    ]
    typer.echo(table(header, cells, left=(0, 3 if several else 2)))
    typer.echo(f"\n{_summary(result)}")


def _without_hook(row: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in row.items() if name != "hook"}


def _summary(result: AttributionResult) -> str:
    """What is explained, and how well."""
    rows = [
        ["", "predicted", "ablated"],
        ["these together", *(figure(value, "+.4f") for value in result.together)],
        ["all nodes", *(figure(value, "+.4f") for value in result.total)],
    ]
    header = ["largest nodes", "faithfulness (errors kept)", "completeness (errors kept)"]
    quality = [
        [
            f"{kept.nodes:,}",
            f"{figure(kept.faithfulness)} ({figure(kept.faithfulness_errors)})",
            f"{figure(kept.completeness)} ({figure(kept.completeness_errors)})",
        ]
        for kept in result.curve
    ]
    lines = [
        f"{result.metric}: {result.value:.4f}",
        f"correlation of effect and ablated over these {len(result.nodes)}:"
        f" {figure(result.correlation)}",
        table(rows[0], rows[1:]),
        table(header, quality),
        "",
        *LEGEND,
    ]
    return "\n".join(lines)
