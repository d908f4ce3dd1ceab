"""`topk`: a fixed number of active latents in every row (Makhzani and Frey 2013, arXiv 1312.5663; Gao et al. 2024, arXiv 2406.04093).

z = the k largest ReLU(pre) of a row. Dead latents predict the residual (dead.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from saekit_kernels import SparseCodes, encode_topk, topk_reconstruction
from saekit_kernels.operations import OPERATIONS

from saekit.errors import UsageError, opt
from saekit.models.fused import Adam, fused_sparse_step
from saekit.models.sparsity.base import SAEConfig, Variant, summed
from saekit.models.sparsity.dead import aux_terms, revives_by_aux
from saekit.models.sparsity.preactivations import Pre, encoder_metrics, largest_of_rows
from saekit.types import ActivationBatch, LossTerms

if TYPE_CHECKING:
    from saekit.models.sae import SAE


START_SHARE = 1 / 64  # of the latents: a k that begins higher by itself begins at most here


@dataclass(frozen=True)
class TopKConfig(SAEConfig):
    k: int = 32
    """Active latents a row (batchtopk: on average)."""
    k_start: int = 0
    """k at the first step, from where it falls linearly to k; 0: k itself, for batchtopk and matryoshka 4 k where that is a small share of
    the latents."""
    k_anneal: float = 0.1
    """Share of the run over which it falls."""

    starts = 1  # times k

    def resolved(self) -> SAEConfig:
        config = super().resolved()
        config = replace(config, k_start=self.k_start or min(self.starts * self.k, max(round(START_SHARE * config.latents), self.k)))
        for name, k in (("k", self.k), ("k_start", config.k_start)):
            if not 1 <= k <= config.latents:
                raise UsageError(f"{opt(name, k)} must be between 1 and the number of latents, {config.latents:,}")
        return config


def k_at(sae: SAE, step: int) -> int:
    """k of a training step."""
    c = sae.config
    left = 1.0 - step / max(c.k_anneal * sae.total_steps, 1.0)
    return c.k + round((c.k_start - c.k) * left) if left > 0 else c.k


class TopK(Variant):
    config = TopKConfig
    line = "the k largest pre-activations of each row"

    def preactivations(self, sae: SAE, x_BD: torch.Tensor, step: int) -> Pre:
        return largest_of_rows(sae, x_BD, k_at(sae, step))

    def encode(self, sae: SAE, x_BD: torch.Tensor) -> SparseCodes:
        return encode_topk(x_BD, sae.W_enc, sae.b_enc, sae.config.k, sae.workspace)

    def loss(self, sae: SAE, x_BD: torch.Tensor, target_BD: torch.Tensor, step: int, batch: ActivationBatch) -> LossTerms:
        if not sae.plain(x_BD, target_BD):
            return super().loss(sae, x_BD, target_BD, step, batch)
        arm = "sparse" if sae.backend == "triton" else "auto"
        made = topk_reconstruction(x_BD, *sae.weights, k_at(sae, step), sae.workspace, arm, sae.encoder_plan, sae.backend)
        weighted = {"reconstruction": (made.total, 1.0), **aux_terms(sae, x_BD, made.residual_BD)}
        return summed(weighted, made.fired_F, encoder_metrics(made))

    def fused_step(self, sae: SAE, x_BD: torch.Tensor, step: int, adam: Adam) -> LossTerms | None:
        if revives_by_aux(sae) and sae.longest_dead(1) is not None:
            return None
        encoded = OPERATIONS["triton"].encode_topk(x_BD, encoder_copy(sae), sae.b_enc, k_at(sae, step), sae.workspace, "auto")
        return fused_sparse_step(sae, x_BD, encoded, 0.0, adam)


def encoder_copy(sae: SAE) -> torch.Tensor:
    """W_enc in bf16 where the Triton path keeps such a copy, else W_enc."""
    W_low = sae.shadows.of("W_enc", sae.W_enc)
    return sae.W_enc if W_low is None else W_low
