"""The encoder: rows x -> codes, in two plans and four policies.

TopK, plan "gemm": the vendor's GEMM in row chunks (256 MB of fp32 pre-activations at a time), then
one read by select_topk. Plan "fused": K1, gpu/filter.py, with a bound from a column sample: the
pre-activations of every S-th latent (S = 32: 3 % more FLOPs) and their r-th largest, r = k/S + 4
sqrt(k/S) + 4. About S r entries of a row pass it (k = 32: 288), and fewer than k in one of 10^6
rows; those are redone exactly, so the sample affects the time and never the result. Plan "auto" is
fused for 16-bit inputs up to d = 1536: not writing B x F saves 48 % of the GEMM at d = 768 and 16 %
at d = 2304, and a Triton GEMM at 85 % of the vendor's loses 18 % (docs/kernels.md; modeled, not
measured on a device). An fp32 GEMM takes ten times as long, so there is little to save, and
Triton's runs on plain FMAs.

ReLU, JumpReLU and BatchTopK's inference are the same filter with a threshold per column, or one
for all. BatchTopK's training takes the `capacity` + 1 largest of each row and then the B k largest
of these: if no row has more than `capacity` winners, which the extra entry shows, they are the B k
largest of all.

Keys, ties, NaN and non-positive values: gpu/select.py. Nothing here has a gradient, and nothing
waits for the device.
"""

from __future__ import annotations

import torch
import triton.language as tl

from saekit_kernels.codes import SparseCodes
from saekit_kernels.gpu.filter import filter_rows
from saekit_kernels.gpu.redo import redo_rows
from saekit_kernels.gpu.runtime import Case, jit, unit_stride
from saekit_kernels.gpu.select import (
    check_k,
    group_bound,
    groups_for,
    new_codes,
    select_into,
    select_topk,
)

FUSED_UP_TO_D = 1536
PRE_BYTES = 1 << 28  # fp32 pre-activations held at a time
SAMPLE_STRIDE = 32
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@jit
def bound_kernel(pre_ptr, b_ptr, bound_ptr, n, rank, pre_stride, GROUPS: tl.constexpr):
    """A key that `rank` of the n sampled entries of a row reach. When fewer are positive, the key
    is 1, which every positive entry reaches."""
    row = tl.program_id(0).to(tl.int64)
    bound = group_bound(pre_ptr + row * pre_stride, b_ptr, n, rank, "biased", 1, GROUPS)
    tl.store(bound_ptr + row, tl.maximum(bound, 1))


def checked(x_BD, W_FD, b_F) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Detached, with unit stride along the rows. Raises ValueError where shapes, dtypes or devices
    do not fit."""
    if (
        x_BD.ndim != 2
        or W_FD.ndim != 2
        or b_F.shape != W_FD.shape[:1]
        or x_BD.shape[1] != W_FD.shape[1]
    ):
        raise ValueError(
            f"expected x (B,D), W (F,D), b (F), got {tuple(x_BD.shape)}, {tuple(W_FD.shape)},"
            f" {tuple(b_F.shape)}"
        )
    if any(t.dtype not in FLOATS for t in (x_BD, W_FD, b_F)):
        raise ValueError(
            f"expected fp32, bf16 or fp16, got {x_BD.dtype}, {W_FD.dtype}, {b_F.dtype}"
        )
    if len({t.device for t in (x_BD, W_FD, b_F)}) > 1:
        raise ValueError(
            f"x, W and b are on different devices: {x_BD.device}, {W_FD.device}, {b_F.device}"
        )
    return unit_stride(x_BD.detach()), unit_stride(W_FD.detach()), b_F.detach().contiguous()


def products(x_BD: torch.Tensor, W_FD: torch.Tensor) -> torch.Tensor:
    """x W^T in fp32 for inputs of any dtype: rounding it to bf16 would create ties. fp32 inputs
    follow torch.set_float32_matmul_precision."""
    if x_BD.is_cuda and x_BD.dtype == W_FD.dtype != torch.float32:
        return torch.mm(x_BD, W_FD.T, out_dtype=torch.float32)
    return torch.mm(x_BD.float(), W_FD.T.float())


def sample_plan(F: int, k: int) -> tuple[int, int]:
    """(stride, rank): every stride-th latent is sampled, and the rank-th largest of the sample is
    the bound. The sample has at least 4 rank latents unless the stride is 1."""
    stride = SAMPLE_STRIDE
    while True:
        mean = k / stride
        rank = int(mean + 4 * mean**0.5 + 4)
        if stride == 1 or F // stride >= 4 * rank:
            return stride, rank
        stride //= 2


def sample_bounds(
    x_BD: torch.Tensor, W_FD: torch.Tensor, b_F: torch.Tensor, stride: int, rank: int
) -> torch.Tensor:
    """(B,) int32 keys."""
    W, b, B = W_FD[::stride], b_F[::stride].float().contiguous(), len(x_BD)
    n = len(b)
    bound = torch.empty(B, dtype=torch.int32, device=x_BD.device)
    groups, warps = groups_for(n, rank)
    rows = max(PRE_BYTES // (4 * n), 1)
    for start in range(0, B, rows):
        pre = products(x_BD[start : start + rows], W)
        bound_kernel[(len(pre),)](
            pre,
            b,
            bound[start : start + rows],
            n,
            rank,
            pre.stride(0),
            GROUPS=groups,
            num_warps=warps,
        )
    return bound


def topk_gemm(
    x_BD: torch.Tensor, W_FD: torch.Tensor, b_F: torch.Tensor, codes: SparseCodes
) -> None:
    rows = max(PRE_BYTES // (4 * codes.F), 1)
    for start in range(0, len(codes), rows):
        select_into(codes, start, products(x_BD[start : start + rows], W_FD), b_F)


def topk_fused(
    x_BD, W_FD, b_F, codes: SparseCodes, enabled: torch.Tensor | None = None
) -> torch.Tensor:
    """K1 into codes; returns the number of rows redone. Only the sample is computed when `enabled`
    is 0 on the device."""
    stride, rank = sample_plan(codes.F, codes.capacity)
    bound = sample_bounds(x_BD, W_FD, b_F, stride, rank)
    total, flag = torch.zeros(2, len(codes), dtype=torch.int32, device=x_BD.device)
    filter_rows(
        x_BD, W_FD, b_F, stride * rank, "topk", codes, total, flag, bound=bound, enabled=enabled
    )
    return redo_rows(x_BD, W_FD, b_F, codes, total, flag)


def encode_topk(
    x_BD: torch.Tensor, W_FD: torch.Tensor, b_F: torch.Tensor, k: int, plan: str = "auto"
) -> tuple[SparseCodes, torch.Tensor]:
    """The k largest of ReLU(x W^T + b) of each row, and the number of rows that were redone (int32
    on the device).

    Exact on fp32 sums of the inputs as given. Raises ValueError when k is not in [1, F] or the plan
    is not auto, gemm or fused.
    """
    x, W, b = checked(x_BD, W_FD, b_F)
    B, F = len(x), len(W)
    check_k("k", k, F, B)
    if plan not in ("auto", "gemm", "fused"):
        raise ValueError(f"plan must be auto, gemm or fused, got {plan!r}")
    codes = new_codes(B, k, F, x.device)
    redone = torch.zeros((), dtype=torch.int32, device=x.device)
    if B == 0:
        return codes, redone
    if plan == "fused" or (
        plan == "auto" and x.shape[1] <= FUSED_UP_TO_D and x.dtype == W.dtype != torch.float32
    ):
        redone = topk_fused(x, W, b, codes)
    else:
        topk_gemm(x, W, b, codes)
    return codes, redone


def encode_threshold(
    x_BD: torch.Tensor, W_FD: torch.Tensor, b_F: torch.Tensor, theta: torch.Tensor, capacity: int
) -> tuple[SparseCodes, torch.Tensor]:
    """(codes, overflow_B): the pre-activations above theta (F,), or above one theta (0-d), and
    above 0; at most `capacity` per row.

    overflow_B (bool) says which rows had more than `capacity`: they keep the largest entries among
    those that the filter stored, and the others are lost. Raises ValueError when capacity is not in
    [1, F].
    """
    x, W, b = checked(x_BD, W_FD, b_F)
    B, F = len(x), len(W)
    check_k("capacity", capacity, F, B)
    if theta.shape not in ((), (F,)) or theta.dtype not in FLOATS or theta.device != x.device:
        raise ValueError(
            f"theta must be a float tensor () or ({F},) on {x.device}, got {theta.dtype}"
            f" {tuple(theta.shape)}"
        )
    codes, theta = new_codes(B, capacity, F, x.device), theta.detach()
    total, flag = torch.zeros(2, B, dtype=torch.int32, device=x.device)
    if B:
        filter_rows(x, W, b, capacity, "clip", codes, total, flag, theta=theta)
        redo_rows(x, W, b, codes, total, flag, theta)
    return codes, total > capacity


def encode_relu(
    x_BD: torch.Tensor, W_FD: torch.Tensor, b_F: torch.Tensor, capacity: int
) -> tuple[SparseCodes, torch.Tensor]:
    """(codes, overflow_B): the positive pre-activations, at most `capacity` per row:
    encode_threshold at 0."""
    return encode_threshold(x_BD, W_FD, b_F, torch.zeros((), device=x_BD.device), capacity)


def keys_of(vals: torch.Tensor) -> torch.Tensor:
    """positive_key of gpu/select.py in torch."""
    return torch.where(
        vals.isnan(), 0x7FFFFFFF, vals.float().contiguous().view(torch.int32).clamp(min=0)
    )


def encode_batchtopk(
    x_BD: torch.Tensor,
    W_FD: torch.Tensor,
    b_F: torch.Tensor,
    k: int,
    capacity: int,
    bound: torch.Tensor | None = None,
) -> tuple[SparseCodes, torch.Tensor, torch.Tensor]:
    """(codes, threshold, overflow_B): the B k largest positive pre-activations of the batch, ties
    to the smallest b F + j.

    threshold (0-d) is the smallest kept value, 0 when nothing is kept. overflow_B says which rows
    had more than `capacity` winners and lost the smaller ones. Only then are the codes not the B k
    largest of all, but of the `capacity` + 1 largest of each row: entries that an overflowing row
    cannot hold go to other rows.

    `bound` (0-d) is a guess below the threshold, such as 0.9 of the last step's: it saves the
    column sample's GEMM and most candidates. A wrong guess only costs time: when fewer than B k
    entries reach it, or one row in 32 has more candidates than slots, the device uses the bounds of
    encode_topk instead. Raises ValueError unless 1 <= k <= capacity <= F.
    """
    x, W, b = checked(x_BD, W_FD, b_F)
    B, F = len(x), len(W)
    check_k("capacity", capacity, F, B)
    if not 1 <= k <= capacity:
        raise ValueError(f"k must lie in [1, capacity = {capacity}], got {k}")
    if B == 0:
        return (
            new_codes(0, capacity, F, x.device),
            x.new_zeros((), dtype=torch.float32),
            x.new_zeros(0, dtype=torch.bool),
        )
    width = min(capacity + 1, F)
    check_k("capacity + 1", width, F, B)
    rows = new_codes(B, width, F, x.device)
    if bound is None:
        topk_fused(x, W, b, rows)
    else:
        largest_by_bound(x, W, b, rows, k, bound)
    return largest_of_batch(rows, k, capacity)


def largest_by_bound(x_BD, W_FD, b_F, codes: SparseCodes, k: int, bound: torch.Tensor) -> None:
    """The largest entries of each row that reach the bound, if there are B k of them in all;
    otherwise the largest entries of each row."""
    B = len(codes)
    key = keys_of(bound.detach().reshape(())).clamp(min=1)
    total, flag = torch.zeros(2, B, dtype=torch.int32, device=x_BD.device)
    filter_rows(x_BD, W_FD, b_F, codes.capacity, "complete", codes, total, flag, bound=key)
    # At key 1 every positive entry passes, so a lower bound would not find more.
    short = (total.clamp(max=codes.capacity).sum() < B * k) & (key > 1)
    crowded = flag.sum() * 32 > B
    again = (short | crowded).to(torch.int32)
    redo_rows(x_BD, W_FD, b_F, codes, total, flag * (1 - again))
    topk_fused(x_BD, W_FD, b_F, codes, enabled=again)


def largest_of_batch(
    rows: SparseCodes, k: int, capacity: int
) -> tuple[SparseCodes, torch.Tensor, torch.Tensor]:
    """The B k largest among the entries of all rows, then at most `capacity` per row."""
    # The B k largest keys; ties go to the smallest b F + j: rows and columns ascend.
    keys = keys_of(rows.vals)  # 0 on padding
    count = min(len(rows) * k, keys.numel())
    kth = keys.flatten().topk(count, sorted=False).values.amin()
    tied = (keys == kth) & (keys > 0)
    room = count - (keys > kth).sum()
    first = tied.flatten().cumsum(0, dtype=torch.int32).view_as(keys) <= room
    wins = (keys > kth) | (tied & first)
    # At most `capacity` per row, and the smallest. A key is the value's bits (NaN: INT_MAX).
    selected = select_topk(torch.where(wins, rows.vals, 0), capacity)
    idx = torch.where(selected.active(), rows.idx.gather(1, selected.idx.long()), 0)
    smallest = torch.where(selected.active(), keys_of(selected.vals), 0x7FFFFFFF).amin()
    threshold = torch.where(selected.nnz.sum() > 0, smallest.view(torch.float32), 0.0)
    codes = SparseCodes(selected.vals, idx, selected.nnz, rows.F)
    return codes, threshold, wins.sum(1) > capacity


def cases() -> list[Case]:
    signature = {
        "pre_ptr": "*fp32",
        "b_ptr": "*fp32",
        "bound_ptr": "*i32",
        "n": "i32",
        "rank": "i32",
        "pre_stride": "i32",
    }
    listed = []
    for F, k in ((24576, 32), (73728, 64), (131072, 1024)):
        stride, rank = sample_plan(F, k)
        groups, warps = groups_for(F // stride, rank)
        name, constants, aligned = f"bound F={F} k={k}", {"GROUPS": groups}, ("n", "pre_stride")
        listed.append(Case(name, bound_kernel, signature, constants, warps, aligned=aligned))
    return listed
