from __future__ import annotations

import textwrap
from typing import Annotated, Any

import typer

from saekit_cli.options import Json
from saekit_cli.screen import print_json, table

NAME = "models"
EXAMPLES = "Examples: saekit models | saekit models vae"
WIDTH = 100


def run(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="A model: what it computes, and its options."),
    ] = None,
    json_: Json = False,
) -> None:
    """List the models that `saekit train --model` takes, or explain one."""
    from saekit.models.describe import describe, lines

    if name is None:
        found = lines()
        if json_:
            print_json(found)
        else:
            typer.echo(table(("model", ""), list(found.items()), left=(0, 1)))
        return
    card = describe(name)
    if json_:
        print_json(card)
        return
    typer.echo(f"{card.name}: {card.line}\n\n{card.about}\n")
    typer.echo(_options(card.options))


def _options(options: list[Any]) -> str:
    """Flags of `saekit train`; what only the library takes stands below by its name there."""
    from saekit_cli.train import MODEL_FLAGS

    flags = [o for o in options if o.name in MODEL_FLAGS]
    others = [o for o in options if o.name not in MODEL_FLAGS]
    parts = []
    for header, names, some in (
        ("option", [o.flag for o in flags], flags),
        ("in Python", [o.name for o in others], others),
    ):
        if some:
            rows = [
                row
                for name, o in zip(names, some)
                for row in _rows(name, _default(o.default), o.text)
            ]
            parts.append(table((header, "default", ""), rows, left=(0, 1, 2)))
    return "\n\n".join(parts)


def _rows(name: str, default: str, text: str) -> list[tuple[str, str, str]]:
    first, *rest = textwrap.wrap(text, WIDTH) or [""]
    return [(name, default, first), *(("", "", line) for line in rest)]


def _default(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value in (None, "") else f"{value:g}" if isinstance(value, float) else str(value)
