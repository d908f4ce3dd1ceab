"""K9: TopK encoding with an int8 filter and exact re-scoring. Off by default.

x and W are quantised to int8 with one scale a row: x = x^ + dx, w = w^ + dw. The filter GEMM computes x^.w^ exactly (int32), and

    |x.w - x^.w^| = |dx.w^ + x.dw| <= ||dx|| ||w^|| + ||x|| ||dw||

brackets every pre-activation: lower <= pre <= upper, with 2^-20 ||x|| ||w|| and 2^-20 |b| on top for the fp32 arithmetic and all norms
rounded up. So nothing is lost when entries with upper >= bound are kept and k of them turn out to have lower >= L >= bound: then the k-th
pre-activation is at least L, and every chosen entry has upper >= L. Those are re-scored in fp32 from the original x and W, and the k
largest are taken. A row where this cannot be shown (full slots, too many to re-score, NaN or inf) is redone as in gpu/filter.py.

The bracket is rigorous, hence wide. Half of it in standard deviations of the pre-activations, Gaussian x and W: 0.42 at d = 768, 1.10 at
d = 4096, where the quantisation itself errs by 0.01. Entries that must be re-scored: 370 of 24,576 (k = 32), but 18,000 of 131,072
(k = 64), more than the 2,048 that a row may list, so that every row would be redone: look at the count that comes back. An int8 GEMM
saves at most half of the bf16 one, and re-scoring n entries costs 184 n / F of it (docs/kernels.md): a gain needs large d and rows whose
largest pre-activations stand out by several standard deviations. Not measured on a device; hence off.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from saekit_kernels.codes import SparseCodes
from saekit_kernels.gpu.encode import bound_kernel, checked, products, sample_plan
from saekit_kernels.gpu.filter import chunk_rows, put_in_slots, slots_for, tile_of
from saekit_kernels.gpu.quantise import Quantised, half_width, quantise
from saekit_kernels.gpu.redo import redo_rows
from saekit_kernels.gpu.runtime import POINTER, Case, cdiv
from saekit_kernels.gpu.select import (
    BOUND_LOWEST_BIT,
    check_k,
    columns_at,
    groups_for,
    keys_at,
    kth_key,
    new_codes,
    positive_key,
    select_row,
)

CONFIG = {"BM": 128, "BN": 128, "BK": 128, "num_warps": 8, "num_stages": 3}
MAX_D = 2**17  # 127^2 d must stay below 2^31
RESCORE_SPLIT = 4  # programs that share the listed columns of a row


@triton.jit
def upper_keys(
    acc, rows, cols, x_scale_ptr, x_norm_ptr, x_error_ptr, w_scale_ptr, w_hat_ptr, w_error_ptr, b_ptr, bound_ptr, B, F
):  # fmt: skip
    """Keys of the upper ends that reach the row's bound, 0 elsewhere; an upper end that is NaN reaches everything."""
    x_scale = tl.load(x_scale_ptr + rows, mask=rows < B, other=0.0)[:, None]
    x_norm = tl.load(x_norm_ptr + rows, mask=rows < B, other=0.0)[:, None]
    x_error = tl.load(x_error_ptr + rows, mask=rows < B, other=0.0)[:, None]
    w_scale = tl.load(w_scale_ptr + cols, mask=cols < F, other=0.0)[None, :]
    w_hat = tl.load(w_hat_ptr + cols, mask=cols < F, other=0.0)[None, :]
    w_error = tl.load(w_error_ptr + cols, mask=cols < F, other=0.0)[None, :]
    b = tl.load(b_ptr + cols, mask=cols < F, other=0.0).to(tl.float32)[None, :]
    upper = acc.to(tl.float32) * (x_scale * w_scale) + b + half_width(x_norm, x_error, w_hat, w_error, b)
    key = positive_key(upper)
    keep = key >= tl.load(bound_ptr + rows, mask=rows < B, other=0)[:, None]
    return tl.where(keep & (rows[:, None] < B) & (cols[None, :] < F), key, 0)


@triton.jit
def lowbit_filter_kernel(
    x_ptr, w_ptr, x_scale_ptr, x_norm_ptr, x_error_ptr, w_scale_ptr, w_hat_ptr, w_error_ptr, b_ptr, bound_ptr, slot_ptr, count_ptr,
    B, F, D, tiles, SLOTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):  # fmt: skip
    row0, tile = tile_of(tl.program_id(0).to(tl.int64), B, tiles, BM)
    rows = row0.to(tl.int64) + tl.arange(0, BM)
    col0 = tile.to(tl.int64) * BN
    cols = col0 + tl.arange(0, BN)
    at = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), tl.int32)
    for start in range(0, D, BK):
        inside = start + at[None, :] < D
        x = tl.load(x_ptr + rows[:, None] * D + start + at[None, :], mask=inside & (rows[:, None] < B), other=0)
        w = tl.load(w_ptr + cols[:, None] * D + start + at[None, :], mask=inside & (cols[:, None] < F), other=0)
        acc = tl.dot(x, w.T, acc, input_precision="ieee", out_dtype=tl.int32)
    # As in filter_kernel: 32 columns after the other.
    used = tl.zeros((BM,), tl.int32)
    slot_ptr += (row0 * tiles + tile) * SLOTS
    slots_at = tl.arange(0, BM) * (tiles * SLOTS)
    halves = tl.split(tl.permute(tl.reshape(acc, (BM, 2, BN // 2)), (0, 2, 1)))
    for h in tl.static_range(2):
        quarters = tl.split(tl.permute(tl.reshape(halves[h], (BM, 2, 32)), (0, 2, 1)))
        for q in tl.static_range(2):
            cols = col0 + h * 64 + q * 32 + tl.arange(0, 32)
            key = upper_keys(
                quarters[q], rows, cols, x_scale_ptr, x_norm_ptr, x_error_ptr, w_scale_ptr, w_hat_ptr, w_error_ptr, b_ptr, bound_ptr, B, F
            )  # fmt: skip
            used = put_in_slots(key, cols, used, slot_ptr, slots_at, SLOTS)
    tl.store(count_ptr + rows * tiles + tile, used, mask=rows < B)


@triton.jit
def narrow_kernel(
    x_norm_ptr, x_error_ptr, w_hat_ptr, w_error_ptr, b_ptr, slot_ptr, count_ptr, bound_ptr, list_ptr, found_ptr, flag_ptr, k, tiles,
    SLOTS: tl.constexpr, GROUPS: tl.constexpr
):  # fmt: skip
    """One row: prove that the candidates suffice and list the columns that can still be chosen; or flag the row and list none."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, GROUPS)
    n = tiles * SLOTS
    slot_ptr += row * n * 2
    count_ptr += row * tiles
    x_norm = tl.load(x_norm_ptr + row)
    x_error = tl.load(x_error_ptr + row)
    # L from group maxima of the lower ends, as in select.group_bound.
    best = tl.zeros((GROUPS,), tl.int32)
    fullest = tl.zeros((GROUPS,), tl.int32)
    for start in range(0, n, GROUPS):
        at = start + lane
        used = tl.load(count_ptr + at // SLOTS, mask=at < n, other=0)
        fullest = tl.maximum(fullest, used)
        there = (at < n) & (at % SLOTS < used)
        col = tl.load(slot_ptr + 2 * at, mask=there, other=0)
        upper = tl.load(slot_ptr + 2 * at + 1, mask=there, other=0).to(tl.float32, bitcast=True)
        w_hat = tl.load(w_hat_ptr + col, mask=there, other=0.0)
        w_error = tl.load(w_error_ptr + col, mask=there, other=0.0)
        b = tl.load(b_ptr + col, mask=there, other=0.0).to(tl.float32)
        lower = upper - 2.0 * half_width(x_norm, x_error, w_hat, w_error, b)
        best = tl.maximum(best, tl.where(there & (lower == lower), positive_key(lower), 0))  # NaN bounds nothing from below
    least = kth_key(best, k, BOUND_LOWEST_BIT)
    bound = tl.load(bound_ptr + row)
    failed = (tl.max(fullest) > SLOTS) | ((least < bound) & (bound > 1))
    least = tl.maximum(least, 1)
    found = tl.full((), 0, tl.int32)
    for start in range(0, n, GROUPS):
        at = start + lane
        keep = (keys_at(slot_ptr, count_ptr, at, n, "slots", SLOTS) >= least).to(tl.int32)
        to = found + tl.cumsum(keep, 0) - keep
        col = columns_at(slot_ptr, at, keep > 0, "slots")
        tl.store(list_ptr + row * GROUPS + to, col, mask=(keep > 0) & (to < GROUPS))
        found += tl.sum(keep)
    failed = failed | (found > GROUPS)
    tl.store(flag_ptr + row, failed.to(tl.int32))
    tl.store(found_ptr + row, tl.where(failed, 0, found))


@triton.jit
def rescore_kernel(
    x_ptr, w_ptr, b_ptr, list_ptr, found_ptr, pair_ptr, D, x_stride, w_stride, GROUPS: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """Pairs (column, key of the fp32 pre-activation) of BC listed columns of a row; programs behind the end of the list have no work."""
    row = tl.program_id(0).to(tl.int64)
    found = tl.load(found_ptr + row)
    for start in range(tl.program_id(1).to(tl.int64) * BC, found, tl.num_programs(1) * BC):
        c = start + tl.arange(0, BC)
        col = tl.load(list_ptr + row * GROUPS + c, mask=c < found, other=0).to(tl.int64)
        acc = tl.zeros((BC, BD), tl.float32)
        for first in range(0, D, BD):
            d = first + tl.arange(0, BD)
            x = tl.load(x_ptr + row * x_stride + d, mask=d < D, other=0.0).to(tl.float32)
            inside = (c[:, None] < found) & (d[None, :] < D)
            acc += tl.load(w_ptr + col[:, None] * w_stride + d[None, :], mask=inside, other=0.0).to(tl.float32) * x[None, :]
        pre = tl.sum(acc, 1) + tl.load(b_ptr + col, mask=c < found, other=0.0).to(tl.float32)
        pair = pair_ptr + (row * GROUPS + c) * 2
        tl.store(pair, col.to(tl.int32), mask=c < found)
        tl.store(pair + 1, positive_key(pre), mask=c < found)


@triton.jit
def select_pairs_kernel(pair_ptr, found_ptr, list_ptr, vals_ptr, idx_ptr, nnz_ptr, k, GROUPS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    to = row * k
    select_row(
        pair_ptr + row * GROUPS * 2, found_ptr + row, tl.load(found_ptr + row), k, list_ptr + row * GROUPS, vals_ptr + to, idx_ptr + to,
        nnz_ptr + row, "slots", GROUPS, GROUPS
    )  # fmt: skip


def lower_bounds(x: Quantised, W: Quantised, b_F: torch.Tensor, stride: int, rank: int) -> torch.Tensor:
    """(B,) keys that `rank` lower ends of a column sample reach. They need not be right: narrow_kernel proves or flags."""
    some = slice(None, None, stride)
    exact = torch.bfloat16 if x.q.is_cuda else torch.float32  # integers up to 127 are exact in bf16
    b = b_F[some].float().contiguous()
    lower = products(x.q.to(exact), W.q[some].to(exact)) * (x.scale[:, None] * W.scale[some])
    lower -= x.error[:, None] * W.hat[some] + x.norm[:, None] * W.error[some]
    bound = torch.empty(len(lower), dtype=torch.int32, device=lower.device)
    groups, warps = groups_for(len(b), rank)
    bound_kernel[(len(lower),)](lower.nan_to_num_(nan=0.0), b, bound, len(b), rank, lower.stride(0), GROUPS=groups, num_warps=warps)
    return bound


def rescore_groups(k: int) -> int:
    return 2048 if k <= 128 else 4096


def encode_topk_lowbit(x_BD: torch.Tensor, W_FD: torch.Tensor, b_F: torch.Tensor, k: int) -> tuple[SparseCodes, torch.Tensor]:
    """encode_topk of gpu/encode.py through an int8 filter: the same codes, and the number of rows that were redone.

    W is quantised at every call. Raises ValueError when k is not in [1, F] or D exceeds 131,072.
    """
    x_BD, W_FD, b_F = checked(x_BD, W_FD, b_F)
    (B, D), F = x_BD.shape, len(W_FD)
    check_k("k", k, F, B)
    if D > MAX_D:
        raise ValueError(f"int32 sums of int8 products hold up to {MAX_D} columns, got {D}")
    codes = new_codes(B, k, F, x_BD.device)
    if B == 0:
        return codes, torch.zeros((), dtype=torch.int32, device=x_BD.device)
    W = quantise(W_FD)
    stride, rank = sample_plan(F, k)
    # The bracket lets several times as many through as have their lower end above the bound.
    slots, tiles, groups = slots_for(4 * stride * rank, F, CONFIG["BN"]), cdiv(F, CONFIG["BN"]), rescore_groups(k)
    total, flag = torch.zeros(2, B, dtype=torch.int32, device=x_BD.device)
    rows = min(chunk_rows(F, slots, CONFIG), B)
    slot = torch.empty(rows, tiles * slots, dtype=torch.int64, device=x_BD.device)
    count = torch.empty(rows, tiles, dtype=torch.int32, device=x_BD.device)
    pairs = torch.empty(rows, groups, 2, dtype=torch.int32, device=x_BD.device)
    lists, found = torch.empty_like(pairs[..., 0]), torch.empty_like(pairs[:, 0, 0])
    for start in range(0, B, rows):
        part = slice(start, min(start + rows, B))
        x = quantise(x_BD[part])
        n = len(x.scale)
        bound = lower_bounds(x, W, b_F, stride, rank)
        lowbit_filter_kernel[(cdiv(n, CONFIG["BM"]) * tiles,)](
            x.q, W.q, x.scale, x.norm, x.error, W.scale, W.hat, W.error, b_F, bound, slot, count, n, F, D, tiles, SLOTS=slots,
            **CONFIG,
        )  # fmt: skip
        narrow_kernel[(n,)](
            x.norm, x.error, W.hat, W.error, b_F, slot.view(torch.int32), count, bound, lists, found, flag[part], k, tiles,
            SLOTS=slots, GROUPS=groups, num_warps=8,
        )  # fmt: skip
        rescore_kernel[(n, RESCORE_SPLIT)](
            x_BD[part], W_FD, b_F, lists, found, pairs, D, x_BD.stride(0), W_FD.stride(0), GROUPS=groups, BC=32, BD=128, num_warps=4
        )
        select_pairs_kernel[(n,)](
            pairs, found, lists, codes.vals[part], codes.idx[part], codes.nnz[part], k, GROUPS=groups, num_warps=8
        )  # fmt: skip
    return codes, redo_rows(x_BD, W_FD, b_F, codes, total, flag)


def cases() -> list[Case]:
    norms = dict.fromkeys(("scale_ptr", "norm_ptr", "hat_ptr", "error_ptr"), "*fp32")
    sides = {f"{side}_{name}": "*fp32" for side in "xw" for name in norms}
    other = {"slot_ptr": "*i64", "count_ptr": "*i32", "bound_ptr": "*i32", "b_ptr": "*fp32", "pair_ptr": "*i32", "found_ptr": "*i32"}
    other |= {"list_ptr": "*i32", "vals_ptr": "*fp32", "idx_ptr": "*i32", "nnz_ptr": "*i32", "flag_ptr": "*i32"}
    ints = dict.fromkeys(("B", "F", "D", "k", "x_stride", "w_stride", "tiles"), "i32")

    def case(name, kernel, pointers, constants, num_warps, num_stages=2, tensor_cores=False) -> Case:
        known = norms | sides | other | ints | pointers
        signature = {a: known[a] for a in kernel.arg_names if a not in constants}
        aligned = tuple(a for a in ("F", "D", "x_stride", "w_stride") if a in signature)
        return Case(name, kernel, signature, constants, num_warps, num_stages, tensor_cores, aligned)

    out = []
    blocks = {a: CONFIG[a] for a in ("BM", "BN", "BK")}
    for F, k in ((24576, 32), (131072, 64)):
        stride, rank = sample_plan(F, k)
        slots = slots_for(4 * stride * rank, F, CONFIG["BN"])
        pointers, constants = {"x_ptr": "*i8", "w_ptr": "*i8"}, {"SLOTS": slots} | blocks
        warps, stages = CONFIG["num_warps"], CONFIG["num_stages"]
        out.append(case(f"int8 filter F={F}", lowbit_filter_kernel, pointers, constants, warps, stages, True))
    for dtype in (torch.bfloat16, torch.float32):
        pointers = {"x_ptr": POINTER[dtype], "w_ptr": POINTER[dtype]}
        out.append(case(f"rescore {dtype}", rescore_kernel, pointers, {"GROUPS": rescore_groups(32), "BC": 32, "BD": 128}, 4))
    for k in (32, 512):
        groups = {"GROUPS": rescore_groups(k)}
        out.append(case(f"narrow k={k}", narrow_kernel, {"slot_ptr": "*i32"}, {"SLOTS": 32} | groups, 8))
        out.append(case(f"select pairs k={k}", select_pairs_kernel, {}, groups, 8))
    return out
