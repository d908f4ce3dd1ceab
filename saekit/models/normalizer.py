"""The units that a dictionary trains in, x~ = (x - mean) * scale with E||x~||^2 = D, and raw rows.

Training and fine-tuning use them because learning rates are chosen for rows of that size: Adam's
steps have the size of the rate whatever the gradient is. Raw rows have a scale of their own, and
their mean can be as long as their deviation from it (SmolLM2-135M, block 9: 1.07 times); every
change of an encoder row along that mean would move all of its codes. On saving, mean and scale move
into the weights (`Autoencoder.folded`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

Scale = float | torch.Tensor


@dataclass(frozen=True)
class Normalizer:
    mean_D: torch.Tensor
    scale: Scale
    """One number, or (D,) where a row holds several hooks, each with its own scale."""

    @classmethod
    def from_moments(
        cls, mean_D: torch.Tensor, square_D: torch.Tensor, widths: Sequence[int] = ()
    ) -> Normalizer:
        """Subtracts `mean_D` and scales to E||x~||^2 = D; `square_D` are the mean squares of
        x - mean. With `widths`, those of several hooks in one row, each hook has its own scale. A
        hook whose rows are all 0 keeps the scale 1."""
        parts = square_D.split(list(widths or (len(square_D),)))
        sums = [float(part.sum()) for part in parts]
        scales = [
            (len(part) / total) ** 0.5 if total > 0 else 1.0 for part, total in zip(parts, sums)
        ]
        if len(scales) == 1:
            return cls(mean_D, scales[0])
        lengths = torch.tensor([len(part) for part in parts])
        return cls(mean_D, torch.tensor(scales).repeat_interleave(lengths))

    def to(self, device: torch.device) -> Normalizer:
        """In fp32 on a device."""
        scale = self.scale
        if isinstance(scale, torch.Tensor):
            scale = scale.to(device, torch.float32)
        return Normalizer(self.mean_D.float().to(device), scale)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """x~ (..., D) of raw x."""
        return (x - self.mean_D) * self.scale

    def apply_(self, x: torch.Tensor) -> torch.Tensor:
        """`apply` in place."""
        return x.sub_(self.mean_D).mul_(self.scale)

    def invert(self, x: torch.Tensor) -> torch.Tensor:
        """Raw x of x~ (..., D)."""
        return x / self.scale + self.mean_D

    def scales(self, widths: Sequence[int] = ()) -> float | list[float]:
        """The scale, or one for each of several hooks of these widths, for a file."""
        if not isinstance(self.scale, torch.Tensor):
            return self.scale
        return [float(part[0]) for part in self.scale.split(list(widths))]
