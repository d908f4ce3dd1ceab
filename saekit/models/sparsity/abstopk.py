"""`abs-topk`: the k pre-activations of a row that are largest in magnitude, with their signs (Zhu
et al. 2025, arXiv 2510.00404).

One latent stands for a direction and its opposite. A latent is active where it is not 0.
"""

from __future__ import annotations

import torch
from saekit_kernels import SparseCodes, encode_abs_topk, preactivations, signed_topk

from saekit.models.sae import SAE
from saekit.models.sae.largest import largest
from saekit.models.sae.preactivations import Pre, SparsePre
from saekit.models.sparsity.topk import TopKConfig, k_at
from saekit.types import Step


class AbsTopK(SAE):
    sparsity = "abs-topk"
    config_class = TopKConfig
    line = "the k largest magnitudes of each row, signed"
    largest_of_rows = True

    def preactivations(self, x_BD: torch.Tensor, step: Step) -> Pre:
        codes = self._codes(x_BD, k_at(self, step), step.encoder_plan)
        return SparsePre(
            codes, preactivations(codes, x_BD, self.W_enc, self.b_enc, step.backend), step.backend
        )

    def firing_level(self, x_BD: torch.Tensor, latents: torch.Tensor, step: Step) -> torch.Tensor:
        return self._codes(x_BD, k_at(self, step)).vals.abs().amin(1, keepdim=True)

    def activate(self, pre: Pre) -> torch.Tensor:
        return pre.values

    def code_of(self, x_BD: torch.Tensor) -> torch.Tensor:
        if self.config.rescale_by_decoder_norm:
            return self.largest_rescaled(x_BD, signed_topk).to_dense()
        return self.with_gradient(self._codes(x_BD, self.config.k), x_BD).to_dense()

    def _codes(self, x_BD: torch.Tensor, k: int, plan: str = "auto") -> SparseCodes:
        if x_BD.device.type == "cpu":
            return encode_abs_topk(x_BD, self.W_enc, self.b_enc, k, self.workspace, plan)
        return largest(self, x_BD, k, signed_topk)
