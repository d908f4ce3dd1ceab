"""Every variant by dense autograd: all pre-activations, a mask, full products. Sparse training is
measured against it.

A dense variant has the penalties, the start, the auxiliary loss and the options of the variant, so
that two runs differ only in how a step is computed. What it costs is what plain torch costs, with
each full product done once: nested reconstructions are sums over slices of the dictionary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from saekit.models.codes import firing_counts
from saekit.models.sae import SAE
from saekit.models.sae.dead import aux_terms
from saekit.models.sae.losses import loss_terms, with_squared_error
from saekit.models.sae.preactivations import DensePre, Pre
from saekit.models.sparsity import VARIANTS
from saekit.models.sparsity.abstopk import AbsTopK
from saekit.models.sparsity.batchtopk import LargestOfBatch, remember
from saekit.models.sparsity.nested import PARTS_OF_K, Hierarchical
from saekit.models.sparsity.pursuit import MatchingPursuit
from saekit.models.sparsity.temporal import Temporal
from saekit.models.sparsity.topk import k_at
from saekit.types import ActivationBatch, LossTerms, Step


class _Dense(SAE):
    """Thresholded codes and sigmoids: every pre-activation goes through the variant's formula."""

    def preactivations(self, x_BD: torch.Tensor, step: Step) -> Pre:
        return DensePre(torch.addmm(self.b_enc, x_BD, self.W_enc.T))

    def loss_of(
        self, x_BD: torch.Tensor, target_BD: torch.Tensor, step: Step, batch: ActivationBatch
    ) -> LossTerms:
        pre = self.preactivations(x_BD, step)
        z = self.activate(pre)
        x_hat, error = self.reconstruct(pre, z, target_BD, self.skip(x_BD))
        weighted = {"reconstruction": (error, 1.0), **self.penalties(pre, z, step)}
        weighted |= aux_terms(self, x_BD, (x_hat - target_BD).detach(), step)
        assert self.active_above is not None
        fired = firing_counts(z.detach(), self.active_above)
        return loss_terms(weighted, fired, with_squared_error({}, target_BD, x_hat))


class _DenseTopK(_Dense):
    """The k largest of each row. What is active is chosen with the pre-activations."""

    def preactivations(self, x_BD: torch.Tensor, step: Step) -> Pre:
        pre = torch.addmm(self.b_enc, x_BD, self.W_enc.T)
        return DensePre(self.chosen(pre, step))

    def activate(self, pre: Pre) -> torch.Tensor:
        return pre.values

    def chosen(self, pre_BF: torch.Tensor, step: Step) -> torch.Tensor:
        """The code (B,F)."""
        return largest_of_rows(pre_BF, k_at(self, step))


class _DenseAbsTopK(_DenseTopK):
    def chosen(self, pre_BF: torch.Tensor, step: Step) -> torch.Tensor:
        idx = pre_BF.detach().abs().topk(k_at(self, step), dim=1, sorted=False).indices
        return torch.zeros_like(pre_BF).scatter(1, idx, pre_BF.gather(1, idx))


class _DenseBatchTopK(_DenseTopK):
    def chosen(self, pre_BF: torch.Tensor, step: Step) -> torch.Tensor:
        z, smallest = largest_of_batch(pre_BF, k_at(self, step))
        assert isinstance(self, LargestOfBatch)
        remember(self, smallest, step)
        return z


class _DenseHierarchical(_DenseTopK):
    k: int

    def chosen(self, pre_BF: torch.Tensor, step: Step) -> torch.Tensor:
        self.k = k_at(self, step)
        return super().chosen(pre_BF, step)

    def reconstruct(
        self, pre: Pre, z: torch.Tensor, target_BD: torch.Tensor, skip_BD: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        parts = sorted({max(self.k // part, 1) for part in PARTS_OF_K})
        codes = [z if part == self.k else largest_of_rows(z, part) for part in parts]
        x_hat_BGD = torch.stack([code @ self.W_dec + self.b_dec for code in codes], 1)
        x_hat_BGD = x_hat_BGD if skip_BD is None else x_hat_BGD + skip_BD[:, None]
        return nested_error(x_hat_BGD, target_BD)


class _DenseTemporal(_DenseTopK):
    def loss_of(
        self, x_BD: torch.Tensor, target_BD: torch.Tensor, step: Step, batch: ActivationBatch
    ) -> LossTerms:
        assert isinstance(self, Temporal)
        return Temporal.loss_of(self, x_BD, target_BD, step, batch)


class _DensePursuit(MatchingPursuit):
    """Every pass multiplies the residual with all atoms."""

    def pursue(self, x_BD: torch.Tensor, k: int, encoder_plan: str = "auto") -> torch.Tensor:
        r, chosen, W = (x_BD - self.b_dec).detach(), [], self.W_dec.detach()
        least_B = self.config.residual_threshold * r.norm(dim=1, keepdim=True)
        for _ in range(k):
            best, atom = (r @ W.T).max(1, keepdim=True)
            value = torch.where(best <= least_B, 0.0, best)
            r = r - value * W[atom[:, 0]]
            chosen.append(torch.where(value == 0, self.latents, atom))
        return torch.cat(chosen, 1)


STEPS: tuple[tuple[type[SAE], type[SAE]], ...] = (
    (MatchingPursuit, _DensePursuit),
    (Temporal, _DenseTemporal),
    (Hierarchical, _DenseHierarchical),
    (AbsTopK, _DenseAbsTopK),
    (LargestOfBatch, _DenseBatchTopK),
)
"""(variant, how its subclasses are computed densely), the first that fits."""


def dense_variant(variant: type[SAE]) -> type[SAE]:
    """The same variant with a dense loss."""
    other = _DenseTopK if hasattr(variant.config_class, "k") else _Dense
    steps = next((steps for kind, steps in STEPS if issubclass(variant, kind)), other)
    return type(f"Dense{variant.__name__}", (steps, variant), {"fused": SAE.fused})


def dense_copy(model: SAE) -> SAE:
    """A copy of a model with a dense loss."""
    twin = copy.deepcopy(model)
    twin.__class__ = dense_variant(type(model))
    return twin


def nested_error(
    x_hat_BGD: torch.Tensor, target_BD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(the last reconstruction, constant; the mean over all of mean_b sum_d (target - x_hat)^2)."""
    error = (x_hat_BGD - target_BD[:, None]).square().sum(2).mean()
    return x_hat_BGD[:, -1].detach(), error


def largest_of_rows(pre_BF: torch.Tensor, k: int) -> torch.Tensor:
    """z (B,F): ReLU of the k largest of each row, 0 elsewhere."""
    values, idx = pre_BF.topk(k, dim=1, sorted=False)
    return torch.zeros_like(pre_BF).scatter(1, idx, values.relu())


def largest_of_batch(pre_BF: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(z (B,F): ReLU of the B k largest of the batch, 0 elsewhere; the smallest of its values, 0
    if there is none)."""
    values, idx = pre_BF.flatten().topk(k * len(pre_BF), sorted=False)
    z = torch.zeros_like(pre_BF).flatten().scatter(0, idx, values.relu()).view_as(pre_BF)
    values = values.detach()
    return z, torch.where(values > 0, values, torch.inf).min().nan_to_num(posinf=0.0)


@contextmanager
def dense(name: str) -> Iterator[None]:
    """SAEs of this sparsity that are built inside train with the dense step."""
    original = VARIANTS[name]
    VARIANTS[name] = dense_variant(original)
    try:
        yield
    finally:
        VARIANTS[name] = original
