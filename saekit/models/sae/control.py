"""What steers a penalty so that the code comes to have the L0 that was asked for (`target_l0`), or
keeps its coefficient.

Control in logarithms, as L0 and what moves it span decades; e = log(L0 / wished). Two things are
moved whenever L0 is looked at:

- the variant's `steered`: the penalty's coefficient (`coef`), log coef += P de + I e, or, where the
  penalty itself aims at a rate or an L0, a factor on that (`aim`), log aim -= P de + I e: a
  stronger pull to a wrong place does not help;
- what a latent must pass to be active, log theta += T e: all thresholds of a jumprelu alike, else
  all biases by `shift` T e (`Variant.steer`). A penalty alone comes too late: once it outweighs the
  reconstruction, Adam takes steps of the same size however large it is, and its second moments are
  those of the beginning. So the penalty finds, and the biases hold.

Where the penalty cares for no L0 (`biases`), they are all that is moved.

L0 is meant of rows that were not trained on. What fits the training documents is more active on
others (by up to 16 %, docs/log.md), so the trainer tells now and then what L0 held-out rows have
(`compare`), and the L0 of a training batch counts `gap` times.

The wished L0 falls geometrically from the first one to the target over WAY of the run: aimed at the
target at once, coefficients wind up while the code is still dense, and overshoot. Times of P and I
are shares of the run, since a short run moves faster.
"""

from __future__ import annotations

import math
from typing import Any

from saekit.typed import as_type

PROPORTIONAL = 1.5
INTEGRAL_SHARE = 0.05  # of the run: the time in which a steady error of e moves log v by e
FEWEST = 4.0  # steps that this time has at least
WAY = 0.3
MOST_ERROR = 1.0
# the time in which a steady error of e raises thresholds by e: of the run, and in steps at least
TRIM_SHARE, SHORTEST = 0.05, 10.0
MOST = 0.4  # of that e at once, where L0 is looked at rarely
MOST_GAP = 2.0


class Control:
    def __init__(self, config: Any) -> None:
        self.target: float | None = getattr(config, "target_l0", None) or None
        self.coef: float = getattr(config, "coef", None) or 0.0
        self.aim = 1.0
        self.warmup: float = getattr(config, "coef_warmup", 0.0)
        # coef | aim | biases
        self.steers: str | None = getattr(config, "steered", None) if self.target else None
        self.first: float | None = None  # the L0 at the first look
        self.before: float | None = None  # the error at the last look
        self.looked = 0  # at this step
        self.gap = 1.0  # held-out rows' L0 over that of training batches
        self.summed, self.looks = 0.0, 0  # of batches' L0 since the last comparison

    def warmed(self, step: int, total: int) -> float:
        """The share of the coefficient at a step: it rises linearly over `coef_warmup` of the run,
        unless it is steered."""
        warmup = 0.0 if self.steers == "coef" else self.warmup * total
        return min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0

    def observe(self, l0: float, step: int, total: int) -> float:
        """Steer, after `step` steps of `total`; the factor on what latents must pass."""
        if not self.steers:
            return 1.0
        self.summed, self.looks = self.summed + l0, self.looks + 1
        l0 = max(self.gap * l0, 1e-3)
        self.first = self.first or l0
        way_left = max(0.0, 1.0 - step / (WAY * total))
        wished = self.target * max(self.first / self.target, 1.0) ** way_left
        error = max(-MOST_ERROR, min(MOST_ERROR, math.log(l0 / wished)))
        change = 0.0 if self.before is None else error - self.before
        passed = step - self.looked
        self.before, self.looked = error, step
        moved = math.exp(
            PROPORTIONAL * change + min(passed / max(INTEGRAL_SHARE * total, FEWEST), 1.0) * error
        )
        if self.steers == "coef":
            self.coef *= moved
        elif self.steers == "aim":
            self.aim /= moved
        return math.exp(min(passed / max(TRIM_SHARE * total, SHORTEST), MOST) * error)

    def compare(self, l0: float) -> None:
        """Told the L0 of held-out rows. Both sides are of few rows: half of the way each time."""
        if l0 and self.summed:
            gap = math.sqrt(self.gap * l0 * self.looks / self.summed)
            self.gap = max(1 / MOST_GAP, min(MOST_GAP, gap))
        self.summed, self.looks = 0.0, 0

    def state(self) -> dict[str, float | int | None]:
        names = ("coef", "aim", "first", "before", "looked", "gap", "summed", "looks")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: dict[str, float | int | None]) -> None:
        """Raises MisfitError for a state that is not one of `state`."""
        hints = {"first": float | None, "before": float | None, "looked": int, "looks": int}
        for name, now in self.state().items():
            setattr(
                self, name, as_type(state.get(name, now), hints.get(name, float), f"control.{name}")
            )
