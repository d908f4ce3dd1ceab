"""A loaded SAE back in the units that it was trained in, x~ = (x - mean) scale with E||x~||^2 = D: the inverse of `SAE.folded`.

Rates mean there what they meant in training: Adam's steps have the size of the rate whatever the gradient's, and raw rows have a scale of
their own and a mean as long as their deviation from it (SmolLM2-135M, block 9: 1.07 times), along which every change of an encoder row
would move all its codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saekit.models.sae import SAE
from saekit.store.reader import Store


@dataclass(frozen=True)
class Units:
    mean_D: torch.Tensor
    scale: float

    @classmethod
    def of(cls, store: Store, device: torch.device) -> Units:
        """By the statistics of the whole store, of which the training rows that a run looked at are a sample."""
        mean, std = (torch.tensor(store.stats[name], dtype=torch.float64) for name in ("mean", "std"))
        return cls(mean.float().to(device), (len(mean) / float(std.square().sum())) ** 0.5)

    def of_training(self, x_BD: torch.Tensor) -> torch.Tensor:
        return (x_BD - self.mean_D) * self.scale

    def raw(self, x_BD: torch.Tensor) -> torch.Tensor:
        return x_BD / self.scale + self.mean_D

    def unfolded(self, sae: SAE) -> dict[str, torch.Tensor]:
        """The tensors by which an SAE acts on rows in training units as `sae` acts on raw ones: `folded(mean_D, scale)` undoes it."""
        unit = self.scale if sae.variant.homogeneous else 1.0  # of the code
        W_enc, mean_D = sae.W_enc.detach(), self.mean_D.to(sae.W_enc.device)
        made = {
            "W_enc": W_enc * (unit / self.scale),
            "b_enc": (sae.b_enc.detach() + W_enc @ mean_D) * unit,
            "W_dec": sae.W_dec.detach() * (self.scale / unit),
            "b_dec": (sae.b_dec.detach() - mean_D) * self.scale,
        }
        return made | ({"threshold": sae.threshold * unit} if sae.variant.thresholded else {})
