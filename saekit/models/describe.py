"""What a model of the catalog is and takes, read from its own source: the verb `models`.

The text of an option is the string under its field, which no runtime keeps; so the source of the
config class, and of those that it inherits from, is parsed.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import textwrap
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from saekit.errors import UsageError, did_you_mean
from saekit.models.catalog import CATALOG, config_of, options_of
from saekit.models.sparsity import VARIANTS


@dataclass(frozen=True)
class Option:
    name: str
    """As the library takes it: `target_rate`."""
    flag: str
    """As the command line spells it: `--target-rate`."""
    default: Any
    text: str


@dataclass(frozen=True)
class Card:
    name: str
    line: str
    about: str
    """The docstring of the model's module: what it computes, and where that comes from."""
    options: list[Option]


def describe(name: str) -> Card:
    """Raises UsageError for a model that there is not."""
    if name not in CATALOG:
        raise UsageError(
            f"{name} is not a model", f"{did_you_mean(name, CATALOG)}choose {', '.join(CATALOG)}"
        )
    entry = CATALOG[name]
    texts = field_texts(config_of(name, {}))
    options = [
        Option(key, "--" + key.replace("_", "-"), _plain(default), texts.get(key, ""))
        for key, default in options_of(name).items()
    ]
    about = inspect.cleandoc(sys.modules[entry.model.__module__].__doc__ or "")
    if name == "sae":
        about += "\n\n" + "\n".join(
            f"--sparsity {kind:<20} {variant.line}" for kind, variant in VARIANTS.items()
        )
    return Card(name, entry.line, about, options)


def lines() -> dict[str, str]:
    """name -> one line, in the catalog's order."""
    return {name: entry.line for name, entry in CATALOG.items()}


def field_texts(config: type) -> dict[str, str]:
    """field -> the string under it, a class's own before those that it inherits."""
    found: dict[str, str] = {}
    for cls in config.__mro__:
        if dataclasses.is_dataclass(cls):
            for name, text in _own_texts(cls).items():
                found.setdefault(name, text)
    return found


def _own_texts(cls: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
    found = {}
    for field, below in pairwise(body):
        if not (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
        ):
            continue
        if isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            found[field.target.id] = " ".join(below.value.value.split())
    return found


def _plain(default: Any) -> Any:
    return list(default) if isinstance(default, tuple) else default
