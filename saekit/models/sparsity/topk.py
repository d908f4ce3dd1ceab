"""`topk`: a fixed number of active latents in every row (Makhzani and Frey 2013, arXiv 1312.5663;
Gao et al. 2024, arXiv 2406.04093).

z = the k largest ReLU(pre) of a row. Dead latents predict the residual (dead.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Self

import torch
from saekit_kernels import SparseCodes, encode_topk, topk_reconstruction
from saekit_kernels.operations import OPERATIONS

from saekit.errors import UsageError, opt
from saekit.models.sae import SAE, SAEConfig
from saekit.models.sae.dead import aux_terms, has_aux_term
from saekit.models.sae.fused import Adam, fused_sparse_step
from saekit.models.sae.largest import any_sign_topk, largest, positive_topk
from saekit.models.sae.losses import loss_terms
from saekit.models.sae.preactivations import Pre, encoder_metrics, largest_of_rows
from saekit.options import Doc
from saekit.types import ActivationBatch, LossTerms, Step

START_SHARE = 1 / 64  # of the latents: the default k_start is at most this


@dataclass(frozen=True)
class TopKConfig(SAEConfig):
    k: Annotated[int, Doc("Active latents per row (batchtopk: on average).")] = 32
    k_start: Annotated[
        int | None,
        Doc(
            "k at the first step; it then falls linearly to k (default: k; batchtopk and"
            " matryoshka 4 k, where that is a small share of the latents)."
        ),
    ] = None
    k_anneal: Annotated[float, Doc("Share of the steps over which k falls from its start.")] = 0.1
    keep_negative: bool = False
    """Negative values among the k largest of a row stay in the code. Only for weights that are
    loaded, and for topk itself."""

    starts = 1  # times k

    def resolved(self) -> Self:
        config = super().resolved()
        if self.keep_negative and self.sparsity != "topk":
            raise UsageError(f"keep_negative does not apply to {self.sparsity}")
        most = max(round(START_SHARE * config.n_latents), self.k)
        k_start = self.k_start or min(self.starts * self.k, most)
        for name, k in (("k", self.k), ("k_start", k_start)):
            if not 1 <= k <= config.n_latents:
                raise UsageError(
                    f"{opt(name, k)} must be between 1 and the number of latents,"
                    f" {config.n_latents:,}",
                    opt(name, min(32, config.n_latents)),
                )
        return replace(config, k_start=k_start)


def k_at(sae: SAE, step: Step) -> int:
    """k of a training step."""
    c = sae.config
    remaining = 1.0 - step.number / max(c.k_anneal * step.total, 1.0)
    return c.k + round((c.k_start - c.k) * remaining) if remaining > 0 else c.k


class LargestOfRows(SAE):
    """The code of topk, with the ordinary step."""

    config_class = TopKConfig
    largest_of_rows = True

    def preactivations(self, x_BD: torch.Tensor, step: Step) -> Pre:
        return largest_of_rows(self, x_BD, k_at(self, step), step)

    def firing_level(self, x_BD: torch.Tensor, latents: torch.Tensor, step: Step) -> torch.Tensor:
        codes = largest_of_rows(self, x_BD, k_at(self, step), step).codes
        return codes.vals.amin(1, keepdim=True)

    def code_of(self, x_BD: torch.Tensor) -> SparseCodes:
        select = any_sign_topk if self.config.keep_negative else positive_topk
        if self.config.rescale_by_decoder_norm:
            return self.largest_rescaled(x_BD, select)
        if self.config.keep_negative:
            return self.with_gradient(largest(self, x_BD, self.config.k, select), x_BD)
        codes = encode_topk(x_BD, self.W_enc, self.b_enc, self.config.k, self.workspace)
        return self.with_gradient(codes, x_BD)


class TopK(LargestOfRows):
    """The same, with kernels for the whole step."""

    sparsity = "topk"
    line = "the k largest pre-activations of each row"

    def loss_of(
        self, x_BD: torch.Tensor, target_BD: torch.Tensor, step: Step, batch: ActivationBatch
    ) -> LossTerms:
        if not self.is_autoencoder(x_BD, target_BD):
            return super().loss_of(x_BD, target_BD, step, batch)
        path = "sparse" if step.backend == "triton" else "auto"
        result = topk_reconstruction(
            x_BD,
            *self.weights,
            k_at(self, step),
            self.workspace,
            path,
            step.encoder_plan,
            step.backend,
        )
        weighted = {
            "reconstruction": (result.total, 1.0),
            **aux_terms(self, x_BD, result.residual_BD, step),
        }
        return loss_terms(weighted, result.fired_F, encoder_metrics(result))

    def fused(self, x_BD: torch.Tensor, step: Step, adam: Adam) -> LossTerms | None:
        if has_aux_term(self, step):
            return None
        encoded = OPERATIONS["triton"].encode_topk(
            x_BD, encoder_copy(self), self.b_enc, k_at(self, step), self.workspace, "auto"
        )
        return fused_sparse_step(self, x_BD, encoded, 0.0, adam)


def encoder_copy(sae: SAE) -> torch.Tensor:
    """W_enc in bf16 if the Triton path has such a copy, else W_enc."""
    W_low = sae.shadows.of("W_enc", sae.W_enc)
    return sae.W_enc if W_low is None else W_low
