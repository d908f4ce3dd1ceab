"""`batchtopk`: k active latents a row on average, rows competing within a batch (Bussmann et al.
2024, arXiv 2412.06410).

Training keeps the B k largest ReLU(pre) of the whole batch. Where the norms of rows differ, the
long rows take most of these at first, and most latents of a wide dictionary never fire; so there k
begins at four times its value and falls (docs/log.md). Rows must not depend on their company
afterwards: an exponential average of the smallest value kept becomes the threshold of a JumpReLU,
which is saved as `threshold (F,)`, the same for every latent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from saekit_kernels import batchtopk_reconstruction, encode_batchtopk
from saekit_kernels.operations import OPERATIONS

from saekit.models.sae import SAE
from saekit.models.sae.dead import aux_terms, has_aux_term
from saekit.models.sae.fused import Adam, fused_sparse_step
from saekit.models.sae.losses import loss_terms
from saekit.models.sae.preactivations import Pre, encoder_metrics, largest_of_batch
from saekit.models.sparsity.topk import TopKConfig, encoder_copy, k_at
from saekit.types import ActivationBatch, LossTerms, Step

# of the average, a step: it spans the last ten batches, since the values still grow when a short
# run ends
KEPT = 0.9
# of the average: where the search for the next batch's threshold begins; a wrong guess costs time
# alone
GUESS = 0.7


@dataclass(frozen=True)
class BatchTopKConfig(TopKConfig):
    sparsity: str = "batchtopk"
    k_anneal: float = 0.3

    starts = 4


class LargestOfBatch(SAE):
    """The code of batchtopk, and the common course of a step."""

    config_class = BatchTopKConfig
    thresholded = True

    def preactivations(self, x_BD: torch.Tensor, step: Step) -> Pre:
        pre, smallest = largest_of_batch(
            self, x_BD, k_at(self, step), GUESS * self.threshold[0], step
        )
        remember(self, smallest)
        return pre

    def code_of(self, x_BD: torch.Tensor) -> torch.Tensor:
        """(B,F). Of a trained model ReLU(pre) above the threshold; in training the batch's own
        largest, as in the loss."""
        if self.training:
            return encode_batchtopk(x_BD, self.W_enc, self.b_enc, self.config.k, self.workspace)[
                0
            ].to_dense()
        return super().code_of(x_BD)


class BatchTopK(LargestOfBatch):
    """The same by kernels for a whole step."""

    sparsity = "batchtopk"
    line = "the B k largest of a batch; a threshold afterwards"

    def loss_of(
        self, x_BD: torch.Tensor, target_BD: torch.Tensor, step: Step, batch: ActivationBatch
    ) -> LossTerms:
        if not self.is_autoencoder(x_BD, target_BD):
            return super().loss_of(x_BD, target_BD, step, batch)
        made, smallest = batchtopk_reconstruction(
            x_BD,
            *self.weights,
            k_at(self, step),
            GUESS * self.threshold[0],
            self.workspace,
            step.encoder_plan,
            step.backend,
        )
        remember(self, smallest)
        weighted = {
            "reconstruction": (made.total, 1.0),
            **aux_terms(self, x_BD, made.residual_BD, step),
        }
        return loss_terms(weighted, made.fired_F, encoder_metrics(made))

    def fused(self, x_BD: torch.Tensor, step: Step, adam: Adam) -> LossTerms | None:
        if has_aux_term(self, step):
            return None
        encoded, smallest = OPERATIONS["triton"].encode_batchtopk(
            x_BD,
            encoder_copy(self),
            self.b_enc,
            k_at(self, step),
            self.workspace,
            "auto",
            GUESS * self.threshold[0],
        )
        remember(self, smallest)
        return fused_sparse_step(self, x_BD, encoded, 0.0, adam)


@torch.no_grad()
def remember(sae: SAE, smallest: torch.Tensor) -> None:
    """The average moves towards this batch's smallest kept value; the first batch sets it. Nothing
    here waits for the device."""
    old = sae.threshold
    sae.threshold.copy_(
        torch.where(old > 0, KEPT * old + (1 - KEPT) * smallest, smallest.expand_as(old))
    )
