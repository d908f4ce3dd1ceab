"""The k largest pre-activations of each row, chosen from all of them: for codes that the encoder
kernels, which select by ReLU(pre), do not compute."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from saekit_kernels import SparseCodes
from saekit_kernels.codes import from_selected

if TYPE_CHECKING:
    from saekit.models.sae.dictionary import Dictionary

CHUNK_ROWS = 1024  # dense pre-activations exist for this many rows at a time

Select = Callable[[torch.Tensor, int], SparseCodes]
"""(pre (B,F), k) -> the codes."""


def positive_topk(pre_BF: torch.Tensor, k: int) -> SparseCodes:
    """The k largest values of each row that are positive."""
    return from_selected(*pre_BF.topk(k, dim=1), pre_BF.shape[1])


def any_sign_topk(pre_BF: torch.Tensor, k: int) -> SparseCodes:
    """The k largest values of each row, also those that are negative."""
    return from_selected(*pre_BF.topk(k, dim=1), pre_BF.shape[1], keep_negative=True)


@torch.no_grad()
def largest(
    sae: Dictionary, x_BD: torch.Tensor, k: int, select: Select, norms_F: torch.Tensor | None = None
) -> SparseCodes:
    """Codes with the pre-activations of the latents that `select` chooses; with `norms`, it chooses
    by pre * norms."""
    chunks = []
    for x in x_BD.split(CHUNK_ROWS):
        pre = torch.addmm(sae.b_enc, x, sae.W_enc.T)
        chunk = select(pre if norms_F is None else pre * norms_F, k)
        if norms_F is not None:
            values = chunk.without_padding(pre.gather(1, chunk.idx.long()))
            chunk = dataclasses.replace(chunk, vals=values)
        chunks.append(chunk)
    return SparseCodes(
        torch.cat([chunk.vals for chunk in chunks]),
        torch.cat([chunk.idx for chunk in chunks]),
        torch.cat([chunk.nnz for chunk in chunks]),
        sae.latents,
    )
