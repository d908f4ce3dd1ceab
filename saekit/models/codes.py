"""Codes as every model's `encode` returns them: a tensor (..., F), or SparseCodes, which store the
few active latents of each row.

Both have `shape` (..., F), `to_dense()`, `detach()`, `view()`, indexing by rows and latents, and
`is_sparse`. Where the two forms need different code, it is in this file, so that no caller has to
ask which one it has. B is the number of rows, the product of the dimensions before F.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from saekit_kernels import RaggedCodes, SparseCodes, decode

from saekit.models.base import as_rows

Code = torch.Tensor | SparseCodes


def decoded(code: Code, W_dec_FD: torch.Tensor, b_dec_D: torch.Tensor) -> torch.Tensor:
    """code W_dec + b_dec, (..., D), differentiable in all three. Raises DataError for a dense code
    of another width, dtype or device."""
    if isinstance(code, SparseCodes):
        x_hat_BD = decode(code, W_dec_FD, b_dec_D)
    else:
        rows_BF = as_rows(code, len(W_dec_FD), W_dec_FD, "the code")
        x_hat_BD = torch.addmm(b_dec_D, rows_BF, W_dec_FD)
    return x_hat_BD.view(*code.shape[:-1], W_dec_FD.shape[1])


def rescaled(code: Code, factor_F: torch.Tensor) -> Code:
    """The code with each latent's values times its factor, differentiable in both. Raises DataError
    as `decoded`."""
    if isinstance(code, SparseCodes):
        return dataclasses.replace(code, vals=code.vals * factor_F[code.idx.long()])
    rows_BF = as_rows(code, len(factor_F), factor_F, "the code")
    return (rows_BF * factor_F).view(code.shape)


def row_count(code: Code) -> int:
    """B."""
    return math.prod(code.shape[:-1])


def fires(values: torch.Tensor, above: float) -> torch.Tensor:
    """Bool, in the shape of `values`: which entries of a code are active. By magnitude, since the
    sign of a signed code (abs-topk, a linear code) says which way a latent points, not whether it
    is active. The one definition for metrics, index, query and pictures."""
    return values.abs() > above


def firing_counts(code: Code, above: float) -> torch.Tensor:
    """(F,) int64 (int32 for sparse codes): the number of rows in which each latent is active."""
    if isinstance(code, SparseCodes):
        return code.transpose().counts()
    return fires(code, above).flatten(0, -2).sum(0)


def entries(
    code: Code | RaggedCodes, above: float | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(row, latent, value), each (N,), in row-major order: the entries of a code (B,F) that are not
    0, or, with `above`, those that are active."""
    if isinstance(code, torch.Tensor):
        row, latent = (code if above is None else fires(code, above)).nonzero(as_tuple=True)
        return row, latent, code[row, latent]
    row, latent, value = code.entries()
    if above is None:
        return row, latent, value
    active = fires(value, above)
    return row[active], latent[active], value[active]
