"""The options of the library's texts as flags of the command line: `k=32` is `--k 32`, `skip=True`
is `--skip`, a list `--hidden 512,128`.

How a flag is spelled is asked of the commands themselves. A name that none of them has is an option
of a model (saekit.models.catalog), which `--set NAME=VALUE` sets.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import typer

_running: str | None = None  # the command, whose names come before those of the others


def speak_for(command: str | None) -> None:
    """Spell options as this command does from now on."""
    global _running
    _running = command


def flag(name: str, values: list[Any]) -> str:
    """The style of the command line, for saekit.errors.spelled."""
    parameter = _parameters(_running).get(name)
    if parameter is None:
        return f"--set {name}={_either(values)}" if values else f"--set {name}"
    if parameter.param_type_name == "argument":
        word = (parameter.metavar or name.upper()).rstrip(".")
    else:
        word = max(parameter.opts, key=len)  # --quiet, not -q
    if values and isinstance(values[0], bool):
        off = parameter.secondary_opts[0] if parameter.secondary_opts else f"no {word}"
        return word if values[0] else off
    if values and isinstance(values[0], list) and getattr(parameter, "multiple", False):
        return " ".join(f"{word} {_text(value)}" for value in values[0])
    return f"{word} {_either(values)}" if values else word


@cache
def _parameters(command: str | None) -> dict[str, Any]:
    from saekit_cli.app import app

    commands = typer.main.get_command(app).commands
    order = sorted(commands.values(), key=lambda each: each.name == command)
    return {parameter.name: parameter for each in order for parameter in each.params}


def _either(values: list[Any]) -> str:
    return " or ".join(map(_text, values))


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
