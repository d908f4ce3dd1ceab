"""Config files: TOML with the same names as the flags. Written resolved into every output folder, read back by --config."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from saekit.errors import DataError, MissingError, did_you_mean


def read_toml(path: Path, known: Iterable[str]) -> dict[str, Any]:
    """The settings of a config file, by flag name with underscores. Raises DataError with file and line for anything unknown."""
    known = set(known)
    try:
        text = path.read_text(encoding="utf-8")
        settings = tomllib.loads(text)
    except FileNotFoundError:
        raise MissingError(f"there is no config file {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}") from None
    for key in settings:
        if key.replace("-", "_") not in known:
            hint = did_you_mean(key, known) or f"settings: {', '.join(sorted(known))}"
            raise DataError(f"{path} line {_line_of(key, text)}: {key} is not a setting", hint)
    return {key.replace("-", "_"): value for key, value in settings.items()}


def to_toml(settings: dict[str, Any]) -> str:
    """Scalars and lists of scalars; None is left out. JSON's strings, numbers and booleans are TOML's."""
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in settings.items() if value is not None)


def _line_of(key: str, text: str) -> int:
    return next((i for i, row in enumerate(text.splitlines(), 1) if re.match(rf"\s*[\"']?{re.escape(key)}\b", row)), 0)
