"""Decoder: the row program that reconstructs, compares and differentiates (`decode_mse`).

`decode_mse` uses one program per row. It gathers the row's weight vectors into x_hat, compares with
x, and reads the same vectors a second time for the gradients of the code values. k = 32 vectors of
bf16 are 49 KB at d = 768 and 147 KB at 2304, and several rows are in flight on an SM, so the second
read comes from L2 where that holds the whole matrix (38 MB at d = 768, F = 24,576) and from memory
at larger ones. A dense decoder takes two GEMMs and about five passes over B x F.

Two power-of-two blocks cover d (`split_width`): 2304 = 2048 + 256, where one block of 4096 would
leave 44 % of the lanes idle. Loops run to nnz of the row, so wide padding costs nothing. The block
sizes fix the order of every sum: same inputs, same bits.
"""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl

from saekit_kernels.codes import Codes
from saekit_kernels.decode import Decoded
from saekit_kernels.gpu.runtime import (
    Case,
    jit,
    next_power_of_2,
    row_pointer,
    row_span,
    unit_stride,
)

# Codes of a row that are loaded together: one by one, each would wait for the memory by itself.
ENTRIES = 4


def split_width(d: int, least: int) -> tuple[int, int]:
    """(head, tail): two powers of two that cover d, head the largest below d. 768 = 512 + 256, 2304
    = 2048 + 256, 4096 = 2048 + 2048.

    `least` is the number of threads: in a narrower block two threads would hold the same element,
    and where a kernel updates memory in place the second could read what the first has already
    written.
    """
    head = max(next_power_of_2(d) // 2, least)
    return head, max(next_power_of_2(d - head), least)


def row_warps(d: int, weight_bytes: int, stride: int) -> int:
    """Warps of a program that holds a row of d: at most 64 bytes of weights per lane and entry, so
    768 bf16 columns need one.

    Where width or stride prevent 16-byte loads, every column needs its own address; more warps keep
    those in registers (up to about d = 5000).
    """
    if d % 16 or stride % 16:
        weight_bytes = 8
    return min(max(next_power_of_2(d) * weight_bytes // 2048, 1), 16)


@jit
def gather_sum(acc, j, v, W_ptr, W_stride, cols, col_mask, live):
    """acc + sum_e v[e] W[j[e], cols]"""
    mask = live[:, None] & col_mask[None, :]
    w = tl.load(W_ptr + j[:, None] * W_stride + cols[None, :], mask=mask, other=0.0).to(tl.float32)
    return acc + tl.sum(v[:, None] * w, axis=0)


@jit
def _decode_mse_row(
    vals_ptr,
    idx_ptr,
    row_ptr,
    W_ptr,
    W_stride,
    b_ptr,
    x_ptr,
    x_stride,
    penalty_ptr,
    loss_ptr,
    residual_ptr,
    g_ptr,
    dvals_ptr,
    l1_ptr,
    K,
    d,
    inverse_B,
    RESIDUAL: tl.constexpr,
    NEED_GRAD: tl.constexpr,
    PENALTY: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    ENTRIES: tl.constexpr,
    RAGGED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEAD)
    tail = HEAD + tl.arange(0, TAIL)
    in_head = head < d
    in_tail = tail < d
    entry = tl.arange(0, ENTRIES)
    first, nnz = row_span(row_ptr, row, K, RAGGED)

    # First pass: x_hat, which then becomes the residual. Columns after d stay 0 and add nothing to
    # the loss.
    e_head = tl.load(b_ptr + head, mask=in_head, other=0.0).to(tl.float32)
    e_tail = tl.load(b_ptr + tail, mask=in_tail, other=0.0).to(tl.float32)
    l1 = tl.zeros((ENTRIES,), tl.float32)
    for t in range(0, nnz, ENTRIES):
        live = t + entry < nnz
        j = tl.load(idx_ptr + first + t + entry, mask=live, other=0).to(tl.int64)
        v = tl.load(vals_ptr + first + t + entry, mask=live, other=0.0)
        e_head = gather_sum(e_head, j, v, W_ptr, W_stride, head, in_head, live)
        e_tail = gather_sum(e_tail, j, v, W_ptr, W_stride, tail, in_tail, live)
        if PENALTY:
            l1 += v * tl.load(penalty_ptr + j, mask=live, other=0.0).to(tl.float32)
    e_head -= tl.load(x_ptr + row * x_stride + head, mask=in_head, other=0.0).to(tl.float32)
    e_tail -= tl.load(x_ptr + row * x_stride + tail, mask=in_tail, other=0.0).to(tl.float32)
    if RESIDUAL:
        tl.store(residual_ptr + row * d + head, e_head, mask=in_head)
        tl.store(residual_ptr + row * d + tail, e_tail, mask=in_tail)
    tl.store(loss_ptr + row, tl.sum(e_head * e_head, axis=0) + tl.sum(e_tail * e_tail, axis=0))
    if PENALTY:
        tl.store(l1_ptr + row, tl.sum(l1, axis=0))

    # Second pass: d mean_b loss_b / d vals[t] = <g, W[idx[t]]>, with the residual in registers.
    if NEED_GRAD:
        g_head = e_head * (2.0 * inverse_B)
        g_tail = e_tail * (2.0 * inverse_B)
        tl.store(g_ptr + row * d + head, g_head, mask=in_head)
        tl.store(g_ptr + row * d + tail, g_tail, mask=in_tail)
        for t in range(0, nnz, ENTRIES):
            live = t + entry < nnz
            slot = first + t + entry
            j = tl.load(idx_ptr + slot, mask=live, other=0).to(tl.int64)
            v = tl.load(vals_ptr + slot, mask=live, other=0.0)
            W_row = W_ptr + j[:, None] * W_stride
            w_head = tl.load(
                W_row + head[None, :], mask=live[:, None] & in_head[None, :], other=0.0
            ).to(tl.float32)
            w_tail = tl.load(
                W_row + tail[None, :], mask=live[:, None] & in_tail[None, :], other=0.0
            ).to(tl.float32)
            dv = tl.sum(w_head * g_head[None, :], axis=1) + tl.sum(w_tail * g_tail[None, :], axis=1)
            if PENALTY:
                dv += tl.load(penalty_ptr + j, mask=live, other=0.0).to(tl.float32) * inverse_B
            # A code of exactly 0 was cut off by the ReLU: no gradient. NaN is not 0 and passes.
            tl.store(dvals_ptr + slot, tl.where(v == 0.0, 0.0, dv), mask=live)


def decode_mse(
    codes: Codes,
    W_FD: torch.Tensor,
    b_D: torch.Tensor,
    x_BD: torch.Tensor,
    need_grad: bool = True,
    penalty_F: torch.Tensor | None = None,
) -> Decoded:
    """Reconstruct, compare and differentiate mean_b [sum_d (x_hat - x)^2 + sum_t vals *
    penalty_F[idx]].

    loss_B holds the squared error without the penalty, l1_B the penalty (when there is one), g_BD
    the gradient with respect to x_hat and dvals_BK the gradient with respect to the code values: 0
    on padding and where the value is 0. Raises ValueError when the shapes do not fit.
    """
    residual = torch.empty(x_BD.shape, dtype=torch.float32, device=x_BD.device)
    g = torch.empty_like(residual) if need_grad and len(codes) else None
    loss, dvals, l1 = _rows(codes, W_FD, b_D, x_BD, penalty_F, residual, g)
    return Decoded(loss, residual, g, dvals, l1)


def decode_gradients(
    codes: Codes,
    W_FD: torch.Tensor,
    b_D: torch.Tensor,
    x_BD: torch.Tensor,
    dtype: torch.dtype,
    penalty_F: torch.Tensor | None = None,
) -> Decoded:
    """decode_mse for a step that gathers g: g_BD in `dtype`, and no residual (0,D), from which g
    differs by a constant."""
    g = torch.empty(x_BD.shape, dtype=dtype, device=x_BD.device)
    loss, dvals, l1 = _rows(codes, W_FD, b_D, x_BD, penalty_F, None, g)
    return Decoded(loss, x_BD[:0], g, dvals, l1)


def _rows(
    codes: Codes,
    W_FD: torch.Tensor,
    b_D: torch.Tensor,
    x_BD: torch.Tensor,
    penalty_F: torch.Tensor | None,
    residual: torch.Tensor | None,
    g: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """(loss_B, dvals, l1_B); fills residual and g if they are there."""
    # Check.
    B, d = len(codes), width(codes, W_FD)
    if b_D.shape != (d,):
        raise ValueError(f"the bias must have shape ({d},), got {tuple(b_D.shape)}")
    if x_BD.shape != (B, d):
        raise ValueError(f"x must have shape ({B}, {d}), got {tuple(x_BD.shape)}")
    if penalty_F is not None and penalty_F.shape != (codes.F,):
        raise ValueError(f"penalty must have shape ({codes.F},), got {tuple(penalty_F.shape)}")
    # Outputs.
    like: dict[str, Any] = dict(dtype=torch.float32, device=x_BD.device)
    loss, l1 = torch.empty(B, **like), None if penalty_F is None else torch.empty(B, **like)
    dvals = None if g is None else torch.zeros(codes.vals.shape, **like)
    if B == 0:
        return loss, dvals, l1
    # Inputs as the kernel reads them. It never touches the pointer of a disabled output.
    W, x, b = unit_stride(W_FD), unit_stride(x_BD), b_D.contiguous()
    vals, idx = codes.vals.contiguous(), codes.idx.contiguous()
    row_ptr, K, ragged = row_pointer(codes)
    penalty = loss if penalty_F is None else penalty_F.contiguous()
    warps = row_warps(d, W.element_size(), W.stride(0))
    head, tail = split_width(d, 32 * warps)
    _decode_mse_row[(B,)](
        *(vals, idx, row_ptr, W, W.stride(0), b, x, x.stride(0), penalty, loss),
        *(loss if t is None else t for t in (residual, g, dvals, l1)),
        *(K, d, 1.0 / B, residual is not None, g is not None, penalty_F is not None),
        *(head, tail, ENTRIES, ragged),
        num_warps=warps,
    )
    return loss, dvals, l1


def width(codes: Codes, W_FD: torch.Tensor) -> int:
    """D. Raises ValueError when W does not fit the codes."""
    if W_FD.ndim != 2 or len(W_FD) != codes.F:
        raise ValueError(f"W must have shape ({codes.F}, D), got {tuple(W_FD.shape)}")
    return W_FD.shape[1]


def cases() -> list[Case]:
    codes = {"vals_ptr": "*fp32", "idx_ptr": "*i32", "row_ptr": "*i32"}
    shape = {"K": "i32", "d": "i32"}
    listed = []
    for d, weight, penalty, aligned in (
        (768, "*bf16", False, ("K", "d", "W_stride", "x_stride")),
        (2304, "*bf16", True, ("K", "d", "W_stride", "x_stride")),
        (4096, "*bf16", False, ("K", "d", "W_stride", "x_stride")),
        (4096, "*fp32", True, ("K", "d", "W_stride", "x_stride")),
        (1001, "*bf16", False, ()),
    ):
        names = ("penalty", "loss", "residual", "g", "dvals", "l1")
        outputs = {f"{name}_ptr": weight if name == "g" else "*fp32" for name in names}
        signature = (
            codes
            | {
                "W_ptr": weight,
                "W_stride": "i32",
                "b_ptr": "*fp32",
                "x_ptr": "*fp32",
                "x_stride": "i32",
            }
            | outputs
            | shape
        )
        warps = row_warps(d, 2 if weight == "*bf16" else 4, d)
        head, tail = split_width(d, 32 * warps)
        constants = {
            "RESIDUAL": not aligned,
            "NEED_GRAD": True,
            "PENALTY": penalty,
            "HEAD": head,
            "TAIL": tail,
            "ENTRIES": ENTRIES,
            "RAGGED": penalty,
        }
        name = f"decode_mse_{d}_{weight[1:]}"
        signature |= {"inverse_B": "fp32"}
        listed.append(Case(name, _decode_mse_row, signature, constants, warps, aligned=aligned))
    return listed
