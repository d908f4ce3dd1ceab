"""What all commands share: the flags --config, --json, --quiet and --dry-run, and `~` in paths."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from saekit.config import read_toml
from saekit.options import COMMON, Doc, Option, members

Config = Annotated[
    str | Path | None,
    Doc("TOML file with the names of these flags; flags win.", COMMON, metavar="FILE"),
]
DryRun = Annotated[bool, Doc("Print the plan and run nothing.", COMMON)]
Json = Annotated[bool, Doc("Print exactly one JSON value on stdout.", COMMON, flag="json")]
Quiet = Annotated[bool, Doc("No progress on stderr.", COMMON)]

# A file that someone else wrote must not make foreign code run.
BY_HAND = {"trust_remote_code"}


def read_settings(context: typer.Context, path: str | None) -> None:
    """Settings of the file become defaults of the flags, so that flags win."""
    if path is None:
        return
    parameters = context.command.params
    flags = {p.name: p for p in parameters if p.param_type_name == "option"}
    names = flags.keys() - {"config", "help", "help_all", "json_", *BY_HAND}
    positional = {p.name for p in parameters if p.param_type_name == "argument"}
    settings = read_toml(Path(os.path.expanduser(path)), names | positional)
    context.default_map = {
        name: _as_flags(flags[name], value) for name, value in settings.items() if name in names
    }


def _as_flags(parameter: Any, value: Any) -> Any:
    """A value of a TOML file as its flags would give it: a flag that may be given again takes a
    list, a list of numbers is one text."""
    if getattr(parameter, "multiple", False):
        return value if isinstance(value, list) else [value]
    return ",".join(map(str, value)) if isinstance(value, list) else value


def expand(value: Any, option: Option) -> Any:
    """~/acts and ~somebody/acts in a value that may be a path; what names nobody stays.

    A shell leaves `~` as it is after `--out=` and in quotes, and no shell reads a config file.
    """
    kinds = option.types if option.item is None else (option.item, *option.types)
    if not any(Path in members(kind) for kind in kinds) or not isinstance(value, str):
        return value
    return os.path.expanduser(value) if value.startswith("~") else value
