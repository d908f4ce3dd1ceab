"""The size of the rows that a model was trained on, and of those that it is evaluated on.

A dictionary that gets rows of another scale than in training still returns numbers: its biases and
thresholds are then too small or too large. Its weights do not show it, so it is compared here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from saekit.evaluation.models import EvaluatedModel
from saekit.store.pair import PairedStore
from saekit.store.reader import Store
from saekit.store.stack import stores_of

APART = 3.0
"""Rows of one hook on other texts differ by less, a wrong unit by more (docs/evaluation.md)."""
CENTERED, PLAIN = "rms distance from the mean row", "rms norm"
OTHERS = "median norm, in training mean norm"


@dataclass(frozen=True)
class InputNorm:
    measure: str
    """What of the rows: CENTERED, PLAIN or OTHERS."""
    store: float
    training: float

    @property
    def apart(self) -> bool:
        """Whether the two differ by more than texts do."""
        return not 1 / APART <= self.store / self.training <= APART

    def line(self) -> str:
        return f"{self.store:.4g} in the store, {self.training:.4g} in training ({self.measure})"


def input_norm(run: EvaluatedModel) -> InputNorm | None:
    """Of the rows that a run reads; None for those that it was trained on, and where store or
    training do not say."""
    source = run.source.sources[0] if isinstance(run.source, PairedStore) else run.source
    stores = [store for store in stores_of(source) if isinstance(store, Store)]
    if run.config is None or not stores or run.config["content"] == stores[0].content:
        return None
    if (known := _of_training(run.config)) is None:
        return None
    measure, training = known
    if measure == OTHERS:
        size = stores[0].stats["median_norm"]
    elif measure == PLAIN:  # squares of the hooks of a row add up
        size = sum(store.stats["mean_square_norm"] for store in stores) ** 0.5
    else:
        size = math.hypot(*(value for store in stores for value in store.stats["std"]))
    return InputNorm(measure, size, training) if size > 0 else None


def _of_training(config: dict[str, Any]) -> tuple[str, float] | None:
    """(measure, value) by what a checkpoint's config.json says; None where it does not."""
    settings, spec = config["config"], config["spec"]
    # other programs scale the mean norm to sqrt(D)
    if published := config.get("published"):
        factor = settings.get("input_factor", 1.0)
        if factor == 1.0 or published.get("normalization") in (None, "none"):
            return None
        return OTHERS, settings["d_in"] ** 0.5 / factor
    # own training scales the mean square of each hook's rows to D, centered or not
    default = "none" if spec["model"].startswith("raw:") else "center+scale"
    mode = config["training"].get("normalize") or default
    if mode == "none":
        return None
    widths = settings.get("parts") or [spec["d_in"]]
    scale = config["input_scale"]
    scales = scale if isinstance(scale, list) else [scale]
    square = sum(width / scale**2 for width, scale in zip(widths, scales))
    return CENTERED if mode == "center+scale" else PLAIN, square**0.5
