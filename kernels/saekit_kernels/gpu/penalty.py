"""Penalties on dense codes: KL on mean sigmoid activations (encoder and its gradient), ReLU with L1
and its gradient.

Both penalties have a gradient at every one of the B x F codes, so nothing can be skipped. These
kernels save passes over B x F, each 184/d of the encoder GEMM in bf16 (a quarter of it at d = 768,
a twentieth at d = 4096; 790 TFLOP/s and 4.3 TB/s on an H200).

    sigmoid_encode  f = sigmoid(x W^T + b) and mean_b f in the epilogue of the GEMM: one write of
                    B x F, no read
    sigmoid_dpre    (g W_dec^T + c) f (1 - f) and its column sums in the epilogue of the GEMM: one
                    read and one write
    sigmoid_pull    only c f (1 - f), when the reconstruction reads other codes: one read and one
                    write
    relu_forward    ReLU in place, with the L1 norm and the number of active latents of each row:
                    one read and one write
    relu_backward   its gradient, in place on dz, with column sums: two reads and one write

c_j = d penalty / d f_bj, the same in every row. The means for the penalty are computed from the
fp32 accumulators, before f is rounded to bf16: at a target rate of 0.01 rounding would be a
relative error of 2^-8 per code. In bf16 a code above 1 - 2^-9 is stored as 1 and its gradient f (1
- f) is 0, as in any bf16 sigmoid.

Column sums are computed in two steps, sums over blocks of rows and then the sum of those in order:
no atomics, so the same inputs give the same bits. Rows of weight 0 (padding) count neither in the
means nor in the gradient of the penalty, even if they hold NaN.

Legend: B rows, D model width, F latents, R blocks of rows; M and N rows and latents of a tile.
"""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl

from saekit_kernels.gpu.runtime import (
    INTERPRETED,
    POINTER,
    Case,
    cdiv,
    jit,
    launchable,
    unit_stride,
)

# GEMM tiles take 8 row blocks before the next column block, so that both operands stay in L2.
GROUP_ROWS = 8
# Rows of one partial column sum in the element-wise passes: partials are 3 % of the traffic of a
# bf16 pass.
SUM_ROWS = 128


# -- kernels ---------------------------------------------------------------------------------------


@jit
def _tile_of_program(B, F, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """(row block, column block) of this program: GROUP row blocks share a column block before the
    next one."""
    program = tl.program_id(0).to(tl.int64)
    row_blocks = tl.cdiv(B, BLOCK_M)
    column_blocks = tl.cdiv(F, BLOCK_N)
    group = program // (GROUP * column_blocks)
    inside = program % (GROUP * column_blocks)
    height = tl.minimum(row_blocks - group * GROUP, GROUP)
    return group * GROUP + inside % height, inside // height


@jit
def _product_tile(
    a_ptr, a_stride, w_ptr, w_stride, rows_M, cols_N, B, F, D,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """fp32 tile of a_BD w_FD^T; rows_M and cols_N are int64."""
    acc_MN = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    d = tl.arange(0, BLOCK_D)
    a_ptrs = a_ptr + rows_M[:, None].to(tl.int64) * a_stride + d[None, :]
    w_ptrs = w_ptr + cols_N[None, :].to(tl.int64) * w_stride + d[:, None]
    for start in range(0, D, BLOCK_D):
        inside = start + d < D
        a_MD = tl.load(a_ptrs + start, mask=(rows_M < B)[:, None] & inside[None, :], other=0.0)
        w_DN = tl.load(w_ptrs + start, mask=(cols_N < F)[None, :] & inside[:, None], other=0.0)
        if UPCAST:
            a_MD, w_DN = a_MD.to(tl.float32), w_DN.to(tl.float32)
        acc_MN = tl.dot(a_MD, w_DN, acc_MN, input_precision="ieee")
    return acc_MN


@jit
def _sigmoid_encode_kernel(
    x_ptr, x_stride, w_ptr, w_stride, b_ptr, weight_ptr, f_ptr, partial_ptr, B, F, D,
    WEIGHTED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    row_block, column_block = _tile_of_program(B, F, BLOCK_M, BLOCK_N, GROUP)
    rows_M = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    cols_N = column_block * BLOCK_N + tl.arange(0, BLOCK_N)
    acc_MN = _product_tile(
        x_ptr, x_stride, w_ptr, w_stride, rows_M, cols_N, B, F, D, BLOCK_M, BLOCK_N, BLOCK_D, UPCAST
    )
    f_MN = tl.sigmoid(
        acc_MN + tl.load(b_ptr + cols_N, mask=cols_N < F, other=0.0).to(tl.float32)[None, :]
    )
    tile = (rows_M < B)[:, None] & (cols_N < F)[None, :]
    tl.store(
        f_ptr + rows_M[:, None] * F + cols_N[None, :], f_MN.to(f_ptr.dtype.element_ty), mask=tile
    )
    if WEIGHTED:
        weight_M = tl.load(weight_ptr + rows_M, mask=rows_M < B, other=0.0).to(tl.float32)
        counted_MN = tl.where((weight_M == 0.0)[:, None], 0.0, f_MN * weight_M[:, None])
    else:
        counted_MN = tl.where((rows_M < B)[:, None], f_MN, 0.0)
    tl.store(partial_ptr + row_block * F + cols_N, tl.sum(counted_MN, axis=0), mask=cols_N < F)


@jit
def _sigmoid_dpre_kernel(
    g_ptr, g_stride, w_ptr, w_stride, f_ptr, f_stride, c_ptr, weight_ptr, dpre_ptr, partial_ptr, B,
    F, D,
    WEIGHTED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    row_block, column_block = _tile_of_program(B, F, BLOCK_M, BLOCK_N, GROUP)
    rows_M = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    cols_N = column_block * BLOCK_N + tl.arange(0, BLOCK_N)
    dz_MN = _product_tile(
        g_ptr, g_stride, w_ptr, w_stride, rows_M, cols_N, B, F, D, BLOCK_M, BLOCK_N, BLOCK_D, UPCAST
    )
    pull_MN = tl.load(c_ptr + cols_N, mask=cols_N < F, other=0.0).to(tl.float32)[None, :]
    if WEIGHTED:
        pull_MN = (
            pull_MN
            * tl.load(weight_ptr + rows_M, mask=rows_M < B, other=0.0).to(tl.float32)[:, None]
        )
    tile = (rows_M < B)[:, None] & (cols_N < F)[None, :]
    # other=0 makes the gradient of rows and columns outside exactly 0, so that they do not count in
    # the sums.
    f_MN = tl.load(f_ptr + rows_M[:, None] * f_stride + cols_N[None, :], mask=tile, other=0.0).to(
        tl.float32
    )
    dpre_MN = (dz_MN + pull_MN) * f_MN * (1.0 - f_MN)
    tl.store(
        dpre_ptr + rows_M[:, None] * F + cols_N[None, :],
        dpre_MN.to(dpre_ptr.dtype.element_ty),
        mask=tile,
    )
    tl.store(partial_ptr + row_block * F + cols_N, tl.sum(dpre_MN, axis=0), mask=cols_N < F)


@jit
def _sigmoid_pull_kernel(
    f_ptr, f_stride, c_ptr, weight_ptr, dpre_ptr, partial_ptr, B, F,
    WEIGHTED: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """ROWS rows of BLOCK_N columns, STEP rows at a time: dpre = c f (1 - f), and the column sums of
    those rows."""
    row_block = tl.program_id(0).to(tl.int64)
    cols_N = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    c_N = tl.load(c_ptr + cols_N, mask=cols_N < F, other=0.0).to(tl.float32)
    sum_SN = tl.zeros((STEP, BLOCK_N), tl.float32)
    for step in range(0, ROWS, STEP):
        rows_S = row_block * ROWS + step + tl.arange(0, STEP)
        tile = (rows_S < B)[:, None] & (cols_N < F)[None, :]
        f_SN = tl.load(
            f_ptr + rows_S[:, None] * f_stride + cols_N[None, :], mask=tile, other=0.0
        ).to(tl.float32)
        dpre_SN = c_N[None, :] * f_SN * (1.0 - f_SN)
        if WEIGHTED:
            weight_S = tl.load(weight_ptr + rows_S, mask=rows_S < B, other=0.0).to(tl.float32)
            dpre_SN = tl.where((weight_S == 0.0)[:, None], 0.0, dpre_SN * weight_S[:, None])
        tl.store(
            dpre_ptr + rows_S[:, None] * F + cols_N[None, :],
            dpre_SN.to(dpre_ptr.dtype.element_ty),
            mask=tile,
        )
        sum_SN += dpre_SN
    tl.store(partial_ptr + row_block * F + cols_N, tl.sum(sum_SN, axis=0), mask=cols_N < F)


@jit
def _relu_forward_kernel(
    pre_ptr, stride, norm_ptr, l1_ptr, nnz_ptr, B, F, ROWS: tl.constexpr, BLOCK_N: tl.constexpr
):
    """ROWS whole rows per program, so that row sums need no second step; several rows share each
    load of the norms."""
    rows_M = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    l1_MN = tl.zeros((ROWS, BLOCK_N), tl.float32)
    active_MN = tl.zeros((ROWS, BLOCK_N), tl.int32)
    for start in range(0, F, BLOCK_N):
        cols_N = start + tl.arange(0, BLOCK_N)
        tile = (rows_M < B)[:, None] & (cols_N < F)[None, :]
        ptrs = pre_ptr + rows_M[:, None] * stride + cols_N[None, :]
        # fp32, because the interpreter compares bf16 by its bits.
        pre_MN = tl.load(ptrs, mask=tile, other=0.0).to(tl.float32)
        # NaN stays, since NaN <= 0 is false. Entries outside were read as 0 and are not active.
        z_MN = tl.where(pre_MN <= 0.0, 0.0, pre_MN)
        tl.store(ptrs, z_MN.to(pre_ptr.dtype.element_ty), mask=tile)
        norm_N = tl.load(norm_ptr + cols_N, mask=cols_N < F, other=0.0).to(tl.float32)
        l1_MN += z_MN * norm_N[None, :]
        active_MN += tl.where(pre_MN <= 0.0, 0, 1)
    tl.store(l1_ptr + rows_M, tl.sum(l1_MN, axis=1), mask=rows_M < B)
    tl.store(nnz_ptr + rows_M, tl.sum(active_MN, axis=1), mask=rows_M < B)


@jit
def _relu_backward_kernel(
    z_ptr,
    z_stride,
    dz_ptr,
    dz_stride,
    pull_ptr,
    partial_ptr,
    B,
    F,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """ROWS rows of BLOCK_N columns, STEP rows at a time: dz becomes (dz + pull) where z is active,
    and the column sums of those rows."""
    row_block = tl.program_id(0).to(tl.int64)
    cols_N = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    pull_N = tl.load(pull_ptr + cols_N, mask=cols_N < F, other=0.0).to(tl.float32)
    sum_SN = tl.zeros((STEP, BLOCK_N), tl.float32)
    for step in range(0, ROWS, STEP):
        rows_S = row_block * ROWS + step + tl.arange(0, STEP)
        tile = (rows_S < B)[:, None] & (cols_N < F)[None, :]
        z_SN = tl.load(
            z_ptr + rows_S[:, None] * z_stride + cols_N[None, :], mask=tile, other=0.0
        ).to(tl.float32)
        dz_ptrs = dz_ptr + rows_S[:, None] * dz_stride + cols_N[None, :]
        dz_SN = tl.load(dz_ptrs, mask=tile, other=0.0).to(tl.float32)
        dpre_SN = tl.where(z_SN <= 0.0, 0.0, dz_SN + pull_N[None, :])  # NaN counts as active
        tl.store(dz_ptrs, dpre_SN.to(dz_ptr.dtype.element_ty), mask=tile)
        sum_SN += dpre_SN
    tl.store(partial_ptr + row_block * F + cols_N, tl.sum(sum_SN, axis=0), mask=cols_N < F)


@jit
def _sum_partials_kernel(partial_ptr, total_ptr, R, F, STEP: tl.constexpr, BLOCK_N: tl.constexpr):
    """total_F = sum over R of partial_RF, always in the same order; STEP running sums, so that the
    error grows with R / STEP."""
    cols_N = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    sum_SN = tl.zeros((STEP, BLOCK_N), tl.float32)
    for start in range(0, R, STEP):
        rows_S = (start + tl.arange(0, STEP)).to(tl.int64)
        tile = (rows_S < R)[:, None] & (cols_N < F)[None, :]
        sum_SN += tl.load(partial_ptr + rows_S[:, None] * F + cols_N[None, :], mask=tile, other=0.0)
    tl.store(total_ptr + cols_N, tl.sum(sum_SN, axis=0), mask=cols_N < F)


# -- launchers -------------------------------------------------------------------------------------


def _product_config(dtype: torch.dtype, D: int, F: int) -> dict[str, int]:
    """Tile of the GEMMs. With 128 x 128 in bf16 two blocks of sigmoid_encode without weights share
    an SM of sm_90; the others need more than 128 registers, and one fits. 128 x 256 spills in the
    epilogue.

    Widths that are not multiples of 16 prevent vector loads; their addresses and masks then take
    the registers of a large tile. fp32 products run on scalar units, where a large tile would only
    cost registers. Depends on shapes only: strides do not change the bits.
    """
    if dtype == torch.float32:
        return {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_D": 16, "num_warps": 8, "num_stages": 3}
    if D % 16 or F % 16:
        return {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_D": 32, "num_warps": 4, "num_stages": 2}
    return {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_D": 64, "num_warps": 8, "num_stages": 3}


_PASS = {"ROWS": SUM_ROWS, "STEP": 8, "BLOCK_N": 256, "num_warps": 4}
_RELU_ROWS = {"ROWS": 4, "BLOCK_N": 512, "num_warps": 4}
_SUM = {"STEP": 16, "BLOCK_N": 64, "num_warps": 4}


def sigmoid_encode(
    x_BD: torch.Tensor,
    W_FD: torch.Tensor,
    b_F: torch.Tensor,
    row_weight_B: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(f_BF in the dtype of x, mean_F fp32): f = sigmoid(x W^T + b) and mean_j = sum_b w_b f_bj /
    sum_b w_b, from unrounded f.

    x is fp32 or bf16; W is cast to the dtype of x. Without weights every row counts once. The mean
    over zero rows is NaN. Raises ValueError for shapes or dtypes that do not fit.
    """
    (B, D), F = x_BD.shape, W_FD.shape[0]
    _check(
        "sigmoid_encode",
        {"W": (W_FD, (F, D)), "b": (b_F, (F,)), "row_weight": (row_weight_B, (B,))},
        x_BD,
    )
    f_BF = x_BD.new_empty(B, F)
    if B == 0 or F == 0:
        return f_BF, x_BD.new_full((F,), torch.nan, dtype=torch.float32)
    config = _product_config(x_BD.dtype, D, F)
    x_BD, W_FD = unit_stride(x_BD), unit_stride(W_FD.to(x_BD.dtype))
    partial_RF = x_BD.new_empty(cdiv(B, config["BLOCK_M"]), F, dtype=torch.float32)
    _sigmoid_encode_kernel[_product_grid(B, F, config)](
        x_BD, x_BD.stride(0), W_FD, W_FD.stride(0), b_F.contiguous(), _contiguous(row_weight_B),
        f_BF, partial_RF, B, F, D,
        WEIGHTED=row_weight_B is not None, GROUP=GROUP_ROWS, UPCAST=INTERPRETED, **config,
    )  # fmt: skip
    return f_BF, _sum_partials(partial_RF) / (
        B if row_weight_B is None else row_weight_B.sum(dtype=torch.float32)
    )


def sigmoid_dpre(
    g_BD: torch.Tensor,
    W_dec_FD: torch.Tensor,
    f_BF: torch.Tensor,
    c_F: torch.Tensor,
    row_weight_B: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(dpre_BF in the dtype of f, db_F fp32): dpre = (g W_dec^T + c_j w_b) f (1 - f) and its sum
    over rows.

    The product runs in the dtype of f (fp32 or bf16). `c_F` is the derivative of the penalty with
    respect to a code of weight 1.
    """
    (B, F), D = f_BF.shape, W_dec_FD.shape[1]
    shapes = {
        "g": (g_BD, (B, D)),
        "W_dec": (W_dec_FD, (F, D)),
        "c": (c_F, (F,)),
        "row_weight": (row_weight_B, (B,)),
    }
    _check("sigmoid_dpre", shapes, f_BF)
    dpre_BF = f_BF.new_empty(B, F)
    if B == 0 or F == 0:
        return dpre_BF, f_BF.new_zeros(F, dtype=torch.float32)
    config = _product_config(f_BF.dtype, D, F)
    g_BD, W_dec_FD = unit_stride(g_BD.to(f_BF.dtype)), unit_stride(W_dec_FD.to(f_BF.dtype))
    f_BF = unit_stride(f_BF)
    partial_RF = f_BF.new_empty(cdiv(B, config["BLOCK_M"]), F, dtype=torch.float32)
    _sigmoid_dpre_kernel[_product_grid(B, F, config)](
        g_BD, g_BD.stride(0), W_dec_FD, W_dec_FD.stride(0), f_BF, f_BF.stride(0), c_F.contiguous(),
        _contiguous(row_weight_B), dpre_BF, partial_RF, B, F, D,
        WEIGHTED=row_weight_B is not None, GROUP=GROUP_ROWS, UPCAST=INTERPRETED, **config,
    )  # fmt: skip
    return dpre_BF, _sum_partials(partial_RF)


def sigmoid_pull(
    f_BF: torch.Tensor, c_F: torch.Tensor, row_weight_B: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(dpre_BF in the dtype of f, db_F fp32): dpre = c_j w_b f (1 - f), the gradient of only the
    penalty, and its sum over rows."""
    B, F = f_BF.shape
    _check("sigmoid_pull", {"c": (c_F, (F,)), "row_weight": (row_weight_B, (B,))}, f_BF)
    dpre_BF = f_BF.new_empty(B, F)
    if B == 0 or F == 0:
        return dpre_BF, f_BF.new_zeros(F, dtype=torch.float32)
    f_BF = unit_stride(f_BF)
    partial_RF = f_BF.new_empty(cdiv(B, SUM_ROWS), F, dtype=torch.float32)
    _sigmoid_pull_kernel[(len(partial_RF), cdiv(F, _PASS["BLOCK_N"]))](
        f_BF, f_BF.stride(0), c_F.contiguous(), _contiguous(row_weight_B), dpre_BF, partial_RF, B,
        F,
        WEIGHTED=row_weight_B is not None, **_PASS,
    )  # fmt: skip
    return dpre_BF, _sum_partials(partial_RF)


def relu_forward(pre_BF: torch.Tensor, norm_F: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(l1_B fp32, nnz_B int32); pre_BF becomes z = ReLU(pre) in place. l1_b = sum_j z_bj norm_j;
    NaN stays NaN and counts as active.

    pre may be fp32, bf16 or fp16 and must have unit column stride, since it is written.
    """
    B, F = pre_BF.shape
    _check("relu_forward", {"norm": (norm_F, (F,))}, pre_BF, half=True)
    _check_written("pre", pre_BF)
    l1_B, nnz_B = pre_BF.new_zeros(B, dtype=torch.float32), pre_BF.new_zeros(B, dtype=torch.int32)
    if B and F:
        grid = (cdiv(B, _RELU_ROWS["ROWS"]),)
        _relu_forward_kernel[grid](
            pre_BF, pre_BF.stride(0), norm_F.contiguous(), l1_B, nnz_B, B, F, **_RELU_ROWS
        )
    return l1_B, nnz_B


def relu_backward(z_BF: torch.Tensor, dz_BF: torch.Tensor, pull_F: torch.Tensor) -> torch.Tensor:
    """db_F fp32; dz_BF becomes dpre in place: dz + pull_j where z is active (z > 0 or NaN), 0
    elsewhere. db is its sum over rows.

    z and dz may be fp32, bf16 or fp16; dz must have unit column stride.
    """
    B, F = z_BF.shape
    _check("relu_backward", {"dz": (dz_BF, (B, F)), "pull": (pull_F, (F,))}, z_BF, half=True)
    _check_written("dz", dz_BF)
    if B == 0 or F == 0:
        return z_BF.new_zeros(F, dtype=torch.float32)
    z_BF = unit_stride(z_BF)
    partial_RF = z_BF.new_empty(cdiv(B, SUM_ROWS), F, dtype=torch.float32)
    _relu_backward_kernel[(len(partial_RF), cdiv(F, _PASS["BLOCK_N"]))](
        z_BF, z_BF.stride(0), dz_BF, dz_BF.stride(0), pull_F.contiguous(), partial_RF, B, F, **_PASS
    )
    return _sum_partials(partial_RF)


def _sum_partials(partial_RF: torch.Tensor) -> torch.Tensor:
    R, F = partial_RF.shape
    if R == 1:
        return partial_RF[0]
    total_F = partial_RF.new_empty(F)
    _sum_partials_kernel[(cdiv(F, _SUM["BLOCK_N"]),)](partial_RF, total_F, R, F, **_SUM)
    return total_F


def _product_grid(B: int, F: int, config: dict[str, int]) -> tuple[int]:
    return (cdiv(B, config["BLOCK_M"]) * cdiv(F, config["BLOCK_N"]),)


def _contiguous(t: torch.Tensor | None) -> torch.Tensor | None:
    return None if t is None else t.contiguous()


def _check(
    name: str,
    shapes: dict[str, tuple[torch.Tensor | None, tuple[int, ...]]],
    lead: torch.Tensor,
    half: bool = False,
) -> None:
    """Check the dtype of `lead`, the shapes of the others, and that a kernel can run on all."""
    if lead.dtype not in (torch.float32, torch.bfloat16, *((torch.float16,) if half else ())):
        raise ValueError(f"{name} takes fp32 or bf16{' or fp16' if half else ''}, got {lead.dtype}")
    tensors = {label: (t, shape) for label, (t, shape) in shapes.items() if t is not None}
    for label, (t, shape) in tensors.items():
        if t.shape != shape or not t.is_floating_point():
            raise ValueError(
                f"{name}: {label} must be floating point of shape {shape}, got {t.dtype}"
                f" {tuple(t.shape)}"
            )
    if not launchable(lead, *(t for t, _ in tensors.values())):
        raise ValueError(
            f"{name}: Triton kernels need CUDA tensors, or TRITON_INTERPRET=1 before triton is"
            " imported"
        )


def _check_written(label: str, t: torch.Tensor) -> None:
    if t.shape[1] > 1 and t.stride(1) != 1:
        raise ValueError(
            f"{label} is written in place and must have unit column stride, got strides"
            f" {t.stride()}"
        )


# -- compile-time cases ----------------------------------------------------------------------------


def cases() -> list[Case]:
    return [
        *_sigmoid_cases("d=768 F=24576 bf16", torch.bfloat16, 768, 24576, False),
        *_sigmoid_cases("d=4096 F=131072 bf16 weighted", torch.bfloat16, 4096, 131072, True),
        *_sigmoid_cases("d=33 F=1001 bf16", torch.bfloat16, 33, 1001, False),
        *_sigmoid_cases("d=768 F=24576 fp32", torch.float32, 768, 24576, False),
        *_relu_cases("F=24576 bf16", torch.bfloat16),
        *_relu_cases("F=24576 fp32", torch.float32),
        _pass_case(
            "F=24576",
            _sum_partials_kernel,
            {"partial_ptr": "*fp32", "total_ptr": "*fp32", "R": "i32", "F": "i32"},
            _SUM,
        ),
    ]


def _sigmoid_cases(label: str, dtype: torch.dtype, D: int, F: int, weighted: bool) -> list[Case]:
    fp32 = POINTER[torch.float32]
    x = POINTER[dtype]
    sizes = {"B": "i32", "F": "i32", "D": "i32"} | ({"weight_ptr": fp32} if weighted else {})
    config = _product_config(dtype, D, F)
    options = {
        "num_warps": config.pop("num_warps"),
        "num_stages": config.pop("num_stages"),
        "tensor_cores": dtype != torch.float32,
    }
    weight = {"WEIGHTED": weighted} | ({} if weighted else {"weight_ptr": None})
    constants = config | weight | {"GROUP": GROUP_ROWS, "UPCAST": False}
    encode = {
        "x_ptr": x,
        "x_stride": "i32",
        "w_ptr": x,
        "w_stride": "i32",
        "b_ptr": fp32,
        "f_ptr": x,
        "partial_ptr": fp32,
    }
    dpre = {
        "g_ptr": x,
        "g_stride": "i32",
        "w_ptr": x,
        "w_stride": "i32",
        "f_ptr": x,
        "f_stride": "i32",
        "c_ptr": fp32,
    }
    dpre |= {"dpre_ptr": x, "partial_ptr": fp32}
    pull = {
        "f_ptr": x,
        "f_stride": "i32",
        "c_ptr": fp32,
        "dpre_ptr": x,
        "partial_ptr": fp32,
    } | sizes
    del pull["D"]
    aligned = (
        ("x_stride", "g_stride", "w_stride", "f_stride", "F", "D")
        if D % 16 == 0 and F % 16 == 0
        else ()
    )
    return [
        Case(label, _sigmoid_encode_kernel, encode | sizes, constants, aligned=aligned, **options),
        Case(label, _sigmoid_dpre_kernel, dpre | sizes, constants, aligned=aligned, **options),
        _pass_case(label, _sigmoid_pull_kernel, pull, _PASS | weight),
    ]


def _relu_cases(label: str, dtype: torch.dtype) -> list[Case]:
    z, fp32 = POINTER[dtype], POINTER[torch.float32]
    sizes = {"B": "i32", "F": "i32"}
    forward = {
        "pre_ptr": z,
        "stride": "i32",
        "norm_ptr": fp32,
        "l1_ptr": fp32,
        "nnz_ptr": "*i32",
    } | sizes
    backward = {
        "z_ptr": z,
        "z_stride": "i32",
        "dz_ptr": z,
        "dz_stride": "i32",
        "pull_ptr": fp32,
        "partial_ptr": fp32,
    } | sizes
    return [
        _pass_case(label, _relu_forward_kernel, forward, _RELU_ROWS),
        _pass_case(label, _relu_backward_kernel, backward, _PASS),
    ]


def _pass_case(label: str, kernel: Any, signature: dict[str, str], config: dict[str, Any]) -> Case:
    constants = {key: value for key, value in config.items() if key != "num_warps"}
    aligned = tuple(
        name for name, kind in signature.items() if kind == "i32" and name not in ("B", "R")
    )
    return Case(
        label,
        kernel,
        signature,
        constants,
        num_warps=config["num_warps"],
        num_stages=3,
        aligned=aligned,
    )
