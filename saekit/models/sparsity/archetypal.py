"""`archetypal`: topk whose atoms lie in the convex hull of the data (Fel et al. 2025, arXiv 2502.12892).

W_dec = softmax(SPEED A) P + L with P (N,D) training rows, drawn once, A (F,N) trained and L (F,D) trained within ||l_j|| <= relax. Atoms
that are mixtures of rows cannot drift to where there is no data. Decoder rows are free in their norm; the parts are saved as the W_dec that
they make.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from saekit.models.sparsity.base import Variant, squared_error
from saekit.models.sparsity.preactivations import Pre
from saekit.models.sparsity.topk import TopK, TopKConfig

if TYPE_CHECKING:
    from saekit.models.sae import SAE

SHARPNESS = 6.0  # of the first mixtures: each atom starts near one row
SPEED = 30.0  # logits move by units, weights by hundredths; Adam gives both the same steps


@dataclass(frozen=True)
class ArchetypalConfig(TopKConfig):
    decoder_norm: str = "free"
    archetypes: int = 1024
    """N: rows that span the hull."""
    relax: float = 0.0
    """How far an atom may leave the hull, in units of the normalised input; 0: not at all."""


class Archetypal(TopK):
    config = ArchetypalConfig
    line = "topk; atoms are mixtures of training rows"

    def initialise(self, sae: SAE, sample_BD: torch.Tensor) -> None:
        if not sae.transcodes:  # else the atoms are mixtures of rows of the target, which `start_at` brings
            self.span(sae, sample_BD)
            sae.W_enc.copy_(sae.W_dec)
            sae.b_enc.copy_(-(sae.W_enc @ sae.b_dec))
            super().initialise(sae, sample_BD)

    def start_at(self, sae: SAE, target_BD: torch.Tensor, sample_BD: torch.Tensor) -> None:
        self.span(sae, (target_BD - sae.b_dec) / sae.unit)
        super().initialise(sae, sample_BD)

    def span(self, sae: SAE, rows_BD: torch.Tensor) -> None:
        """Make W_dec of these rows. They are scaled by 1/sqrt(D), to a norm of about 1, which is all the same to a hull around 0."""
        rows, generator = rows_BD, torch.Generator().manual_seed(0)  # of the run's sample, which its seed shuffles
        count = min(sae.config.archetypes, len(rows))
        points = rows[torch.randperm(len(rows), generator=generator)[:count]] / sae.d_out**0.5
        sae.register_buffer("points", points.clone())
        start = torch.arange(sae.latents) % count
        if sae.latents > count:  # atoms beyond the first N begin between two rows
            between = torch.randint(count, (sae.latents,), generator=generator)
        else:
            between = start
        A = torch.randn(sae.latents, count, generator=generator) / 2  # no two atoms alike
        A[torch.arange(sae.latents), start] += SHARPNESS
        A[torch.arange(sae.latents), between] += SHARPNESS * (torch.arange(sae.latents) >= count)
        sae.mixture = nn.Parameter(A / SPEED)
        sae.leave = nn.Parameter(torch.zeros_like(sae.W_dec)) if sae.config.relax else None
        sae.W_dec.requires_grad_(False)  # it is made, not trained
        sae.W_dec.copy_(self.decoder(sae))

    def decoder(self, sae: SAE) -> torch.Tensor:
        """W_dec (F,D) from its parts, differentiable."""
        W = (SPEED * sae.mixture).softmax(1) @ sae.points
        return W if sae.leave is None else W + sae.leave

    def reconstruct(self, sae: SAE, pre: Pre, z: torch.Tensor, target_BD: torch.Tensor, past_BD: torch.Tensor | None):
        x_hat = pre.decode(z, self.decoder(sae), sae.b_dec)
        x_hat = x_hat if past_BD is None else x_hat + past_BD
        return x_hat, squared_error(target_BD, x_hat)

    def decoder_rows(self, sae: SAE, latents: torch.Tensor) -> torch.Tensor:
        W = (SPEED * sae.mixture[latents]).softmax(1) @ sae.points
        return W if sae.leave is None else W + sae.leave[latents]

    def revive(self, sae: SAE, dead: torch.Tensor) -> None:
        """Atoms are made of rows: a latent that was pointed somewhere begins near the row that lies most in that direction."""
        if not hasattr(sae, "mixture"):
            return
        nearest = (sae.W_dec[dead] @ sae.points.T / sae.points.norm(dim=1).clamp_min(1e-12)).argmax(1)
        sae.mixture[dead] = 0.0
        sae.mixture[dead, nearest] = 2 * SHARPNESS / SPEED
        if sae.leave is not None:
            sae.leave[dead] = 0.0
        sae.W_dec[dead] = self.decoder_rows(sae, dead)

    loss = Variant.loss
    fused_step = Variant.fused_step

    def after_step(self, sae: SAE) -> None:
        with torch.no_grad():
            if sae.leave is not None:
                sae.leave.copy_(torch.renorm(sae.leave, 2, 0, sae.config.relax * sae.unit))
            sae.W_dec.copy_(self.decoder(sae))
