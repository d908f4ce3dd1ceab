"""The units that an SAE was trained in, x~ = (x - mean) scale with E||x~||^2 = D (`SAE.unfolded`
brings a loaded one back to them).

Rates mean there what they meant in training: Adam's steps have the size of the rate whatever the
gradient's, and raw rows have a scale of their own and a mean as long as their deviation from it
(SmolLM2-135M, block 9: 1.07 times), along which every change of an encoder row would move all its
codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saekit.store.reader import Store


@dataclass(frozen=True)
class Units:
    mean_D: torch.Tensor
    scale: float

    @classmethod
    def of(cls, store: Store, device: torch.device) -> Units:
        """By the statistics of the whole store, of which the training rows that a run looked at are
        a sample."""
        mean, std = (
            torch.tensor(store.stats[name], dtype=torch.float64) for name in ("mean", "std")
        )
        return cls(mean.float().to(device), (len(mean) / float(std.square().sum())) ** 0.5)

    def of_training(self, x_BD: torch.Tensor) -> torch.Tensor:
        return (x_BD - self.mean_D) * self.scale

    def raw(self, x_BD: torch.Tensor) -> torch.Tensor:
        return x_BD / self.scale + self.mean_D
