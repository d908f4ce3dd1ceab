"""Config files: TOML with the same names as the flags. Written resolved into every output folder,
read back by --config."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from saekit.errors import DataError, MissingError, SaekitError, did_you_mean


def read_toml(path: Path, known: Iterable[str]) -> dict[str, Any]:
    """The settings of a config file, by flag name with underscores. Raises DataError with file and
    line for anything unknown."""
    known = set(known)
    settings, text = load_toml(path, "config file"), path.read_text(encoding="utf-8")
    for key in settings:
        if key.replace("-", "_") not in known:
            hint = did_you_mean(key, known).strip() or f"settings: {', '.join(sorted(known))}"
            raise DataError(f"{path} line {_line_of(key, text)}: {key} is not a setting", hint)
    return {key.replace("-", "_"): value for key, value in settings.items()}


def load_toml(path: Path, what: str) -> dict[str, Any]:
    """The settings in a file. Raises MissingError, DataError."""
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path} is not a file", f"give the {what} itself")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(f"there is no {what} {path}", "check the path") from None
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}", "check the path and its permissions"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: {error}",
            "docs/sweeps.md and every config.toml in an output folder show the form",
        ) from None


def recorded(folder: Path, name: str) -> str | None:
    """A text that a command left in its config.toml; None where the file, as a copied folder may
    lack it, does not say so."""
    try:
        value = load_toml(folder / "config.toml", "config file").get(name)
    except SaekitError:
        return None
    return value if isinstance(value, str) else None


def to_toml(settings: dict[str, Any]) -> str:
    """Scalars and lists of scalars; None is left out."""
    return "".join(
        f"{key} = {_toml(value)}\n" for key, value in settings.items() if value is not None
    )


def _toml(value: Any) -> str:
    """JSON's numbers, booleans and lists are TOML's. Its strings are too, but for the character DEL
    and halves of surrogate pairs, which Python makes of file names in other encodings and no TOML
    holds: these are written as a question mark."""
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        written = value.encode("utf-8", "replace").decode()
        return json.dumps(written, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "inf", -math.inf: "-inf"}.get(value, "nan")
    return json.dumps(value)


def _line_of(key: str, text: str) -> int:
    return next(
        (
            i
            for i, row in enumerate(text.splitlines(), 1)
            if re.match(rf"\s*[\"']?{re.escape(key)}\b", row)
        ),
        0,
    )
