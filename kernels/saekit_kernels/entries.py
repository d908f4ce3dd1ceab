"""Sparse codes by autograd: pre-activations and decoder as differentiable functions of the few
active entries.

The caller computes what lies between them, elementwise in the entries (a gate, a penalty, a
threshold with a straight-through gradient), so a new kind of code needs no backward pass of its own
and its cost still grows with the active entries, not with B x F. loss.py has the same step in one
piece for the codes that need nothing in between. Values have the shape of `codes.vals`; gradients
on padding are ignored.
"""

from __future__ import annotations

import dataclasses

import torch

from saekit_kernels.codes import Codes, SparseCodes
from saekit_kernels.operations import OPERATIONS, Operations
from saekit_kernels.sparse import csr_products

# Entries whose rows are gathered at a time on devices without a sampled product.
PRODUCT_ROWS = 1 << 16


def preactivations(
    codes: Codes,
    x_BD: torch.Tensor,
    W_enc_FD: torch.Tensor,
    b_enc_F: torch.Tensor,
    backend: str = "torch",
) -> torch.Tensor:
    """The values of `codes`, which an encoder computed from these x, W and b, differentiable in all
    three; the choice of entries is constant."""
    return _Preactivations.apply(x_BD, W_enc_FD, b_enc_F, codes.vals, codes, OPERATIONS[backend])


def decode_entries(
    codes: Codes,
    values: torch.Tensor,
    W_dec_FD: torch.Tensor,
    b_dec_D: torch.Tensor,
    backend: str = "torch",
) -> torch.Tensor:
    """x_hat (B,D): the sum over a row's entries of value * W_dec[j], plus b_dec; differentiable in
    values, W_dec and b_dec."""
    return _Decode.apply(values, W_dec_FD, b_dec_D, codes, OPERATIONS[backend])


class _Preactivations(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BD, W_enc_FD, b_enc_F, vals, codes: Codes, operations: Operations):
        ctx.save_for_backward(x_BD, W_enc_FD)
        ctx.codes, ctx.operations = codes, operations
        return vals.clone()

    @staticmethod
    def backward(ctx, dvals):  # pyright: ignore[reportIncompatibleMethodOverride]
        (x_BD, W_enc_FD), codes = ctx.saved_tensors, ctx.codes
        dvals = codes.without_padding(dvals.contiguous())
        dx = None
        if ctx.needs_input_grad[0]:
            passed = dataclasses.replace(codes, vals=dvals)
            dx = ctx.operations.decode(passed, W_enc_FD, W_enc_FD.new_zeros(W_enc_FD.shape[1]))
        dW = ctx.operations.weight_gradient(codes, dvals, x_BD) if ctx.needs_input_grad[1] else None
        db = ctx.operations.column_sum(codes, dvals) if ctx.needs_input_grad[2] else None
        return dx, dW, db, None, None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, W_dec_FD, b_dec_D, codes: Codes, operations: Operations):
        ctx.save_for_backward(values, W_dec_FD)
        ctx.codes, ctx.operations = codes, operations
        return operations.decode(
            dataclasses.replace(codes, vals=codes.without_padding(values)), W_dec_FD, b_dec_D
        )

    @staticmethod
    def backward(ctx, g_BD):  # pyright: ignore[reportIncompatibleMethodOverride]
        (values, W_dec_FD), codes = ctx.saved_tensors, ctx.codes
        g_BD, needs = g_BD.contiguous(), ctx.needs_input_grad
        dvalues = ctx.operations.products(codes, g_BD, W_dec_FD) if needs[0] else None
        dW = (
            ctx.operations.weight_gradient(codes, codes.without_padding(values), g_BD)
            if needs[1]
            else None
        )
        return dvalues, dW, g_BD.sum(0) if needs[2] else None, None, None


def products(codes: Codes, row: torch.Tensor, A: torch.Tensor, W_FD: torch.Tensor) -> torch.Tensor:
    """In the shape of the values: <A[row], W[j]> for every entry, 0 on padding."""
    if A.device.type == "cpu":  # by latent, so that the large matrix, W, is read in order
        transpose = codes.transpose()
        pos = transpose.pos[: int(transpose.ptr[-1])].long()
        products = csr_products(transpose.ptr, row[pos], W_FD, A.to(W_FD.dtype))
        return (
            A.new_zeros(codes.vals.numel(), dtype=W_FD.dtype)
            .index_copy_(0, pos, products)
            .view_as(codes.vals)
        )
    pieces = zip(row.long().split(PRODUCT_ROWS), codes.idx.flatten().long().split(PRODUCT_ROWS))
    products = torch.cat([(A[r] * W_FD[j]).sum(1) for r, j in pieces])
    return codes.without_padding(products.view_as(codes.vals))


def signed_topk(pre_BF: torch.Tensor, k: int) -> SparseCodes:
    """The k entries of each row that are largest in magnitude, with their signs. The order among
    ties is undefined."""
    idx = pre_BF.abs().topk(k, dim=1, sorted=False).indices.sort(1).values
    nnz = torch.full((len(pre_BF),), k, dtype=torch.int32, device=pre_BF.device)
    return SparseCodes(pre_BF.gather(1, idx), idx.to(torch.int32), nnz, pre_BF.shape[1])
