"""Weight gradients: for every latent, the weighted sum of the rows where it fired.

dW_dec[j] = sum_b z_bj g_b and dW_enc[j] = sum_b dz_bj x_b are embedding bags over the transposed
codes, one bag per latent: each output row is written once, in a fixed order, so the same inputs
give the same bits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnF

from saekit_kernels.codes import Codes


def sparse_weight_grad(codes: Codes, coef_BK: torch.Tensor, rows_BD: torch.Tensor) -> torch.Tensor:
    """dW (F,D): dW[j] = sum over the entries (b, j) of coef * rows[b]; coef is 0 on padding.
    Latents that did not fire get zeros."""
    transpose = codes.transpose()
    if len(transpose.pos) == 0:
        return rows_BD.new_zeros(codes.F, rows_BD.shape[1])
    # Padding sorts last; torch adds entries after ptr[F], whose weight is 0, to the last bag.
    row_of_entry = codes.row_of(transpose.pos)
    weights = coef_BK.flatten()[transpose.pos].to(rows_BD.dtype)
    return nnF.embedding_bag(
        row_of_entry,
        rows_BD,
        transpose.ptr,
        mode="sum",
        per_sample_weights=weights,
        include_last_offset=True,
    )


def sparse_column_sum(codes: Codes, coef_BK: torch.Tensor) -> torch.Tensor:
    """(F,): the sum of coef over the entries of each latent; the gradient of an encoder bias."""
    return sparse_weight_grad(codes, coef_BK, coef_BK.new_ones(len(codes), 1))[:, 0]
