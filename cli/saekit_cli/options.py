"""Options that every command shares: --config, --json, --quiet."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from saekit.config import read_toml
from saekit.errors import UsageError
from saekit_cli.paths import expand

_BY_HAND = {"trust_remote_code"}  # a file that someone else wrote must not make foreign code run


def _load_config(context: typer.Context, path: Path | None) -> None:
    """Settings of the file become defaults of the flags, so that flags win."""
    if path is None:
        return
    parameters = context.command.params
    names = {p.name for p in parameters if p.param_type_name == "option"} - {
        "config",
        "help",
        "json_",
        *_BY_HAND,
    }
    positional = {p.name for p in parameters if p.param_type_name == "argument"}
    settings = read_toml(expand(path), names | positional)
    several = {p.name for p in parameters if getattr(p, "multiple", False)}
    context.default_map = {
        name: [value] if name in several and not isinstance(value, list) else value
        for name, value in settings.items()
        if name in names
    }


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        callback=_load_config,
        is_eager=True,
        help="TOML file with the names of these flags; flags win.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON value on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue what is in OUT.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is in OUT.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and run nothing.")]


def whole_numbers(flag: str, text: str, example: str) -> tuple[int, ...]:
    """'512,128' as numbers. Raises UsageError; int() itself reads 1_0 and digits of other scripts,
    too."""
    parts = [part.strip(" ") for part in text.split(",")]
    if not all(re.fullmatch("[0-9]{1,9}", part) for part in parts):
        raise UsageError(f"{flag} {text}: give numbers with commas", f"{flag} {example}")
    return tuple(map(int, parts))
