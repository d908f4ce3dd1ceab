"""Rows in int8 with one scale each, and upper bounds of what that loses: x = x^ + dx, for gpu/lowbit.py.

The norms are summed in units of the scale, where no square over- or underflows, and rounded up by 2^-10, far above the rounding of the
sums. Rows that are not finite, or too small for products of scales, get infinite bounds: whoever uses them learns nothing, and knows it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from saekit_kernels.gpu.runtime import POINTER, Case, cdiv

QUANTISE = {"ROWS": 16, "BLOCK": 128}
TINY = 1e-12  # rows whose largest entry is smaller, but not 0, are not quantised: products of their scales leave the range of fp32


@triton.jit
def quantise_kernel(
    x_ptr, q_ptr, scale_ptr, norm_ptr, hat_ptr, error_ptr, N, D, x_stride, tiny, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """q = round(x / scale), and for each row upper bounds of ||x||, ||x^|| and ||x - x^|| + 2^-20 ||x||."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    lane = tl.arange(0, BLOCK)[None, :]
    x_at = x_ptr + rows[:, None] * x_stride + lane
    largest = tl.zeros((ROWS, BLOCK), tl.float32)
    bad = tl.zeros((ROWS, BLOCK), tl.int32)
    for start in range(0, D, BLOCK):
        inside = (rows[:, None] < N) & (start + lane < D)
        x = tl.abs(tl.load(x_at + start, mask=inside, other=0.0).to(tl.float32))
        bad += (x < float("inf")).to(tl.int32) ^ 1  # NaN too
        largest = tl.maximum(largest, tl.where(x < float("inf"), x, 0.0))
    top = tl.max(largest, 1)
    hopeless = (tl.sum(bad, 1) > 0) | ((top > 0.0) & (top < tiny))
    inverse = tl.where(top > 0.0, 127.0 / tl.maximum(top, tiny), 0.0)
    xx = tl.zeros((ROWS, BLOCK), tl.float32)
    qq = tl.zeros((ROWS, BLOCK), tl.float32)
    ee = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, D, BLOCK):
        inside = (rows[:, None] < N) & (start + lane < D)
        x = tl.load(x_at + start, mask=inside, other=0.0).to(tl.float32)
        steps = tl.where(tl.abs(x) < float("inf"), x * inverse[:, None], 0.0)  # in units of the scale no square over- or underflows
        q = tl.minimum(tl.maximum(tl.floor(steps + 0.5), -127.0), 127.0)
        tl.store(q_ptr + rows[:, None] * D + start + lane, q.to(tl.int8), mask=inside)
        xx += steps * steps
        qq += q * q
        ee += (steps - q) * (steps - q)
    scale = top / 127.0
    up = tl.where(hopeless, float("inf"), scale * (1.0 + 1.0 / 1024))  # far above the rounding of these sums
    norm = tl.sqrt(tl.sum(xx, 1)) * up
    tl.store(scale_ptr + rows, scale, mask=rows < N)
    tl.store(norm_ptr + rows, norm, mask=rows < N)
    tl.store(hat_ptr + rows, tl.sqrt(tl.sum(qq, 1)) * up, mask=rows < N)
    tl.store(error_ptr + rows, tl.sqrt(tl.sum(ee, 1)) * up + norm * (1.0 / (1 << 20)), mask=rows < N)


@triton.jit
def half_width(x_norm, x_error, w_hat, w_error, b):
    """Half the bracket of a pre-activation; NaN or inf when x or W is not finite."""
    return x_error * w_hat + x_norm * w_error + tl.abs(b) * (1.0 / (1 << 20))


@dataclass(frozen=True)
class Quantised:
    """q (N,D) int8; scale, and upper bounds of ||x||, ||x^|| and ||x - x^|| (with the slack of fp32), (N,) each."""

    q: torch.Tensor
    scale: torch.Tensor
    norm: torch.Tensor
    hat: torch.Tensor
    error: torch.Tensor


def quantise(x_ND: torch.Tensor) -> Quantised:
    N, D = x_ND.shape
    q = torch.empty(N, D, dtype=torch.int8, device=x_ND.device)
    parts = torch.empty(4, N, device=x_ND.device)
    quantise_kernel[(cdiv(N, QUANTISE["ROWS"]),)](x_ND, q, *parts, N, D, x_ND.stride(0), TINY, **QUANTISE, num_warps=4)
    return Quantised(q, *parts)


def cases() -> list[Case]:
    def case(dtype: torch.dtype) -> Case:
        signature = {"x_ptr": POINTER[dtype], "q_ptr": "*i8"} | dict.fromkeys(("scale_ptr", "norm_ptr", "hat_ptr", "error_ptr"), "*fp32")
        signature |= {"N": "i32", "D": "i32", "x_stride": "i32", "tiny": "fp32"}
        return Case(f"quantise {dtype}", quantise_kernel, signature, QUANTISE, 4, aligned=("N", "D", "x_stride"))

    return [case(torch.bfloat16), case(torch.float32)]
