"""`l1`: rectified codes, their sizes penalised."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from saekit_kernels import relu_reconstruction

from saekit.models.fused import Adam, encoder_metrics, fused_sparse_step
from saekit.models.sparsity.parts import encode_for_fusion, scale_encoder_to_fit
from saekit.types import LossTerms

if TYPE_CHECKING:
    from saekit.models.sae import SAE


class L1:
    """ReLU codes with the L1 penalty mean_b sum_j z_bj ||w_j||, its coefficient warmed up linearly: weighted by the decoder norm, so
    that it cannot be lowered by shifting scale into the decoder (Anthropic, "Circuits Updates - April 2024")."""

    options = frozenset({"coef", "coef_warmup"})
    homogeneous = True
    active_above = 0.0
    resamples = True
    thresholded = False

    def encode(self, sae: SAE, x_BD: torch.Tensor) -> torch.Tensor:
        return torch.addmm(sae.b_enc, x_BD, sae.W_enc.T).relu_()

    dense_code = encode

    def loss(self, sae: SAE, x_BD: torch.Tensor, step: int) -> LossTerms:
        coef, unit = sae.warmed_coef(step), sae.config.decoder_norm == "unit"
        arm = sae.arm if sae.backend == "triton" else "auto"
        made = relu_reconstruction(x_BD, *sae.weights, coef, unit, sae.workspace, arm, sae.encoder_plan, sae.backend)
        terms = {"reconstruction": made.reconstruction, "l1": made.penalty}
        return LossTerms(made.total, terms, {"reconstruction": 1.0, "l1": coef}, made.fired_F, encoder_metrics(made.redone, made.lost))

    def fused_step(self, sae: SAE, x_BD: torch.Tensor, step: int, adam: Adam) -> LossTerms | None:
        if sae.arm == "dense":
            return None
        return fused_sparse_step(sae, x_BD, encode_for_fusion(sae, x_BD, None), sae.warmed_coef(step), adam)

    def initialise(self, sae: SAE, sample_BD: torch.Tensor) -> None:
        scale_encoder_to_fit(sae, sample_BD)
