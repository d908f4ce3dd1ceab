"""`batchtopk`: k active latents a row on average, rows competing within a batch (Bussmann et al. 2024, arXiv 2412.06410).

Training keeps the B k largest ReLU(pre) of the whole batch. Rows must not depend on their company afterwards: an exponential average of the
smallest value kept becomes the threshold of a JumpReLU, which is saved as `threshold (F,)`, the same for every latent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from saekit_kernels import batchtopk_reconstruction, encode_batchtopk
from saekit_kernels.operations import OPERATIONS

from saekit.models.fused import Adam, encoder_metrics, fused_sparse_step
from saekit.models.sparsity.parts import auxk_terms, scale_encoder_to_fit
from saekit.models.sparsity.topk import TopK
from saekit.types import LossTerms

if TYPE_CHECKING:
    from saekit.models.sae import SAE

KEPT = 0.9  # of the average, a step: it spans the last ten batches, since the values still grow when a short run ends
GUESS = 0.7  # of the average: where the search for the next batch's threshold begins; a wrong guess costs time alone


class BatchTopK:
    options = TopK.options
    homogeneous = True
    active_above = 0.0
    resamples = False
    thresholded = True

    def encode(self, sae: SAE, x_BD: torch.Tensor) -> torch.Tensor:
        """(B,F). Of a trained model ReLU(pre) above the threshold; in training the batch's own largest, as in the loss."""
        if sae.training:
            return encode_batchtopk(x_BD, sae.W_enc, sae.b_enc, sae.config.k, sae.workspace)[0].to_dense()
        pre = torch.addmm(sae.b_enc, x_BD, sae.W_enc.T)
        return torch.where(pre > sae.threshold, pre, 0.0)

    def dense_code(self, sae: SAE, x_BD: torch.Tensor) -> torch.Tensor:
        """The batch's B k largest by autograd; ties at the smallest are all kept."""
        pre = torch.addmm(sae.b_enc, x_BD, sae.W_enc.T)
        smallest = pre.detach().flatten().topk(len(x_BD) * sae.config.k).values[-1]
        self.remember(sae, smallest.clamp_min(0.0))
        return torch.where(pre >= smallest, pre, 0.0).relu()

    def loss(self, sae: SAE, x_BD: torch.Tensor, step: int) -> LossTerms:
        made, smallest = batchtopk_reconstruction(
            x_BD, *sae.weights, sae.config.k, GUESS * sae.threshold[0], sae.workspace, sae.encoder_plan, sae.backend
        )
        self.remember(sae, smallest)
        terms, weights, total = auxk_terms(sae, x_BD, made)
        return LossTerms(total, terms, weights, made.fired_F, encoder_metrics(made.redone, made.lost))

    def fused_step(self, sae: SAE, x_BD: torch.Tensor, step: int, adam: Adam) -> LossTerms | None:
        if sae.config.aux_coef > 0 and sae.longest_dead(1) is not None:
            return None
        W_low = sae.shadows.of("W_enc", sae.W_enc)
        W = sae.W_enc if W_low is None else W_low
        guess = GUESS * sae.threshold[0]
        encoded, smallest = OPERATIONS["triton"].encode_batchtopk(x_BD, W, sae.b_enc, sae.config.k, sae.workspace, "auto", guess)
        self.remember(sae, smallest)
        return fused_sparse_step(sae, x_BD, encoded, 0.0, adam)

    @torch.no_grad()
    def remember(self, sae: SAE, smallest: torch.Tensor) -> None:
        """The average moves towards this batch's smallest kept value; the first batch sets it. Nothing here waits for the device."""
        old = sae.threshold
        sae.threshold.copy_(torch.where(old > 0, KEPT * old + (1 - KEPT) * smallest, smallest.expand_as(old)))

    def initialise(self, sae: SAE, sample_BD: torch.Tensor) -> None:
        scale_encoder_to_fit(sae, sample_BD[:4096])
