"""A dictionary that works at several sizes: the error is the mean over nested reconstructions.

`matryoshka` (over batchtopk), `matryoshka-topk`, `matryoshka-jumprelu`: the first 1/16, 1/8, 1/4,
1/2 of the latents and all of them must each reconstruct (Bussmann et al. 2025, arXiv 2503.17547),
so that general features come first and are neither split nor absorbed. `hierarchical`: the k/8,
k/4, k/2 and k largest values of each row must (Balagansky et al. 2025, arXiv 2505.24473), so that
one SAE serves every k up to its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Self

import torch

from saekit.errors import UsageError, opt
from saekit.models.sae import SAE
from saekit.models.sae.preactivations import Pre
from saekit.models.sparsity.batchtopk import BatchTopKConfig, LargestOfBatch
from saekit.models.sparsity.jumprelu import JumpReLU, JumpReLUConfig
from saekit.models.sparsity.topk import LargestOfRows, TopKConfig
from saekit.options import Doc

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


@dataclass(frozen=True)
class Nesting:
    groups: Annotated[
        tuple[float, ...],
        Doc("Nested parts of the dictionary, as shares of its latents, rising to 1."),
    ] = SHARES

    def resolved(self) -> Self:
        # of the config beside it, which is the next class
        config = super().resolved()  # pyright: ignore[reportAttributeAccessIssue]
        rising = all(a < b for a, b in zip((0.0, *self.groups), self.groups))
        if not rising or self.groups[-1] != 1.0 or self.groups[0] * config.n_latents < 1:
            raise UsageError(
                f"{opt('groups', self.groups)}: shares must rise to 1, and the first must contain a"
                " latent"
            )
        return config


@dataclass(frozen=True)
class MatryoshkaConfig(Nesting, BatchTopKConfig):
    sparsity: str = "matryoshka"


@dataclass(frozen=True)
class MatryoshkaTopKConfig(Nesting, TopKConfig):
    sparsity: str = "matryoshka-topk"


@dataclass(frozen=True)
class MatryoshkaJumpReLUConfig(Nesting, JumpReLUConfig):
    sparsity: str = "matryoshka-jumprelu"


def level_of_latents(sae: SAE) -> torch.Tensor:
    """(F,): the group that each latent belongs to."""
    ends = torch.tensor(
        [round(share * sae.latents) for share in sae.config.groups], device=sae.W_dec.device
    )
    return torch.bucketize(torch.arange(sae.latents, device=sae.W_dec.device), ends, right=True)


def mean_error(
    sae: SAE,
    pre: Pre,
    z: torch.Tensor,
    level: torch.Tensor,
    levels: int,
    target_BD: torch.Tensor,
    skip_BD: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(the last reconstruction, constant; the mean over all of them of mean_b sum_d (target -
    x_hat)^2)."""
    remaining = target_BD if skip_BD is None else target_BD - skip_BD
    x_hat, error = pre.nested_error(z, sae.W_dec, sae.b_dec, remaining, level, levels)
    return x_hat if skip_BD is None else x_hat + skip_BD.detach(), error


class _Nested(SAE):
    def reconstruct(
        self, pre: Pre, z: torch.Tensor, target_BD: torch.Tensor, skip_BD: torch.Tensor | None
    ):
        level_F, levels = level_of_latents(self), len(self.config.groups)
        return mean_error(self, pre, z, level_F, levels, target_BD, skip_BD)


class Matryoshka(_Nested, LargestOfBatch):
    sparsity = "matryoshka"
    config_class = MatryoshkaConfig
    line = "batchtopk; nested parts of the dictionary reconstruct too"


class MatryoshkaTopK(_Nested, LargestOfRows):
    sparsity = "matryoshka-topk"
    config_class = MatryoshkaTopKConfig
    line = "topk; nested parts of the dictionary reconstruct too"


class MatryoshkaJumpReLU(_Nested, JumpReLU):
    sparsity = "matryoshka-jumprelu"
    config_class = MatryoshkaJumpReLUConfig
    line = "jumprelu; nested parts of the dictionary reconstruct too"


PARTS_OF_K = (8, 4, 2, 1)


class Hierarchical(LargestOfRows):
    sparsity = "hierarchical"
    line = "topk; the k/8, k/4 and k/2 largest reconstruct too"

    def reconstruct(
        self, pre: Pre, z: torch.Tensor, target_BD: torch.Tensor, skip_BD: torch.Tensor | None
    ):
        k = z.shape[1]
        ends = torch.tensor(sorted({max(k // part, 1) for part in PARTS_OF_K}), device=z.device)
        rank = z.detach().argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        level = torch.bucketize(rank, ends, right=True)
        return mean_error(self, pre, z, level, len(ends), target_BD, skip_BD)
