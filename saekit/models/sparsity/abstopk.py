"""`abs-topk`: the k pre-activations of a row that are largest in magnitude, with their signs (Zhu et al. 2025, arXiv 2510.00404).

One latent then stands for a direction and its opposite. A latent is active where it is not 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from saekit_kernels import SparseCodes, preactivations, signed_topk

from saekit.models.sparsity.base import Variant
from saekit.models.sparsity.preactivations import Pre, SparsePre
from saekit.models.sparsity.topk import TopKConfig, k_at

if TYPE_CHECKING:
    from saekit.models.sae import SAE

CHUNK_ROWS = 1024  # the dense pre-activations of so many rows exist at a time


class AbsTopK(Variant):
    config = TopKConfig
    line = "the k largest magnitudes of each row, signed"

    def preactivations(self, sae: SAE, x_BD: torch.Tensor, step: int) -> Pre:
        codes = self._codes(sae, x_BD, k_at(sae, step))
        return SparsePre(codes, preactivations(codes, x_BD, sae.W_enc, sae.b_enc, sae.backend), sae.backend)

    def activate(self, sae: SAE, pre: Pre) -> torch.Tensor:
        return pre.values

    def encode(self, sae: SAE, x_BD: torch.Tensor) -> torch.Tensor:
        codes = self._codes(sae, x_BD, sae.config.k)
        if torch.is_grad_enabled():
            codes.vals = preactivations(codes, x_BD, sae.W_enc, sae.b_enc)
        return codes.to_dense()

    @torch.no_grad()
    def _codes(self, sae: SAE, x_BD: torch.Tensor, k: int) -> SparseCodes:
        parts = [signed_topk(torch.addmm(sae.b_enc, x, sae.W_enc.T), k) for x in x_BD.split(CHUNK_ROWS)]
        return SparseCodes(*(torch.cat([getattr(p, name) for p in parts]) for name in ("vals", "idx", "nnz")), sae.latents)
