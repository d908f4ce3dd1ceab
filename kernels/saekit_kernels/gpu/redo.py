"""The exact repair of rows that a filter could not decide: any number of them, without asking the
device how many.

A small fixed grid: program p takes the flagged rows p, p+P, ... from a list made on the device,
computes all F pre-activations of a row in fp32 into its scratch row and selects from it
(gpu/select.py). It exits at once when no row is flagged. A row costs one read of W, about 2 ms per
program at d = 768, F = 24,576 (estimated from the instructions). Rows with a NaN, the only rows of
a diverged run, need no W at all.
"""

from __future__ import annotations

import torch
import triton.language as tl

from saekit_kernels.codes import SparseCodes
from saekit_kernels.gpu.runtime import POINTER, Case, jit
from saekit_kernels.gpu.select import groups_for, select_row

REDO_PROGRAMS = 128  # scratch: 128 rows of F fp32, 67 MB at F = 131,072


@jit
def redo_kernel(
    x_ptr, w_ptr, b_ptr, order_ptr, flagged_ptr, scratch_ptr, list_ptr, vals_ptr, idx_ptr, nnz_ptr,
    F, D, k, x_stride, w_stride,
    PROGRAMS: tl.constexpr, GROUPS: tl.constexpr, BF: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    scratch = scratch_ptr + program * F
    lane = tl.arange(0, GROUPS)
    for i in range(program, tl.load(flagged_ptr).to(tl.int64), PROGRAMS):
        row = tl.load(order_ptr + i).to(tl.int64)
        x_row = x_ptr + row * x_stride
        to = row * k
        nans = tl.zeros((GROUPS,), tl.int32)
        for start in range(0, D, GROUPS):
            x = tl.load(x_row + start + lane, mask=start + lane < D, other=0.0).to(tl.float32)
            nans += (x != x).to(tl.int32)
        # With a NaN in x, every pre-activation is NaN and the first k columns are chosen. In a
        # diverged run every row is flagged.
        if tl.sum(nans) > 0:  # pyright: ignore[reportOperatorIssue]
            for start in range(0, k, GROUPS):
                tl.store(vals_ptr + to + start + lane, float("nan"), mask=start + lane < k)
                tl.store(idx_ptr + to + start + lane, start + lane, mask=start + lane < k)
            tl.store(nnz_ptr + row, k)
        else:
            for first in range(0, F, BF):
                cols = first + tl.arange(0, BF).to(tl.int64)
                acc = tl.zeros((BF, BD), tl.float32)
                for start in range(0, D, BD):
                    at = start + tl.arange(0, BD)
                    x = tl.load(x_row + at, mask=at < D, other=0.0).to(tl.float32)
                    inside = (cols[:, None] < F) & (at[None, :] < D)
                    acc += (
                        tl.load(
                            w_ptr + cols[:, None] * w_stride + at[None, :], mask=inside, other=0.0
                        ).to(tl.float32)
                        * x[None, :]
                    )
                pre = tl.sum(acc, 1) + tl.load(b_ptr + cols, mask=cols < F, other=0.0).to(
                    tl.float32
                )
                tl.store(scratch + cols, pre, mask=cols < F)
            tl.debug_barrier()  # threads read parts of the scratch row that others wrote
            select_row(
                scratch, scratch, F, k, list_ptr + program * GROUPS, vals_ptr + to, idx_ptr + to,
                nnz_ptr + row, "values", 1, GROUPS
            )  # fmt: skip
        tl.debug_barrier()  # scratch and list may be overwritten now


def redo_rows(
    x_BD: torch.Tensor,
    W_FD: torch.Tensor,
    b_F: torch.Tensor,
    codes: SparseCodes,
    flag_B: torch.Tensor,
) -> torch.Tensor:
    """Redo flagged rows exactly, in place; returns how many (int32, device)."""
    B, F, k = len(codes), codes.F, codes.capacity
    # The flagged rows first; their number stays on the device.
    order = torch.argsort(flag_B, descending=True, stable=True)
    flagged = flag_B.sum(dtype=torch.int32)
    programs = min(REDO_PROGRAMS, B)
    groups, _ = groups_for(F, k)
    scratch = torch.empty(programs, F, device=x_BD.device)
    lists = torch.empty(programs, groups, dtype=torch.int32, device=x_BD.device)
    redo_kernel[(programs,)](
        x_BD, W_FD, b_F, order, flagged, scratch, lists, codes.vals, codes.idx, codes.nnz,
        F, x_BD.shape[1], k, x_BD.stride(0), W_FD.stride(0),
        PROGRAMS=programs, GROUPS=groups, BF=64, BD=64, num_warps=8,
    )  # fmt: skip
    return flagged


def cases() -> list[Case]:
    def case(dtype: torch.dtype, F: int, k: int) -> Case:
        signature = {"x_ptr": POINTER[dtype], "w_ptr": POINTER[dtype], "b_ptr": "*fp32"}
        signature |= {"order_ptr": "*i64", "flagged_ptr": "*i32", "scratch_ptr": "*fp32"}
        signature |= {"list_ptr": "*i32", "vals_ptr": "*fp32", "idx_ptr": "*i32", "nnz_ptr": "*i32"}
        signature |= dict.fromkeys(("F", "D", "k", "x_stride", "w_stride"), "i32")
        constants = {
            "PROGRAMS": REDO_PROGRAMS,
            "GROUPS": groups_for(F, k)[0],
            "BF": 64,
            "BD": 64,
        }
        name, aligned = f"redo {dtype} F={F} k={k}", ("F", "D", "k", "x_stride", "w_stride")
        return Case(name, redo_kernel, signature, constants, 8, aligned=aligned)

    return [case(torch.bfloat16, 24576, 32), case(torch.float32, 131072, 2048)]
