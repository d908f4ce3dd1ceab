"""The topk family by dense autograd: all pre-activations, a mask, full products. Sparse training is
measured against it.

Within `dense(name)` a variant has such a loss; start, optimizer, auxiliary loss and rows stay as
they are, so that two runs differ only in how a step is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from saekit.models.sae import SAE
from saekit.models.sae.dead import aux_terms
from saekit.models.sae.losses import loss_terms
from saekit.models.sparsity import VARIANTS
from saekit.models.sparsity.batchtopk import remember
from saekit.models.sparsity.nested import PARTS_OF_K
from saekit.models.sparsity.topk import k_at
from saekit.types import ActivationBatch, LossTerms, Step

DENSE = ("topk", "batchtopk", "matryoshka", "matryoshka-topk", "hierarchical", "abs-topk")
IN_BATCH = ("batchtopk", "matryoshka")


def dense_variant(variant: type[SAE]) -> type[SAE]:
    """The same variant with a dense loss."""

    class Dense(variant):
        def loss_of(
            self, x_BD: torch.Tensor, target_BD: torch.Tensor, step: Step, batch: ActivationBatch
        ) -> LossTerms:
            k = k_at(self, step)
            z = dense_code(self.sparsity, x_BD @ self.W_enc.T + self.b_enc, k)
            if self.sparsity in IN_BATCH:
                remember(self, z.detach()[z.detach() > 0].min())
            parts = [
                part @ self.W_dec + self.b_dec for part in nested_codes(self.sparsity, z, k, self)
            ]
            error = torch.stack(
                [(x_hat - target_BD).square().sum(1).mean() for x_hat in parts]
            ).mean()
            weighted = {
                "reconstruction": (error, 1.0),
                **aux_terms(self, x_BD, (parts[-1] - target_BD).detach(), step),
            }
            return loss_terms(weighted, z.detach().count_nonzero(0), {})

    return Dense


def dense_code(name: str, pre_BF: torch.Tensor, k: int) -> torch.Tensor:
    """z (B,F): the k largest of each row, or the B k largest of the batch; signed for abs-topk,
    after a ReLU otherwise."""
    size = pre_BF.detach().abs() if name == "abs-topk" else pre_BF.detach()
    if name in IN_BATCH:
        least = size.flatten().topk(k * len(size), sorted=False).values.min()
        return torch.where(size >= least, pre_BF, 0.0).relu()
    idx = size.topk(k, dim=1, sorted=False).indices
    z = torch.zeros_like(pre_BF).scatter(1, idx, pre_BF.gather(1, idx))
    return z if name == "abs-topk" else z.relu()


def nested_codes(name: str, z_BF: torch.Tensor, k: int, sae: SAE) -> list[torch.Tensor]:
    """All codes that have to reconstruct the row, the whole code last."""
    if name.startswith("matryoshka"):
        first = torch.arange(sae.latents, device=z_BF.device)
        return [
            torch.where(first < round(share * sae.latents), z_BF, 0.0)
            for share in sae.config.groups
        ]
    if name == "hierarchical":
        return [
            dense_code("topk", z_BF, first)
            for first in sorted({max(k // part, 1) for part in PARTS_OF_K})
        ]
    return [z_BF]


@contextmanager
def dense(name: str) -> Iterator[None]:
    """SAEs of this sparsity that are built inside train with the dense step."""
    original = VARIANTS[name]
    VARIANTS[name] = dense_variant(original)
    try:
        yield
    finally:
        VARIANTS[name] = original
