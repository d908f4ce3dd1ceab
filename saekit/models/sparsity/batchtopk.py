"""`batchtopk`: on average k active latents per row; the rows of a batch compete (Bussmann et al.
2024, arXiv 2412.06410).

Training keeps the B k largest ReLU(pre) of the whole batch. Where the norms of rows differ, long
rows take most of these at first, and most latents of a wide dictionary never fire; so in wide
dictionaries k starts at four times its value and falls (docs/notes/log.md). At inference a row's
code must not depend on the rest of the batch: an exponential average of the smallest value kept
becomes the threshold of a JumpReLU, saved as `threshold (F,)`, the same for every latent.
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

# The average spans the last ten batches, in a short run a twentieth of it, and one at least: the
# values still grow when a short run ends, and an average that lags lets too much through.
SPAN, SPAN_SHARE = 10, 0.05
# Share of the last batch's smallest kept value at which the search for the next one starts; a wrong
# guess only costs time. Batches of 4,096 rows of SmolLM2 differ by 1 %.
GUESS = 0.85


@dataclass(frozen=True)
class BatchTopKConfig(TopKConfig):
    sparsity: str = "batchtopk"
    k_anneal: float = 0.3

    starts = 4


class LargestOfBatch(SAE):
    """The code of batchtopk, with the ordinary step."""

    config_class = BatchTopKConfig
    thresholded = True
    smallest: torch.Tensor | None = None
    """0-d: the smallest value that the last batch kept."""

    def preactivations(self, x_BD: torch.Tensor, step: Step) -> Pre:
        pre, smallest = largest_of_batch(self, x_BD, k_at(self, step), guess(self), step)
        remember(self, smallest, step)
        return pre

    def firing_level(self, x_BD: torch.Tensor, latents: torch.Tensor, step: Step) -> torch.Tensor:
        return self.threshold[0]

    def variant_state(self) -> dict[str, float]:
        """The next guess depends on it, and by the route that a wrong guess takes the last bits of
        a code may too."""
        return {} if self.smallest is None else {"smallest": float(self.smallest)}

    def restore_variant(self, state: dict[str, float]) -> None:
        if "smallest" in state:
            self.smallest = self.threshold.new_tensor(state["smallest"])

    def code_of(self, x_BD: torch.Tensor) -> torch.Tensor:
        """(B,F): in eval mode ReLU(pre) above the threshold; in training mode the largest of this
        batch, as in the loss."""
        if not self.training:
            return self.thresholded_code(x_BD)
        codes, _ = encode_batchtopk(x_BD, self.W_enc, self.b_enc, self.config.k, self.workspace)
        return codes.to_dense()


class BatchTopK(LargestOfBatch):
    """The same, with kernels for the whole step."""

    sparsity = "batchtopk"
    line = "the B k largest of a batch; a threshold afterwards"

    def loss_of(
        self, x_BD: torch.Tensor, target_BD: torch.Tensor, step: Step, batch: ActivationBatch
    ) -> LossTerms:
        if not self.is_autoencoder(x_BD, target_BD):
            return super().loss_of(x_BD, target_BD, step, batch)
        result, smallest = batchtopk_reconstruction(
            x_BD,
            *self.weights,
            k_at(self, step),
            guess(self),
            self.workspace,
            step.encoder_plan,
            step.backend,
        )
        remember(self, smallest, step)
        weighted = {
            "reconstruction": (result.total, 1.0),
            **aux_terms(self, x_BD, result.residual_BD, step),
        }
        return loss_terms(weighted, result.fired_F, encoder_metrics(result))

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
            guess(self),
        )
        remember(self, smallest, step)
        return fused_sparse_step(self, x_BD, encoded, 0.0, adam)


def guess(sae: LargestOfBatch) -> torch.Tensor:
    """0-d: probably below the smallest value that the next batch will keep. The average would be
    half of it in the first steps of a run."""
    last = sae.threshold[0] if sae.smallest is None else sae.smallest
    return GUESS * last.to(sae.threshold.device)


@torch.no_grad()
def remember(sae: LargestOfBatch, smallest: torch.Tensor, step: Step) -> None:
    """Update the average with this batch's smallest kept value; the first batch sets it. Nothing
    here waits for the device."""
    old, sae.smallest = sae.threshold, smallest
    span = min(max(SPAN_SHARE * step.total, 1.0), SPAN) if step.total else SPAN
    sae.threshold.copy_(
        torch.where(old > 0, old + (smallest - old) / span, smallest.expand_as(old))
    )
