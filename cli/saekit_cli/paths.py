"""`~` in paths: a shell leaves it as it is after `--out=` and in quotes, and no shell reads a
config file."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Parameters of the commands that may be paths. Names that are none (a hub id, embedded:NAME) never
# begin with ~.
PATHS = {
    "anomalies", "checkpoint", "checkpoints", "config", "csv", "data", "grid", "image", "model",
    "out", "runs", "store", "stores",
    "target_store",
}  # fmt: skip


def expanded(run: Callable[..., Any]) -> Callable[..., Any]:
    """The command, given its paths with ~ as the home folder."""

    @functools.wraps(run)
    def command(**given: Any) -> Any:
        return run(
            **{name: expand(value) if name in PATHS else value for name, value in given.items()}
        )

    return command


def expand(value: Any) -> Any:
    """~/acts and ~somebody/acts; what names nobody stays."""
    if isinstance(value, (list, tuple)):
        return type(value)(expand(each) for each in value)
    if isinstance(value, (str, Path)) and str(value).startswith("~"):
        return type(value)(os.path.expanduser(value))
    return value
