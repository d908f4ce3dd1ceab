"""The options of the library's texts as flags of the command line: `k=32` is `--k 32`, `skip=True`
is `--skip`, a list `--hidden 512,128`.

How a flag is spelled is asked of the commands themselves.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from saekit_cli.command import build

_running: str | None = None  # the command, whose names come before those of the others


def speak_for(command: str | None) -> None:
    """Spell options as this command does from now on."""
    global _running
    _running = command


def flag(name: str, values: list[Any]) -> str:
    """The style of the command line, for saekit.errors.spelled."""
    parameter = _parameter(name)
    if parameter is None:
        word = "--" + name.replace("_", "-")
        return f"{word} {_either(values)}" if values else word
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


def _parameter(name: str) -> Any:
    """The parameter of the running command, or else of any other; None where there is none."""
    from saekit_cli.app import VERBS

    running = [_running] if _running in VERBS else []
    for verb in (*running, *(verb for verb in VERBS if verb != _running)):
        if name in (parameters := _parameters(verb)):
            return parameters[name]
    return None


@cache
def _parameters(verb: str) -> dict[str, Any]:
    from saekit_cli.app import VERBS

    return {parameter.name: parameter for parameter in build(VERBS[verb], []).params}


def _either(values: list[Any]) -> str:
    return " or ".join(map(_text, values))


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
