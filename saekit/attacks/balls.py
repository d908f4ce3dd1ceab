"""Budgets: the images within eps of an image, in L-infinity or L2, and in [0,1].

Rounding counts too: what `project` returns is within eps of the image when the difference is taken
in fp64, to the last bit.

Shapes: B images, C channels, h w pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from saekit.errors import UsageError, check_choice, opt

Norm = Literal["linf", "l2"]
NORMS: tuple[Norm, ...] = ("linf", "l2")
BETWEEN = (slice(None), None, None, None)  # (B,) -> (B,1,1,1)


@dataclass(frozen=True)
class Ball:
    """eps is in units of the pixel range, black 0 to white 1: of the largest change of a value
    (linf), or of the Euclidean norm over all pixels and channels (l2). Raises UsageError."""

    norm: Norm
    eps: float

    def __post_init__(self) -> None:
        check_choice("norm", self.norm, NORMS)
        if not 0 < self.eps < float("inf"):
            raise UsageError(f"{opt('eps', self.eps)} must be above 0", "write 8/255 or 0.03")

    def check_fits(self, values: int) -> None:
        """Raise UsageError for a budget that no change of a picture of so many values in [0,1]
        can reach, as gray levels given for the pixel range are."""
        largest = 1.0 if self.norm == "linf" else values**0.5
        if self.eps > largest:
            in_levels = self.norm == "linf" and self.eps < 255
            raise UsageError(
                f"{opt('eps', self.eps)} is above {largest:.4g}, the largest {self.norm} change of"
                " a picture from black 0 to white 1",
                f"write {self.eps:g}/255 for gray levels" if in_levels else "give a smaller one",
            )

    def sizes(self, x: torch.Tensor, center: torch.Tensor) -> torch.Tensor:
        """(B,) fp64: how far each image is from the other."""
        flat_BN = (x.double() - center.double()).flatten(1)
        return flat_BN.abs().amax(1) if self.norm == "linf" else flat_BN.norm(dim=1)

    def project(self, x: torch.Tensor, center: torch.Tensor) -> torch.Tensor:
        """x (B,C,h,w) within the budget of `center`, a picture in [0,1], and in [0,1] itself.

        L2 scales the change, then clamps. The clamp makes no change larger, since the center is in
        [0,1]. This is not the nearest point of both sets.
        """
        delta = x.double() - center.double()
        if self.norm == "linf":
            delta = delta.clamp(-self.eps, self.eps)
        else:
            size_B = delta.flatten(1).norm(dim=1)
            delta = delta * (self.eps / size_B.clamp_min(self.eps))[BETWEEN]
        return _within(center, delta, self)

    def ascent(self, gradient: torch.Tensor) -> torch.Tensor:
        """The direction of size 1 in which a linear function with this gradient rises most: the
        signs, or the gradient over its norm; 0 where there is no gradient."""
        if self.norm == "linf":
            return gradient.sign()
        size_B = gradient.flatten(1).norm(dim=1)
        return torch.where(size_B > 0, 1 / size_B, 0)[BETWEEN] * gradient

    def random(self, center: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A uniform point of the ball, then in [0,1]. Drawn on the CPU, so that a seed means the
        same on every device."""
        if self.norm == "linf":
            noise = 2 * torch.rand(center.shape, generator=generator, dtype=torch.float64) - 1
            delta = self.eps * noise
        else:
            noise = torch.randn(center.shape, generator=generator, dtype=torch.float64)
            uniform_B = torch.rand(len(center), generator=generator, dtype=torch.float64)
            radius_B = self.eps * uniform_B ** (1 / center[0].numel())
            delta = noise * (radius_B / noise.flatten(1).norm(dim=1))[BETWEEN]
        return self.project(center.double() + delta.to(center.device), center)


def _within(center: torch.Tensor, delta: torch.Tensor, ball: Ball) -> torch.Tensor:
    """center + delta in [0,1], in the center's dtype, rounded towards the center where the nearest
    number is farther from it than delta."""
    exact = (center.double() + delta).clamp(0, 1)
    x = exact.to(center.dtype)
    reach = (exact - center.double()).abs()
    if ball.norm == "linf":
        reach = reach.clamp_max(ball.eps)
    too_far = (x.double() - center.double()).abs() > reach
    return torch.where(too_far, torch.nextafter(x, center), x)
