"""`archetypal`: topk whose atoms lie in the convex hull of the data (Fel et al. 2025, arXiv
2502.12892).

W_dec = softmax(SPEED A) P + L with P (N,D) training rows, drawn once, A (F,N) trained and L (F,D)
trained within ||l_j|| <= relax. Atoms that are mixtures of rows cannot drift away from the data.
Decoder rows have any norm. A checkpoint holds the W_dec that is computed from P, A and L.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import nn

from saekit.models.base import random_unit_rows
from saekit.models.sae.config import DecoderNorm, Revival
from saekit.models.sparsity.topk import LargestOfRows, TopKConfig
from saekit.options import Doc

SHARPNESS = 6.0  # of the first mixtures: each atom starts near one row
SPEED = 30.0  # logits must move by units, weights by hundredths; Adam's steps are the same for both


@dataclass(frozen=True)
class ArchetypalConfig(TopKConfig):
    sparsity: str = "archetypal"
    decoder_norm: DecoderNorm = "free"
    revive: Revival = "aux"
    archetypes: Annotated[int, Doc("Rows that span the hull (N).")] = 1024
    relax: Annotated[
        float,
        Doc("How far an atom may leave the hull, in units of the normalized input; 0: not at all."),
    ] = 0.0


class Archetypal(LargestOfRows):
    points: torch.Tensor
    mixture: nn.Parameter
    leave: nn.Parameter | None

    sparsity = "archetypal"
    config_class = ArchetypalConfig
    line = "topk; atoms are mixtures of training rows"
    constrained_decoder = True

    def make_parameters(self) -> None:
        """Until `initialise_from`, random directions span the hull."""
        with torch.no_grad():
            self.span(random_unit_rows(self.config.archetypes, self.d_out, None) * self.d_out**0.5)
            if not self.transcodes:
                self.W_enc.copy_(self.W_dec)

    def start_from(self, sample_BD: torch.Tensor) -> None:
        # a transcoder's atoms are mixtures of rows of the target (`start_from_target`)
        if not self.transcodes:
            self.span(sample_BD)
            self.W_enc.copy_(self.W_dec)
            self.b_enc.copy_(-(self.W_enc @ self.b_dec))
            super().start_from(sample_BD)

    def start_from_target(self, target_BD: torch.Tensor, sample_BD: torch.Tensor) -> None:
        self.span((target_BD - self.b_dec) / self.unit)
        super().start_from(sample_BD)

    def span(self, rows_BD: torch.Tensor) -> None:
        """Compute W_dec from mixtures of these rows, scaled by 1/sqrt(D) to a norm of about 1,
        which does not change the directions of a hull around 0."""
        # P: N of the rows, which the seed of the run has shuffled
        generator = torch.Generator().manual_seed(0)
        count = min(self.config.archetypes, len(rows_BD))
        chosen = torch.randperm(len(rows_BD), generator=generator)[:count]
        self.register_buffer("points", (rows_BD[chosen] / self.d_out**0.5).clone())
        # A: each atom starts near one row; atoms beyond the first N start between two
        start = torch.arange(self.latents) % count
        if self.latents > count:
            between = torch.randint(count, (self.latents,), generator=generator)
        else:
            between = start
        A = torch.randn(self.latents, count, generator=generator) / 2  # no two atoms alike
        A[torch.arange(self.latents), start] += SHARPNESS
        A[torch.arange(self.latents), between] += SHARPNESS * (torch.arange(self.latents) >= count)
        self.mixture = nn.Parameter(A / SPEED)
        # L, and the W_dec that follows
        self.leave = nn.Parameter(torch.zeros_like(self.W_dec)) if self.config.relax else None
        self.W_dec.requires_grad_(False)  # it is computed, not trained
        self.W_dec.copy_(self.decoder())

    def decoder(self) -> torch.Tensor:
        if self.is_folded:
            return self.W_dec
        W = (SPEED * self.mixture).softmax(1) @ self.points
        return W if self.leave is None else W + self.leave

    def decoder_rows(self, latents: torch.Tensor) -> torch.Tensor:
        if self.is_folded:
            return self.W_dec[latents]
        W = (SPEED * self.mixture[latents]).softmax(1) @ self.points
        return W if self.leave is None else W + self.leave[latents]

    def reset_latents(self, latents: torch.Tensor) -> None:
        """Atoms are mixtures of rows: a resampled latent starts near the row that lies most in its
        direction."""
        if self.is_folded:
            return
        nearest = (
            self.W_dec[latents] @ self.points.T / self.points.norm(dim=1).clamp_min(1e-12)
        ).argmax(1)
        self.mixture[latents] = 0.0
        self.mixture[latents, nearest] = 2 * SHARPNESS / SPEED
        if self.leave is not None:
            self.leave[latents] = 0.0
        self.W_dec[latents] = self.decoder_rows(latents)

    def constrain(self) -> None:
        if self.is_folded:
            return
        with torch.no_grad():
            if self.leave is not None:
                self.leave.copy_(torch.renorm(self.leave, 2, 0, self.config.relax * self.unit))
            self.W_dec.copy_(self.decoder())
