"""Rankings of latents, and the filters that all of them share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from saekit.errors import DataError, UsageError, opt
from saekit.inspection.known import Known

By = Literal[
    "max", "mean", "share", "lift", "information", "auroc", "decoder", "encoder", "coactivation"
]
AT_BEGINNINGS = 0.5  # share of the active rows from which a latent is one of beginnings


@dataclass(frozen=True)
class Ranking:
    """Latents that answer a question, best first, with the value of each (F,) that is shown as
    `act` (None: the largest on the store), and figures by name: one per latent (F,), or one number
    for all."""

    order: np.ndarray
    act: np.ndarray | None = None
    figures: Mapping[str, np.ndarray | float] = field(default_factory=dict)

    def of(self, latent: int) -> dict[str, float] | None:
        """The figures of one latent."""
        if not self.figures:
            return None
        return {
            name: float(values[latent] if isinstance(values, np.ndarray) else values)
            for name, values in self.figures.items()
        }


def descending(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """The latents of `among` (F,) bool, largest value first, the earlier of equal ones first."""
    latents = np.flatnonzero(among)
    return latents[np.argsort(-values[latents], kind="stable")]


@dataclass(frozen=True)
class Filters:
    """Bounds of the density, as shares of the rows; not_bos: without latents of beginnings."""

    min_density: float | None = None
    max_density: float | None = None
    not_bos: bool = False


def kept(known: Known, filters: Filters) -> np.ndarray:
    """(F,) bool: the latents that pass the filters. Raises UsageError, DataError."""
    least, most = filters.min_density, filters.max_density
    for name, value in (("min_density", least), ("max_density", most)):
        if value is not None and not 0 <= value <= 1:
            raise UsageError(f"{opt(name, value)} must be between 0 and 1")
    passes = np.ones(len(known.active), bool)
    if least is not None:
        passes &= known.density >= least
    if most is not None:
        passes &= known.density <= most
    if filters.not_bos:
        index = known.of_entries(opt("not_bos", True))
        if not len(index.origin.token):
            raise DataError(f"{opt('not_bos', True)} is for texts", f"drop {opt('not_bos')}")
        passes &= index.first < AT_BEGINNINGS * index.active
    return passes
