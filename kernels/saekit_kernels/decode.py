"""Decoder: codes -> reconstruction, and the row program that also yields loss and gradients.

x_hat_b = sum_t vals[b,t] W_dec[idx[b,t]] + b_dec is an embedding bag; the gradient of a code value is one dot product for each stored
entry, <g_b, W_dec[j]>, a sampled dense-dense product. Neither touches B x F.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as nnF

from saekit_kernels.codes import SparseCodes


@dataclass
class Decoded:
    """loss_B = sum over D of (x_hat - x)^2; residual_BD = x_hat - x. With gradients of mean_b loss_b: g_BD, dvals_BK."""

    loss_B: torch.Tensor
    residual_BD: torch.Tensor
    g_BD: torch.Tensor | None = None
    dvals_BK: torch.Tensor | None = None


def decode(codes: SparseCodes, W_dec_FD: torch.Tensor, b_dec_D: torch.Tensor) -> torch.Tensor:
    """x_hat (B,D). Differentiable in vals, W_dec and b_dec; the weight gradient is dense."""
    if len(codes) == 0:
        return codes.vals.new_zeros(0, W_dec_FD.shape[1])
    weights = codes.vals.to(W_dec_FD.dtype)
    return nnF.embedding_bag(codes.idx, W_dec_FD, mode="sum", per_sample_weights=weights) + b_dec_D


def decode_mse(codes: SparseCodes, W_dec_FD: torch.Tensor, b_dec_D: torch.Tensor, x_BD: torch.Tensor, need_grad: bool = True) -> Decoded:
    """Reconstruct, compare and differentiate mean_b sum_d (x_hat - x)^2 with respect to x_hat (g) and to the code values."""
    with torch.no_grad():
        residual = decode(codes, W_dec_FD, b_dec_D).sub_(x_BD)
        loss = residual.square().sum(1)
        if not need_grad or len(codes) == 0:
            return Decoded(loss, residual)
        g = residual * (2.0 / len(codes))
        return Decoded(loss, residual, g, sampled_products(codes, g, W_dec_FD))


def sampled_products(codes: SparseCodes, g_BD: torch.Tensor, W_FD: torch.Tensor) -> torch.Tensor:
    """(B,K): <g_b, W[idx[b,t]]> for every active entry, 0 on padding."""
    B, K = codes.vals.shape
    crow = torch.arange(0, B * K + 1, K, dtype=torch.int32, device=g_BD.device)
    values = g_BD.new_zeros(B * K)
    with warnings.catch_warnings():
        # torch says once that CSR tensors are in beta; only sampled_addmm is used, and the tests compare it with the dense product.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        pattern = torch.sparse_csr_tensor(crow, codes.idx.flatten(), values, (B, codes.F), check_invariants=False)
    products = torch.sparse.sampled_addmm(pattern, g_BD, W_FD.T, beta=0.0).values().view(B, K)
    return products.masked_fill_(~codes.active(), 0.0)
