"""`topk`: a fixed number of active latents in every row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from saekit_kernels import SparseCodes, encode_topk, topk_reconstruction
from saekit_kernels.reference import encode_topk_dense

from saekit.models.fused import Adam, encoder_metrics, fused_sparse_step
from saekit.models.sparsity.parts import auxk_terms, encode_for_fusion, scale_encoder_to_fit
from saekit.types import LossTerms

if TYPE_CHECKING:
    from saekit.models.sae import SAE


class TopK:
    """The k largest ReLU(pre) of each row (Makhzani and Frey 2013, arXiv 1312.5663; Gao et al. 2024, arXiv 2406.04093)."""

    options = frozenset({"k", "aux_coef", "aux_k", "aux_candidates", "aux_rows"})  # of SAEConfig, which no other variant takes
    homogeneous = True  # encode(c x) = c encode(x) for c > 0, so that the input scale folds into biases
    active_above = 0.0
    resamples = False
    thresholded = False

    def encode(self, sae: SAE, x_BD: torch.Tensor) -> SparseCodes:
        return encode_topk(x_BD, sae.W_enc, sae.b_enc, sae.config.k, sae.workspace)

    def dense_code(self, sae: SAE, x_BD: torch.Tensor) -> torch.Tensor:
        return encode_topk_dense(x_BD, sae.W_enc, sae.b_enc, sae.config.k)

    def loss(self, sae: SAE, x_BD: torch.Tensor, step: int) -> LossTerms:
        made = topk_reconstruction(
            x_BD, *sae.weights, sae.config.k, sae.workspace, "sparse" if sae.backend == "triton" else "auto", sae.encoder_plan, sae.backend
        )
        terms, weights, total = auxk_terms(sae, x_BD, made)
        return LossTerms(total, terms, weights, made.fired_F, encoder_metrics(made.redone, made.lost))

    def fused_step(self, sae: SAE, x_BD: torch.Tensor, step: int, adam: Adam) -> LossTerms | None:
        if sae.config.aux_coef > 0 and sae.longest_dead(1) is not None:
            return None
        return fused_sparse_step(sae, x_BD, encode_for_fusion(sae, x_BD, sae.config.k), 0.0, adam)

    def initialise(self, sae: SAE, sample_BD: torch.Tensor) -> None:
        scale_encoder_to_fit(sae, sample_BD)
