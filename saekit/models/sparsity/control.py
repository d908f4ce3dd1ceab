"""The coefficient of a penalty: given, or steered so that the code comes to have the L0 that was asked for (`--target-l0`).

A proportional-integral controller in logarithms, as coefficient and L0 both span decades: with e = log(L0 / target),
log coef += P (e - e before) + I e. Its time scale is a share of the run, since a short run moves faster.
"""

from __future__ import annotations

import math
from typing import Any

PROPORTIONAL = 1.0
INTEGRAL_SHARE = 0.04  # of the run: the time in which a steady error of e moves log coef by e
MOST_ERROR = 1.0  # a code that is ten times too dense is no reason to jump


class Control:
    def __init__(self, config: Any) -> None:
        self.target: float | None = getattr(config, "target_l0", None) or None
        self.coef: float = getattr(config, "coef", None) or 0.0
        self.warmup: float = getattr(config, "coef_warmup", 0.0)
        self.before: float | None = None
        self.steers: bool = self.target is not None and getattr(config, "steered", False)

    def warmed(self, step: int, total: int) -> float:
        """The share of the coefficient at a step: it rises linearly over `coef_warmup` of the run, unless it is steered."""
        warmup = 0.0 if self.steers else self.warmup * total
        return min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0

    def observe(self, l0: float, total: int) -> None:
        if not self.steers:
            return
        error = max(-MOST_ERROR, min(MOST_ERROR, math.log(max(l0, 1e-3) / self.target)))
        change = error if self.before is None else error - self.before
        integral = 1.0 / max(INTEGRAL_SHARE * total, 4.0)
        self.coef *= math.exp((0.0 if self.before is None else PROPORTIONAL * change) + integral * error)
        self.before = error

    def state(self) -> dict[str, float | None]:
        return {"coef": self.coef, "before": self.before}

    def restore(self, state: dict[str, float | None]) -> None:
        self.coef, self.before = state["coef"], state["before"]
