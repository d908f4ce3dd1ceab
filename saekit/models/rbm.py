"""Restricted Boltzmann machines: energies, contrastive divergence.

v (B,D) visible, h (B,F) hidden, W (F,D), b (F,), c (D,). Units are `bernoulli` (binary) or
`gaussian` (real, variance 1):

    E(v, h) = V(v) + U(h) - h^T W v
    V = -c^T v | 1/2 ||v - c||^2
    U = -b^T h | 1/2 ||h - b||^2
    F(v) = -log sum_h exp(-E)
         = V(v) - sum_j softplus(b_j + (W v)_j)        binary h
         = V(v) - 1/2 ||W v + b||^2 + 1/2 ||b||^2      Gaussian h, up to a constant

Source: Hinton 2002, "Training products of experts by minimizing contrastive divergence"; Hinton
2010, "A practical guide to training restricted Boltzmann machines"; Hinton and Salakhutdinov 2006,
Science 313, with linear code units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import softplus

Units = Literal["bernoulli", "gaussian"]


@dataclass(frozen=True)
class RBM:
    W: torch.Tensor  # (F,D)
    b: torch.Tensor  # (F,)
    c: torch.Tensor  # (D,)
    visible: Units
    hidden: Units

    def free_energy(self, v_BD: torch.Tensor) -> torch.Tensor:
        """(B,)."""
        a_BF = v_BD @ self.W.T + self.b
        if self.visible == "bernoulli":
            V_B = -(v_BD @ self.c)
        else:
            V_B = 0.5 * (v_BD - self.c).square().sum(1)
        if self.hidden == "bernoulli":
            return V_B - softplus(a_BF).sum(1)
        return V_B - 0.5 * a_BF.square().sum(1) + 0.5 * self.b.square().sum()

    def sample_hidden(self, v_BD: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        a = v_BD @ self.W.T + self.b
        if self.hidden == "bernoulli":
            u = torch.rand(a.shape, generator=generator, dtype=a.dtype, device=a.device)
            return (u < a.sigmoid()).to(a.dtype)
        return a + torch.randn(a.shape, generator=generator, dtype=a.dtype, device=a.device)

    def visible_mean(self, h_BF: torch.Tensor) -> torch.Tensor:
        a = h_BF @ self.W + self.c
        return a.sigmoid() if self.visible == "bernoulli" else a

    @torch.no_grad()
    def chain(self, v_BD: torch.Tensor, k: int, generator: torch.Generator) -> torch.Tensor:
        """v after k rounds of hidden samples and visible means; means instead of visible samples
        reduce the variance (Hinton 2010, 3.2)."""
        for _ in range(k):
            v_BD = self.visible_mean(self.sample_hidden(v_BD, generator))
        return v_BD

    def contrastive_divergence(
        self, v_BD: torch.Tensor, k: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, v_k): mean F(v) - F(v_k) with v_k constant. Its gradient is that of CD-k, <h v^T>
        under v_k minus <h v^T> under the data."""
        v_k = self.chain(v_BD, k, generator)
        return (self.free_energy(v_BD) - self.free_energy(v_k)).mean(), v_k
