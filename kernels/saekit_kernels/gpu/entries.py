"""The row programs of codes whose values go through autograd (saekit_kernels/entries.py): the
gradient of each code value, and the error over nested reconstructions.

Both walk the entries of a row as decode_mse does (gpu/decode.py), so their cost follows the active
entries, however they are spread over the rows.
"""

from __future__ import annotations

import dataclasses

import torch
import triton.language as tl

from saekit_kernels.codes import Codes
from saekit_kernels.gpu.decode import ENTRIES, decode_mse, gather_sum, row_warps, split_width, width
from saekit_kernels.gpu.grad import sparse_weight_grad
from saekit_kernels.gpu.runtime import Case, jit, row_pointer, row_span, unit_stride


@jit
def dots(W_ptr, W_stride, j, live, g_head, g_tail, head, tail, in_head, in_tail):
    """<g, W[j]> for several entries."""
    W_row = W_ptr + j[:, None] * W_stride
    w_head = tl.load(W_row + head[None, :], mask=live[:, None] & in_head[None, :], other=0.0)
    w_tail = tl.load(W_row + tail[None, :], mask=live[:, None] & in_tail[None, :], other=0.0)
    dot = tl.sum(w_head.to(tl.float32) * g_head[None, :], axis=1)
    return dot + tl.sum(w_tail.to(tl.float32) * g_tail[None, :], axis=1)


@jit
def _products_row(
    idx_ptr, row_ptr, W_ptr, W_stride, g_ptr, g_stride, out_ptr, K, d,
    HEAD: tl.constexpr, TAIL: tl.constexpr, ENTRIES: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEAD)
    tail = HEAD + tl.arange(0, TAIL)
    in_head = head < d
    in_tail = tail < d
    entry = tl.arange(0, ENTRIES)
    first, nnz = row_span(row_ptr, row, K, RAGGED)
    g_row = g_ptr + row * g_stride
    g_head = tl.load(g_row + head, mask=in_head, other=0.0).to(tl.float32)
    g_tail = tl.load(g_row + tail, mask=in_tail, other=0.0).to(tl.float32)
    for t in range(0, nnz, ENTRIES):
        live = t + entry < nnz
        slot = first + t + entry
        j = tl.load(idx_ptr + slot, mask=live, other=0).to(tl.int64)
        dot = dots(W_ptr, W_stride, j, live, g_head, g_tail, head, tail, in_head, in_tail)
        tl.store(out_ptr + slot, dot, mask=live)


@jit
def _nested_row(
    vals_ptr, idx_ptr, level_ptr, row_ptr, W_ptr, W_stride, b_ptr, x_ptr, x_stride, loss_ptr,
    later_ptr, x_hat_ptr, dvals_ptr, K, d, scale,
    LEVELS: tl.constexpr, NEED_GRAD: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr,
    ENTRIES: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEAD)
    tail = HEAD + tl.arange(0, TAIL)
    in_head = head < d
    in_tail = tail < d
    entry = tl.arange(0, ENTRIES)
    first, nnz = row_span(row_ptr, row, K, RAGGED)
    plane = later_ptr + row * LEVELS * d

    # The error of each level: that of the level before, and the entries of this one.
    x_row = x_ptr + row * x_stride
    e_head = tl.load(b_ptr + head, mask=in_head, other=0.0).to(tl.float32)
    e_tail = tl.load(b_ptr + tail, mask=in_tail, other=0.0).to(tl.float32)
    e_head -= tl.load(x_row + head, mask=in_head, other=0.0).to(tl.float32)
    e_tail -= tl.load(x_row + tail, mask=in_tail, other=0.0).to(tl.float32)
    loss = tl.zeros((), tl.float32)
    for level in range(0, LEVELS):
        for t in range(0, nnz, ENTRIES):
            slot = first + t + entry
            inside = t + entry < nnz
            live = inside & (tl.load(level_ptr + slot, mask=inside, other=0) == level)
            j = tl.load(idx_ptr + slot, mask=live, other=0).to(tl.int64)
            v = tl.load(vals_ptr + slot, mask=live, other=0.0)
            e_head = gather_sum(e_head, j, v, W_ptr, W_stride, head, in_head, live)
            e_tail = gather_sum(e_tail, j, v, W_ptr, W_stride, tail, in_tail, live)
        loss += tl.sum(e_head * e_head, axis=0) + tl.sum(e_tail * e_tail, axis=0)
        if NEED_GRAD:
            tl.store(plane + head, e_head, mask=in_head)
            tl.store(plane + tail, e_tail, mask=in_tail)
            plane += d
    tl.store(loss_ptr + row, loss)
    e_head += tl.load(x_row + head, mask=in_head, other=0.0).to(tl.float32)
    e_tail += tl.load(x_row + tail, mask=in_tail, other=0.0).to(tl.float32)
    tl.store(x_hat_ptr + row * d + head, e_head, mask=in_head)
    tl.store(x_hat_ptr + row * d + tail, e_tail, mask=in_tail)

    # An entry is part of the reconstructions of its own level and of all later ones.
    if NEED_GRAD:
        g_head = tl.zeros((HEAD,), tl.float32)
        g_tail = tl.zeros((TAIL,), tl.float32)
        for back in range(0, LEVELS):
            level = LEVELS - 1 - back
            plane -= d
            g_head += scale * tl.load(plane + head, mask=in_head, other=0.0)
            g_tail += scale * tl.load(plane + tail, mask=in_tail, other=0.0)
            tl.store(plane + head, g_head, mask=in_head)
            tl.store(plane + tail, g_tail, mask=in_tail)
            for t in range(0, nnz, ENTRIES):
                slot = first + t + entry
                inside = t + entry < nnz
                live = inside & (tl.load(level_ptr + slot, mask=inside, other=0) == level)
                j = tl.load(idx_ptr + slot, mask=live, other=0).to(tl.int64)
                dot = dots(W_ptr, W_stride, j, live, g_head, g_tail, head, tail, in_head, in_tail)
                tl.store(dvals_ptr + slot, dot, mask=live)


def decode(codes: Codes, W_FD: torch.Tensor, b_D: torch.Tensor) -> torch.Tensor:
    """x_hat (B,D) fp32: the sum over the entries of a row of value * W[j], plus b."""
    nothing = b_D.new_zeros(1, len(b_D)).expand(len(codes), -1)
    return decode_mse(codes, W_FD, b_D, nothing, need_grad=False).residual_BD


def products(codes: Codes, g_BD: torch.Tensor, W_FD: torch.Tensor) -> torch.Tensor:
    """In the shape of the values, fp32: <g[b], W[j]> for every entry (b,j), 0 on padding. Raises
    ValueError when the shapes do not fit."""
    B, d = len(codes), width(codes, W_FD)
    if g_BD.shape != (B, d):
        raise ValueError(f"g must have shape ({B}, {d}), got {tuple(g_BD.shape)}")
    out = torch.zeros(codes.vals.shape, dtype=torch.float32, device=g_BD.device)
    if out.numel() == 0:
        return out
    W, g, idx = unit_stride(W_FD), unit_stride(g_BD), codes.idx.contiguous()
    row_ptr, K, ragged = row_pointer(codes)
    warps = row_warps(d, W.element_size(), W.stride(0))
    _products_row[(B,)](
        *(idx, row_ptr, W, W.stride(0), g, g.stride(0), out, K, d),
        *(*split_width(d, 32 * warps), ENTRIES, ragged),
        num_warps=warps,
    )
    return out


def nested_warps(d: int, weight_bytes: int, stride: int) -> int:
    """Twice those of decode_mse where d is wide: sm_80 spills otherwise."""
    warps = row_warps(d, weight_bytes, stride)
    return warps if warps < 8 else 16


def nested_row_errors(
    codes: Codes,
    W_FD: torch.Tensor,
    b_D: torch.Tensor,
    x_BD: torch.Tensor,
    level: torch.Tensor,
    levels: int,
    need_grad: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x_hat (B,D) from all entries; the mean over rows and levels of sum_d (x_hat_g - x)^2, with
    x_hat_g from the entries up to level g; later (B,levels,D); dvals in the shape of the values).

    `level` is that of every entry, from 0, in the shape of the values. `later` is the gradient of
    the mean with respect to what a level adds to x_hat, `dvals` that with respect to the values;
    without `need_grad` neither is there. Raises ValueError when the shapes do not fit.
    """
    B, d = len(codes), width(codes, W_FD)
    if x_BD.shape != (B, d) or b_D.shape != (d,) or level.shape != codes.vals.shape:
        raise ValueError(
            f"expected x ({B}, {d}), b ({d},) and a level {tuple(codes.vals.shape)}, got"
            f" {tuple(x_BD.shape)}, {tuple(b_D.shape)}, {tuple(level.shape)}"
        )
    empty = lambda *shape: torch.empty(shape, dtype=torch.float32, device=x_BD.device)
    loss, x_hat = empty(B), empty(B, d)
    later = empty(B, levels, d) if need_grad else empty(0)
    dvals = torch.zeros(codes.vals.shape if need_grad else (0,), device=x_BD.device)
    if B == 0:
        return x_hat, loss.sum(), later, dvals
    # Inputs as the kernel reads them.
    W, x, b = unit_stride(W_FD), unit_stride(x_BD), b_D.contiguous()
    vals, idx = codes.vals.float().contiguous(), codes.idx.contiguous()
    row_ptr, K, ragged = row_pointer(codes)
    warps = nested_warps(d, W.element_size(), W.stride(0))
    scale = 2.0 / (levels * B)
    _nested_row[(B,)](
        *(vals, idx, level.to(torch.int32).contiguous(), row_ptr, W, W.stride(0), b, x),
        *(x.stride(0), loss, later, x_hat, dvals, K, d, scale, levels, need_grad),
        *(*split_width(d, 32 * warps), ENTRIES, ragged),
        num_warps=warps,
    )
    return x_hat, loss.mean() / levels, later, dvals


class NestedError(torch.autograd.Function):
    """saekit_kernels.nested.nested_error: one walk over the rows, and one over the latents for the
    weights."""

    @staticmethod
    def forward(ctx, values, W_FD, b_D, target_BD, codes: Codes, level, levels: int):
        codes = dataclasses.replace(codes, vals=codes.without_padding(values))
        wants_grad = any(ctx.needs_input_grad)
        x_hat, error, later, dvals = nested_row_errors(
            codes, W_FD, b_D, target_BD, level, levels, wants_grad
        )
        ctx.save_for_backward(later, dvals, level)
        ctx.codes = codes
        ctx.mark_non_differentiable(x_hat)
        return x_hat, error

    @staticmethod
    def backward(ctx, _, slope):  # pyright: ignore[reportIncompatibleMethodOverride]
        (later, dvals, level), codes = ctx.saved_tensors, ctx.codes
        (B, levels, d), needs, dW = later.shape, ctx.needs_input_grad, None
        if needs[1]:
            at = torch.arange(level.numel(), dtype=torch.int32, device=level.device)
            row_of = codes.row_of(at) * levels + level.flatten()
            dW = sparse_weight_grad(codes, codes.vals * slope, later.view(B * levels, d), row_of)
        first = later[:, 0] * slope
        dx = -first if needs[3] else None
        return dvals * slope, dW, first.sum(0), dx, None, None, None


def cases() -> list[Case]:
    listed = []
    for d, ragged in ((768, True), (4096, True), (768, False)):
        warps = row_warps(d, 4, d)
        head, tail = split_width(d, 32 * warps)
        constants = {"HEAD": head, "TAIL": tail, "ENTRIES": ENTRIES, "RAGGED": ragged}
        rows = {"row_ptr": "*i32", "idx_ptr": "*i32", "W_ptr": "*fp32", "W_stride": "i32"}
        sizes, aligned = {"K": "i32", "d": "i32"}, ("W_stride", "g_stride", "x_stride", "d", "K")
        products = rows | {"g_ptr": "*fp32", "g_stride": "i32", "out_ptr": "*fp32"} | sizes
        pointers = ("vals", "b", "x", "loss", "later", "x_hat", "dvals")
        nested = rows | {f"{name}_ptr": "*fp32" for name in pointers} | sizes
        nested |= {"level_ptr": "*i32", "x_stride": "i32", "scale": "fp32"}
        more = nested_warps(d, 4, d)
        head, tail = split_width(d, 32 * more)
        levels = constants | {"LEVELS": 5, "NEED_GRAD": True, "HEAD": head, "TAIL": tail}
        name = f"{d}_{'ragged' if ragged else 'padded'}"
        listed += [
            Case(f"products_{name}", _products_row, products, constants, warps, aligned=aligned),
            Case(f"nested_{name}", _nested_row, nested, levels, more, aligned=aligned),
        ]
    return listed
