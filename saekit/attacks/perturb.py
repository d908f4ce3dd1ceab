"""Adversarial examples: the fast gradient method and projected gradient ascent.

    FGSM  x' = P(x + eps u)                       Goodfellow et al. 2015, arXiv 1412.6572, section 4
    PGD   x_0 in the ball, x_{t+1} = P(x_t + a u) Madry et al. 2018, arXiv 1706.06083, section 2.1

u is the direction of steepest ascent of the score: the signs of its gradient in L-infinity, the
gradient over its norm in L2. P projects onto the ball around the picture and onto [0,1].

Shapes: B images, C channels, h w pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from saekit.attacks.balls import BETWEEN, Ball
from saekit.attacks.gradients import Score, input_gradient
from saekit.errors import UsageError, opt
from saekit.types import Progress

Method = Literal["fgsm", "pgd"]
STEP = 2.5
"""a = 2.5 eps / steps: the path may cross the ball, and turn back at its edge."""


@dataclass(frozen=True)
class Perturbed:
    """x (B,C,h,w) in [0,1], and the score of each image before and after, (B,)."""

    x: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor


def fgsm(score: Score, x: torch.Tensor, ball: Ball) -> Perturbed:
    """One step of the size of the budget. `x` (B,C,h,w) in [0,1].

    `after` may be below `before`: the score is linear only nearby. Raises what `input_gradient`
    does.
    """
    before_B, gradient = input_gradient(score, x)
    changed = ball.project(x + ball.eps * ball.ascent(gradient), x)
    with torch.no_grad():
        return Perturbed(changed, before_B, score(changed))


def pgd(
    score: Score,
    x: torch.Tensor,
    ball: Ball,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    seed: int = 0,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Perturbed:
    """`steps` steps from each start. Of all iterates the one with the largest score is kept, image
    by image; the picture itself is one of them, so no score falls.

    Parameters
        x: (B,C,h,w) in [0,1].
        step_size: in the units of eps; None: 2.5 eps / steps.
        restarts: starts. The first is the picture itself, the others are uniform in the ball.

    Raises UsageError, and what `input_gradient` does.
    """
    for name, number in (("steps", steps), ("restarts", restarts)):
        if number < 1:
            raise UsageError(f"{opt(name, number)} must be at least 1")
    size = STEP * ball.eps / steps if step_size is None else step_size
    if not 0 < size < float("inf"):
        raise UsageError(f"{opt('step_size', size)} must be above 0")
    generator = torch.Generator().manual_seed(seed)
    best, first_B, best_B = x, None, None
    for restart in range(restarts):
        start = x if restart == 0 else ball.random(x, generator)
        for step, (now, score_B) in enumerate(climb(score, start, x, ball, steps, size)):
            progress(Progress("attack", restart * steps + step, restarts * steps, "steps"))
            if first_B is None or best_B is None:  # the picture itself
                first_B = best_B = score_B
            better_B = score_B > best_B
            best_B = torch.where(better_B, score_B, best_B)
            best = torch.where(better_B[BETWEEN], now, best)
    assert first_B is not None and best_B is not None
    return Perturbed(best, first_B, best_B)


def climb(
    score: Score, start: torch.Tensor, center: torch.Tensor, ball: Ball, steps: int, size: float
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The iterates of projected gradient ascent, each with its scores (B,): the start, and one
    after each of `steps` steps."""
    now = start
    for step in range(steps + 1):
        score_B, gradient = input_gradient(score, now)
        yield now, score_B
        if step < steps:
            now = ball.project(now + size * ball.ascent(gradient), center)
