"""What a model of the catalog is and which options it takes: the verb `models`."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from typing import Any

from saekit.errors import UsageError, did_you_mean
from saekit.models.catalog import CATALOG, model_options
from saekit.models.sparsity import VARIANTS
from saekit.options import Option


@dataclass(frozen=True)
class OptionCard:
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
    options: list[OptionCard]


def describe(name: str) -> Card:
    """The card of a model of the catalog, or of a variant of the sparse autoencoder.

    Raises UsageError for an unknown name.
    """
    if name not in CATALOG and name not in VARIANTS:
        near = did_you_mean(name, [*CATALOG, *VARIANTS])
        raise UsageError(f"{name} is not a model", f"{near}choose {', '.join(CATALOG)}")
    if name in CATALOG:
        model, line, options = CATALOG[name].model, CATALOG[name].line, model_options(name)
    else:
        model, line = VARIANTS[name], VARIANTS[name].line
        options = {k: o for k, o in model_options("sae", name).items() if k != "sparsity"}
    about = inspect.cleandoc(sys.modules[model.__module__].__doc__ or "")
    if name == "sae":
        kinds = [f"--sparsity {kind:<20} {variant.line}" for kind, variant in VARIANTS.items()]
        about += "\n\n" + "\n".join(kinds)
    return Card(name, line, about, [_card(option) for option in options.values()])


def lines() -> dict[str, str]:
    """name -> one line, in the catalog's order."""
    return {name: entry.line for name, entry in CATALOG.items()}


def _card(option: Option) -> OptionCard:
    default = list(option.default) if isinstance(option.default, tuple) else option.default
    return OptionCard(option.name, option.flag, default, option.doc.text)
