"""The controller that drives L0 to `target_l0`; without a target it holds the coefficient.

It works in logarithms, since L0 and what moves it span decades; e = log(L0 / reference). At every
poll of L0 it moves two things:

- what the variant's `steered` names: the penalty's coefficient (`coef`), log coef += P de + I e,
  or, where the penalty itself has a target rate or L0, a factor on that (`aim`), log aim -= P de +
  I e: a stronger pull towards a wrong place does not help;
- what a latent must exceed to be active, log theta += T e: all thresholds of a jumprelu alike, else
  all biases by `shift` T e (`SAE.steer`). The penalty by itself reacts too late: when it outweighs
  the reconstruction, Adam takes steps of the same size however large it is, and its second moments
  date from the start of the run. So the penalty finds the level, and the biases hold it.

Where the penalty has no effect on L0 (`biases`), only they are moved.

The target is meant for rows that were not trained on. A code that fits the training documents is
more active on others (by up to 16 %, docs/notes/log.md), so the trainer reports the L0 of held-out
rows from time to time (`compare`), and the L0 of a training batch is multiplied by `gap`.

The reference falls geometrically from the first L0 to the target over RAMP of the run: with the
target from the start, coefficients wind up while the code is still dense, and overshoot. The time
constants of P and I are shares of the run, since a short run moves faster.
"""

from __future__ import annotations

import math
from typing import Any

from saekit.typed import as_type

PROPORTIONAL = 1.5
# Share of the run, and steps at least, in which a steady error of e moves log v by e.
INTEGRAL_SHARE, FEWEST_STEPS = 0.05, 4.0
RAMP = 0.3  # share of the run
MAX_ERROR = 1.0
# Share of the run, and steps at least, in which a steady error of e raises thresholds by e.
TRIM_SHARE, TRIM_STEPS = 0.05, 10.0
MAX_TRIM = 0.4  # of that e at one poll, where polls are rare
MAX_GAP = 2.0


class Control:
    def __init__(self, config: Any) -> None:
        self.target: float | None = getattr(config, "target_l0", None) or None
        self.coef: float = getattr(config, "coef", None) or 0.0
        self.aim = 1.0
        self.warmup: float = getattr(config, "coef_warmup", 0.0)
        # coef | aim | biases
        self.steers: str | None = getattr(config, "steered", None) if self.target else None
        self.first: float | None = None  # the L0 at the first poll
        self.before: float | None = None  # the error at the last poll
        self.looked = 0  # the step of the last poll
        self.gap = 1.0  # L0 of held-out rows over that of training batches
        self.summed, self.looks = 0.0, 0  # L0 of batches, and polls, since the last comparison

    def warmed(self, step: int, total: int) -> float:
        """The share of the coefficient at a step: it rises linearly over `coef_warmup` of the run,
        unless it is controlled."""
        warmup = 0.0 if self.steers == "coef" else self.warmup * total
        return min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0

    def observe(self, l0: float, step: int, total: int) -> float:
        """Told the L0 after `step` steps of `total`: moves `coef` or `aim`, and returns the factor
        on what latents must exceed."""
        if not self.steers or self.target is None:
            return 1.0
        # The error, against a reference that falls to the target.
        self.summed, self.looks = self.summed + l0, self.looks + 1
        l0 = max(self.gap * l0, 1e-3)
        self.first = self.first or l0
        ramp_left = max(0.0, 1.0 - step / (RAMP * total))
        reference = self.target * max(self.first / self.target, 1.0) ** ramp_left
        error = max(-MAX_ERROR, min(MAX_ERROR, math.log(l0 / reference)))
        change = 0.0 if self.before is None else error - self.before
        steps = step - self.looked
        self.before, self.looked = error, step
        # The penalty: proportional and integral.
        integral = min(steps / max(INTEGRAL_SHARE * total, FEWEST_STEPS), 1.0) * error
        factor = math.exp(PROPORTIONAL * change + integral)
        if self.steers == "coef":
            self.coef *= factor
        elif self.steers == "aim":
            self.aim /= factor
        # Thresholds or biases.
        return math.exp(min(steps / max(TRIM_SHARE * total, TRIM_STEPS), MAX_TRIM) * error)

    def compare(self, l0: float) -> None:
        """Told the L0 of held-out rows. Both L0s are those of few rows, so the gap moves only half
        of the way."""
        if l0 and self.summed:
            gap = math.sqrt(self.gap * l0 * self.looks / self.summed)
            self.gap = max(1 / MAX_GAP, min(MAX_GAP, gap))
        self.summed, self.looks = 0.0, 0

    def state(self) -> dict[str, float | int | None]:
        names = ("coef", "aim", "first", "before", "looked", "gap", "summed", "looks")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: dict[str, float | int | None]) -> None:
        """Raises MisfitError for a state that is not one of `state`."""
        hints = {"first": float | None, "before": float | None, "looked": int, "looks": int}
        for name, current in self.state().items():
            value = as_type(state.get(name, current), hints.get(name, float), f"control.{name}")
            setattr(self, name, value)
