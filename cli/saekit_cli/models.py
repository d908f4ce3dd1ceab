from __future__ import annotations

import shutil
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saekit.options import Doc
from saekit_cli.command import Given
from saekit_cli.screen import print_json, table
from saekit_cli.settings import Json

if TYPE_CHECKING:
    from saekit.models.describe import OptionCard

NAME = "models"
EXAMPLES = ["saekit models", "saekit models vae", "saekit models jumprelu"]


def values() -> dict[str, list[str]]:
    """Names that a shell completes."""
    from saekit.models.catalog import CATALOG
    from saekit.models.sparsity import VARIANTS

    return {"name": [*CATALOG, *VARIANTS]}


def run(
    given: Given,
    name: Annotated[
        str | None,
        Doc(
            "A model, or a variant of sae: what it computes, and its options.",
            metavar="[NAME]",
            positional=True,
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """List the models that `saekit train --model` takes, or explain one."""
    from saekit.models.describe import describe, lines

    if name is None:
        every = lines()
        print_json(every) if json_ else typer.echo(
            table(("model", ""), list(every.items()), left=(0, 1))
        )
        return
    card = describe(name)
    if json_:
        print_json(card)
        return
    typer.echo(f"{card.name}: {card.line}\n\n{card.about}\n")
    typer.echo(_options(card.options))


def _options(options: list[OptionCard]) -> str:
    flags, defaults = [o.flag for o in options], [_default(o.default) for o in options]
    width = shutil.get_terminal_size().columns - max(map(len, flags)) - max(map(len, defaults)) - 4
    rows = []
    for option, default in zip(options, defaults):
        first, *rest = textwrap.wrap(option.text, max(width, 40)) or [""]
        rows += [(option.flag, default, first), *(("", "", line) for line in rest)]
    return table(("option", "default", ""), rows, left=(0, 1, 2))


def _default(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
