"""`kl`: sigmoid codes, their means penalised."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from saekit_kernels import sigmoid_reconstruction

from saekit.models.fused import Adam
from saekit.types import LossTerms

if TYPE_CHECKING:
    from saekit.models.sae import SAE


class KL:
    """Sigmoid codes whose mean activation is pulled to `target_rate` by sum_j KL(rho || mean_b f_bj) (Ng, CS294A notes)."""

    options = frozenset({"coef", "coef_warmup", "target_rate"})
    homogeneous = False  # codes stay in [0, 1] whatever the input's scale
    active_above = 0.5
    resamples = False
    thresholded = False

    def encode(self, sae: SAE, x_BD: torch.Tensor) -> torch.Tensor:
        return torch.addmm(sae.b_enc, x_BD, sae.W_enc.T).sigmoid_()

    dense_code = encode

    def loss(self, sae: SAE, x_BD: torch.Tensor, step: int) -> LossTerms:
        coef, rate = sae.warmed_coef(step), sae.config.target_rate
        made = sigmoid_reconstruction(x_BD, *sae.weights, coef, rate, sae.workspace, sae.backend)
        terms = {"reconstruction": made.reconstruction, "kl": made.penalty}
        return LossTerms(made.total, terms, {"reconstruction": 1.0, "kl": coef}, made.fired_F)

    def fused_step(self, sae: SAE, x_BD: torch.Tensor, step: int, adam: Adam) -> None:
        return None  # the gradient is dense

    def initialise(self, sae: SAE, sample_BD: torch.Tensor) -> None:
        """Codes start near the target rate, so that the penalty starts near its minimum."""
        sae.b_enc += math.log(sae.config.target_rate / (1 - sae.config.target_rate))
