"""`matching-pursuit`: latents are chosen one at a time, each for the residual of the previous ones
(Costa et al. 2025, arXiv 2506.03093; Mallat and Zhang 1993).

r_0 = x - b_dec; k times: j = argmax <r, w_j>, z_j += <r, w_j>, r -= <r, w_j> w_j. Atoms have norm 1
and are used to encode and to decode (W_enc is W_dec). A row stops when no product is above
`residual_threshold` ||r_0||. Each pass costs as much as an encoder, and uses its exact filter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Self

import torch
import torch.nn.functional as nnF
from saekit_kernels import encode_topk

from saekit.errors import UsageError, opt
from saekit.models.sae import SAE
from saekit.models.sae.config import Revival
from saekit.models.sae.dead import aux_terms
from saekit.models.sae.losses import loss_terms, squared_error
from saekit.models.sparsity.topk import TopKConfig, k_at
from saekit.options import Doc
from saekit.types import ActivationBatch, LossTerms, Step


@dataclass(frozen=True)
class PursuitConfig(TopKConfig):
    sparsity: str = "matching-pursuit"
    revive: Revival = "aux"  # there is no encoder to nudge
    k: Annotated[int, Doc("Atoms per row, at most; each costs a pass of the encoder.")] = 16
    residual_threshold: Annotated[
        float,
        Doc(
            "Largest product, relative to the norm of x - b_dec, below which a row's pursuit ends."
        ),
    ] = 1e-2

    def resolved(self) -> Self:
        if self.d_out or self.skip:
            raise UsageError(
                f"{opt('sparsity', 'matching-pursuit')} reconstructs its own input",
                f"drop {opt('target_store')} and {opt('skip')}",
            )
        return super().resolved()


class MatchingPursuit(SAE):
    sparsity = "matching-pursuit"
    constrained_decoder = True
    config_class = PursuitConfig
    line = "atoms chosen one by one for the residual"

    def pursue(self, x_BD: torch.Tensor, k: int, encoder_plan: str = "auto") -> torch.Tensor:
        """(B,k) int64: the atoms, in the order in which they are chosen; F after a row has
        stopped."""
        r, chosen, zero_F = (x_BD - self.b_dec).detach(), [], torch.zeros_like(self.b_enc)
        W, length_B = self.W_dec.detach(), r.norm(dim=1, keepdim=True)
        # A row whose norm overflows or is not finite does not stop: its values are then not finite
        # either, rather than an empty code.
        least_B = torch.where(
            length_B.isfinite(), self.config.residual_threshold * length_B, torch.nan
        )
        with torch.no_grad():
            for _ in range(k):
                best = encode_topk(r, W, zero_F, 1, self.workspace, encoder_plan)
                value = torch.where(best.vals <= least_B, 0.0, best.vals)
                r = r - value * W[best.idx[:, 0].long()]
                chosen.append(torch.where(value == 0, self.latents, best.idx.long()))
        return torch.cat(chosen, 1)

    def unroll(
        self, x_BD: torch.Tensor, chosen_Bk: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(values (B,k), residual (B,D)) of the pursuit along given atoms, differentiable in W_dec
        and b_dec."""
        r, values = x_BD - self.b_dec, []
        atoms = (
            nnF.embedding(chosen_Bk.clamp_max(self.latents - 1), self.W_dec)
            * (chosen_Bk < self.latents)[..., None]
        )
        for atom in atoms.unbind(1):
            value = (r * atom).sum(1, keepdim=True)
            r = r - value * atom
            values.append(value)
        return torch.cat(values, 1), r

    def loss_of(
        self, x_BD: torch.Tensor, target_BD: torch.Tensor, step: Step, batch: ActivationBatch
    ) -> LossTerms:
        chosen = self.pursue(x_BD, k_at(self, step), step.encoder_plan)
        _, residual = self.unroll(x_BD, chosen)
        x_hat = x_BD - residual
        weighted = {
            "reconstruction": (squared_error(target_BD, x_hat), 1.0),
            **aux_terms(self, x_BD, (x_hat - target_BD).detach(), step),
        }
        # An atom that a row chooses twice counts once.
        first = chosen.sort(1).values
        first = torch.cat(
            [first[:, :1], torch.where(first[:, 1:] == first[:, :-1], self.latents, first[:, 1:])],
            1,
        )
        return loss_terms(
            weighted,
            torch.bincount(first.flatten(), minlength=self.latents + 1)[: self.latents],
            {},
        )

    def code_of(self, x_BD: torch.Tensor) -> torch.Tensor:
        chosen = self.pursue(x_BD, self.config.k)
        values, _ = self.unroll(x_BD, chosen)
        return values.new_zeros(len(x_BD), self.latents + 1).scatter_add(1, chosen, values)[
            :, : self.latents
        ]

    def start_from(self, sample_BD: torch.Tensor) -> None:
        self.constrain()

    def constrain(self) -> None:
        with torch.no_grad():  # tied; the auxiliary loss reads them
            torch.nn.functional.normalize(self.W_dec, dim=1, out=self.W_dec.data)
            self.W_enc.copy_(self.W_dec)
            self.b_enc.copy_(-(self.W_dec @ self.b_dec))
