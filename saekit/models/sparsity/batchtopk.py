"""`batchtopk`: k active latents a row on average, rows competing within a batch (Bussmann et al. 2024, arXiv 2412.06410).

Training keeps the B k largest ReLU(pre) of the whole batch. Where the norms of rows differ, the long rows take most of these at first, and
most latents of a wide dictionary never fire; so there k begins at four times its value and falls (docs/log.md). Rows must not depend on
their company afterwards: an exponential average of the smallest value kept becomes the threshold of a JumpReLU, which is saved as
`threshold (F,)`, the same for every latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from saekit_kernels import batchtopk_reconstruction, encode_batchtopk
from saekit_kernels.operations import OPERATIONS

from saekit.models.fused import Adam, fused_sparse_step
from saekit.models.sparsity.base import Variant, summed
from saekit.models.sparsity.dead import aux_terms, revives_by_aux
from saekit.models.sparsity.preactivations import Pre, encoder_metrics, largest_of_batch
from saekit.models.sparsity.topk import TopKConfig, encoder_copy, k_at
from saekit.types import ActivationBatch, LossTerms

if TYPE_CHECKING:
    from saekit.models.sae import SAE

KEPT = 0.9  # of the average, a step: it spans the last ten batches, since the values still grow when a short run ends
GUESS = 0.7  # of the average: where the search for the next batch's threshold begins; a wrong guess costs time alone


@dataclass(frozen=True)
class BatchTopKConfig(TopKConfig):
    k_anneal: float = 0.3
    """Share of the run over which k falls."""

    starts = 4


class BatchTopK(Variant):
    config = BatchTopKConfig
    line = "the B k largest of a batch; a threshold afterwards"
    thresholded = True

    def preactivations(self, sae: SAE, x_BD: torch.Tensor, step: int) -> Pre:
        pre, smallest = largest_of_batch(sae, x_BD, k_at(sae, step), GUESS * sae.threshold[0])
        remember(sae, smallest)
        return pre

    def encode(self, sae: SAE, x_BD: torch.Tensor) -> torch.Tensor:
        """(B,F). Of a trained model ReLU(pre) above the threshold; in training the batch's own largest, as in the loss."""
        if sae.training:
            return encode_batchtopk(x_BD, sae.W_enc, sae.b_enc, sae.config.k, sae.workspace)[0].to_dense()
        return super().encode(sae, x_BD)

    def loss(self, sae: SAE, x_BD: torch.Tensor, target_BD: torch.Tensor, step: int, batch: ActivationBatch) -> LossTerms:
        if not sae.plain(x_BD, target_BD):
            return super().loss(sae, x_BD, target_BD, step, batch)
        made, smallest = batchtopk_reconstruction(
            x_BD, *sae.weights, k_at(sae, step), GUESS * sae.threshold[0], sae.workspace, sae.encoder_plan, sae.backend
        )
        remember(sae, smallest)
        weighted = {"reconstruction": (made.total, 1.0), **aux_terms(sae, x_BD, made.residual_BD)}
        return summed(weighted, made.fired_F, encoder_metrics(made))

    def fused_step(self, sae: SAE, x_BD: torch.Tensor, step: int, adam: Adam) -> LossTerms | None:
        if revives_by_aux(sae) and sae.longest_dead(1) is not None:
            return None
        encoded, smallest = OPERATIONS["triton"].encode_batchtopk(
            x_BD, encoder_copy(sae), sae.b_enc, k_at(sae, step), sae.workspace, "auto", GUESS * sae.threshold[0]
        )
        remember(sae, smallest)
        return fused_sparse_step(sae, x_BD, encoded, 0.0, adam)


@torch.no_grad()
def remember(sae: SAE, smallest: torch.Tensor) -> None:
    """The average moves towards this batch's smallest kept value; the first batch sets it. Nothing here waits for the device."""
    old = sae.threshold
    sae.threshold.copy_(torch.where(old > 0, KEPT * old + (1 - KEPT) * smallest, smallest.expand_as(old)))
