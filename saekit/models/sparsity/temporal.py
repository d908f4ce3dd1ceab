"""`temporal`: topk with general latents that change slowly along a text (Bhalla et al. 2025, arXiv
2511.05541).

The first `slow_share` of the latents and all of them each reconstruct, as in matryoshka. InfoNCE
pulls the slow codes of a token and of the token before it together, against those of other tokens
of the batch, in both directions: the mean over pairs of -log softmax(s_ii / tau), with s the
cosines of slow codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Self

import torch
import torch.nn.functional as nnF

from saekit.errors import UsageError, opt
from saekit.models.sae.dead import aux_terms
from saekit.models.sae.losses import loss_terms, with_squared_error
from saekit.models.sparsity.nested import mean_error
from saekit.models.sparsity.topk import LargestOfRows, TopKConfig
from saekit.options import Doc
from saekit.types import ActivationBatch, LossTerms, Step


@dataclass(frozen=True)
class TemporalConfig(TopKConfig):
    sparsity: str = "temporal"
    slow_share: Annotated[float, Doc("Share of the latents that should change slowly.")] = 0.2
    contrast: Annotated[float, Doc("Weight of InfoNCE, in units of the input's variance.")] = 0.1
    temperature: Annotated[float, Doc("Temperature of InfoNCE.")] = 0.1
    contrast_rows: Annotated[int, Doc("Pairs per batch in InfoNCE.")] = 1024

    def resolved(self) -> Self:
        if not 0 < self.slow_share < 1 or self.temperature <= 0:
            raise UsageError(
                f"{opt('slow_share')} must be between 0 and 1, {opt('temperature')} above 0"
            )
        return super().resolved()


class Temporal(LargestOfRows):
    sparsity = "temporal"
    config_class = TemporalConfig
    line = "topk; general latents alike in adjacent tokens"
    needs_previous = True

    def loss_of(
        self, x_BD: torch.Tensor, target_BD: torch.Tensor, step: Step, batch: ActivationBatch
    ) -> LossTerms:
        pre = self.preactivations(x_BD, step)
        level_F = (torch.arange(self.latents, device=x_BD.device) >= self.slow()).long()
        x_hat, error = mean_error(self, pre, pre.values, level_F, 2, target_BD, self.skip(x_BD))
        weighted = {
            "reconstruction": (error, 1.0),
            **aux_terms(self, x_BD, (x_hat - target_BD).detach(), step),
        }
        assert batch.previous is not None and batch.has_previous is not None
        pairs = batch.has_previous.nonzero()[: self.config.contrast_rows, 0]
        if len(pairs) > 1:
            here, there = (self.slow_code(rows[pairs], step) for rows in (x_BD, batch.previous))
            weighted["contrast"] = (
                info_nce(here, there, self.config.temperature),
                self.config.contrast * self.d_out * self.unit**2,
            )
        return loss_terms(
            weighted,
            pre.fired(pre.values.detach()),
            with_squared_error(pre.metrics(), target_BD, x_hat),
        )

    def slow(self) -> int:
        """The number of latents, from the first, that should change slowly."""
        return max(round(self.config.slow_share * self.latents), 1)

    def slow_code(self, x_BD: torch.Tensor, step: Step) -> torch.Tensor:
        pre = self.preactivations(x_BD, step)
        return pre.dense(pre.values)[:, : self.slow()]


def info_nce(a_NF: torch.Tensor, b_NF: torch.Tensor, temperature: float) -> torch.Tensor:
    """Row i of a is paired with row i of b: the mean of the cross-entropies of choosing the partner
    among the rows of the other side, in both directions (van den Oord et al. 2018, arXiv
    1807.03748)."""
    cosines = (
        nnF.normalize(a_NF, dim=1, eps=1e-6) @ nnF.normalize(b_NF, dim=1, eps=1e-6).T / temperature
    )
    partner = torch.arange(len(cosines), device=cosines.device)
    return (nnF.cross_entropy(cosines, partner) + nnF.cross_entropy(cosines.T, partner)) / 2
