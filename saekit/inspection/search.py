"""Rankings of latents, and the filters that all of them share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil, floor, log10
from typing import Any, Literal

import numpy as np

from saekit.errors import DataError, UsageError, opt
from saekit.inspection.known import Known

By = Literal[
    "max", "mean", "share", "lift", "information", "auroc", "decoder", "encoder", "coactivation"
]
# figure -> what the best latent reaches by chance
CHANCES = {"information": "chance", "auroc": "auroc_chance"}
FEW = 20  # active rows at which a share of the maximum counts one half
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


def below_chance(figures: Mapping[str, float] | None) -> list[str] | None:
    """Names of the figures that are no larger than what chance reaches; None where there is no
    chance among them."""
    tested = {name: of for name, of in CHANCES.items() if figures and of in figures}
    if not figures or not tested:
        return None
    return [name for name, of in tested.items() if figures[name] <= figures[of]]


def descending(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """The latents of `among` (F,) bool, largest value first, the earlier of equal ones first."""
    latents = np.flatnonzero(among)
    return latents[np.argsort(-values[latents], kind="stable")]


def trust_in_maximum(active_N: np.ndarray) -> np.ndarray:
    """n / (n + FEW) of latents that are active in n rows of the store: the maximum of few rows says
    little, and a share of it counts less."""
    return active_N / (active_N + FEW)


@dataclass(frozen=True)
class Filters:
    """Bounds of the density, as shares of the rows; not_bos: without latents of beginnings."""

    min_density: float | None = None
    max_density: float | None = None
    not_bos: bool = False

    @property
    def given(self) -> dict[str, Any]:
        """Those that are set, by name."""
        return {
            name: value
            for name, value in vars(self).items()
            if value is not None and value is not False
        }


def kept(known: Known, filters: Filters) -> np.ndarray:
    """(F,) bool: the latents that pass the filters. Raises UsageError, DataError."""
    least, most = filters.min_density, filters.max_density
    for name, value in (("min_density", least), ("max_density", most)):
        if value is not None and not 0 <= value <= 1:
            raise UsageError(f"{opt(name, value)} must be between 0 and 1")
    if least is not None and most is not None and least > most:
        raise UsageError(
            f"{opt('min_density', least)} is above {opt('max_density', most)}", "exchange them"
        )
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


def why_none_passes(known: Known, filters: Filters, among: np.ndarray) -> str:
    """Of the latents `among` (n,), none of which passes: how many each filter excludes, and the
    bound by which the nearest one would pass."""
    excluded = []
    for name, value in filters.given.items():
        passing = kept(known, Filters(**{name: value}))[among].sum()
        excluded.append(f"{opt(name, value)} excludes {len(among) - passing:,}")
    text = f"no latent is left: of {len(among):,} that answer, {', '.join(excluded)}"
    rest = among[kept(known, replace(filters, min_density=None, max_density=None))[among]]
    if not len(rest) or filters == Filters(not_bos=filters.not_bos):
        return text
    density = known.density[rest]
    low = 0.0 if filters.min_density is None else filters.min_density
    high = 1.0 if filters.max_density is None else filters.max_density
    away = np.maximum(low - density, density - high)
    nearest = float(density[int(away.argmin())])
    bound = "min_density" if nearest < low else "max_density"
    return f"{text}; the nearest one passes {opt(bound, _three_digits(nearest, nearest > high))}"


def _three_digits(share: float, up: bool) -> float:
    """The share with three digits, rounded up or down."""
    if share <= 0:
        return 0.0
    scale = 10.0 ** (2 - floor(log10(share)))
    return (ceil if up else floor)(share * scale) / scale
