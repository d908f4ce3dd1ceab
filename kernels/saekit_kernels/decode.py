"""Decoder: codes -> reconstruction, and the row program that also yields loss and gradients.

x_hat_b = sum_t vals[b,t] W_dec[idx[b,t]] + b_dec is an embedding bag; the gradient of a code value
is one dot product per stored entry, <g_b, W_dec[j]>, a sampled dense-dense product. Neither touches
B x F.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as nnF

from saekit_kernels.codes import Codes
from saekit_kernels.sparse import csr_products


@dataclass
class Decoded:
    """loss_B = sum over D of (x_hat - x)^2; residual_BD = x_hat - x. g_BD and dvals_BK (in the
    shape of the code values) are gradients of mean_b loss_b, when requested. l1_B: sum of penalty *
    value over a row, when a penalty was given."""

    loss_B: torch.Tensor
    residual_BD: torch.Tensor
    g_BD: torch.Tensor | None = None
    dvals_BK: torch.Tensor | None = None
    l1_B: torch.Tensor | None = None


def decode(codes: Codes, W_dec_FD: torch.Tensor, b_dec_D: torch.Tensor) -> torch.Tensor:
    """x_hat (B,D). Differentiable in vals, W_dec and b_dec; the weight gradient is dense."""
    if codes.idx.numel() == 0:
        return codes.vals.new_zeros(len(codes), W_dec_FD.shape[1]) + b_dec_D
    weights, offsets = codes.vals.to(W_dec_FD.dtype).flatten(), codes.offsets()
    bags = nnF.embedding_bag(
        codes.idx.flatten(),
        W_dec_FD,
        offsets,
        mode="sum",
        per_sample_weights=weights,
        include_last_offset=True,
    )
    return bags + b_dec_D


@torch.no_grad()
def decode_mse(
    codes: Codes,
    W_dec_FD: torch.Tensor,
    b_dec_D: torch.Tensor,
    x_BD: torch.Tensor,
    need_grad: bool = True,
    penalty_F: torch.Tensor | None = None,
) -> Decoded:
    """Reconstruct, compare and differentiate mean_b [sum_d (x_hat - x)^2 + sum_j penalty_j z_bj]
    with respect to x_hat (g) and to the code values (dvals)."""
    residual = decode(codes, W_dec_FD, b_dec_D).sub_(x_BD)
    decoded = Decoded(residual.square().sum(1), residual)
    penalty = None if penalty_F is None else penalty_F[codes.idx]
    if penalty is not None:
        decoded.l1_B = codes.row_sum(codes.without_padding(codes.vals * penalty))
    if need_grad and len(codes):
        decoded.g_BD = residual * (2.0 / len(codes))
        decoded.dvals_BK = sampled_products(codes, decoded.g_BD, W_dec_FD)
        if penalty is not None:
            decoded.dvals_BK += codes.without_padding(penalty / len(codes))
    return decoded


def sampled_products(codes: Codes, g_BD: torch.Tensor, W_FD: torch.Tensor) -> torch.Tensor:
    """In the shape of vals: <g_b, W[j]> for every entry (b, j), 0 on padding."""
    # Only the device knows the number of entries: by row, padding included.
    if g_BD.device.type != "cpu":
        products = csr_products(codes.offsets(), codes.idx.flatten(), g_BD, W_FD)
        return codes.without_padding(products.view_as(codes.vals))
    # By latent, so that W is read in order; the weight gradients need the transpose too.
    transpose = codes.transpose()
    pos = transpose.pos[: int(transpose.ptr[-1])]
    products = csr_products(transpose.ptr, codes.row_of(pos), W_FD, g_BD)
    return (
        codes.vals.new_zeros(codes.vals.numel())
        .index_copy_(0, pos.long(), products)
        .view_as(codes.vals)
    )
