"""Exact top-k of each row of a dense matrix (plan B), and the device functions that all selecting
kernels share.

Only positive entries and NaN can become codes, so a value is compared by its *key*: its bits as an
int32 when it is positive (order preserving), INT_MAX for NaN (largest, and active), 0 for
everything that the ReLU drops (zero, -0.0, negatives, -inf). Taking the k largest keys above 0 is
then the same as top-k followed by ReLU, and ties go to the smallest column.

One program per row:
1. group maxima: column c belongs to group c mod GROUPS, so there is one elementwise maximum per
   tile; the k-th largest of the GROUPS maxima bounds the k-th value from below (they are k
   different entries). For columns in random order GROUPS >= 4k leaves at most -ln(3/4) GROUPS =
   1.15 k entries above it; for k = 32 and GROUPS = 1024: 32.5.
2. filter: columns at or above the bound go to a list in memory, in column order. That is a second
   read of the row: those in flight (98 KB each in fp32 at F = 24,576, and 900 at once) exceed L2.
3. the exact k-th key of the list by bitwise bisection (31 counts over registers; tl.sort and
   tl.topk cost far more in the interpreter and do not break ties by column), then compaction in
   column order.
When the list overflows (all-equal rows, k > GROUPS), step 3 runs over the row itself, with 31 reads
of it: slow, but exact. Nothing here was timed on a device.
"""

from __future__ import annotations

import torch
import triton.language as tl

from saekit_kernels.codes import SparseCodes
from saekit_kernels.gpu.runtime import POINTER, Case, jit, next_power_of_2, unit_stride

# The bound need not be exact: 12 of 23 mantissa bits, and 20 counts instead of 31.
BOUND_LOWEST_BIT = tl.constexpr(11)


@jit
def positive_key(v):
    """fp32 -> int32 in the order of the values: positives by their bits, NaN largest, the rest 0.
    Integer operations only, so that no flush-to-zero or fast-math setting affects it."""
    bits = v.to(tl.int32, bitcast=True)
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return tl.where(is_nan, 0x7FFFFFFF, tl.maximum(bits, 0))


@jit
def kth_key(keys, k, LOWEST_BIT: tl.constexpr):
    """The largest T, a multiple of 2^LOWEST_BIT, with at least k keys >= T; 0 when fewer than k are
    positive."""
    kth = tl.full((), 0, tl.int32)
    bit = tl.full((), 1 << 30, tl.int32)
    for _ in range(31 - LOWEST_BIT):
        enough = tl.sum((keys >= (kth | bit)).to(tl.int32)) >= k
        kth = tl.where(enough, kth | bit, kth)
        bit = bit >> 1
    return kth


@jit
def keys_at(row_ptr, aux_ptr, at, n, KIND: tl.constexpr, SLOTS: tl.constexpr):
    """Keys of the entries `at` of one row of n entries, 0 after its end.

    KIND "values": the row holds values; "biased": values, to which the bias in aux is added;
    "slots": pairs (column, key) in tiles of SLOTS slots, of which the first aux[tile] are written
    (more than SLOTS means that the tile overflowed).
    """
    if KIND == "slots":
        used = tl.load(aux_ptr + at // SLOTS, mask=at < n, other=0)
        return tl.load(row_ptr + 2 * at + 1, mask=(at < n) & (at % SLOTS < used), other=0)
    else:
        v = tl.load(row_ptr + at, mask=at < n, other=0.0).to(tl.float32)
        if KIND == "biased":
            v += tl.load(aux_ptr + at, mask=at < n, other=0.0).to(tl.float32)
        return positive_key(v)


@jit
def columns_at(row_ptr, at, chosen, KIND: tl.constexpr):
    if KIND == "slots":
        return tl.load(row_ptr + 2 * at, mask=chosen, other=0)
    else:
        return at


@jit
def group_bound(
    row_ptr, aux_ptr, n, k, KIND: tl.constexpr, SLOTS: tl.constexpr, GROUPS: tl.constexpr
):
    """A key that at least k entries of the row reach, or 0 when the group maxima cannot show one (k
    > GROUPS, few positives)."""
    lane = tl.arange(0, GROUPS)
    best = tl.zeros((GROUPS,), tl.int32)
    for start in range(0, n, GROUPS):
        best = tl.maximum(best, keys_at(row_ptr, aux_ptr, start + lane, n, KIND, SLOTS))
    return kth_key(best, k, BOUND_LOWEST_BIT)


@jit
def kth_key_in_memory(
    row_ptr, aux_ptr, n, k, KIND: tl.constexpr, SLOTS: tl.constexpr, GROUPS: tl.constexpr
):
    """(kth_key, number of keys above it) of a row whose list overflowed: one read of the row for
    each of the 31 bits."""
    lane = tl.arange(0, GROUPS)
    kth = tl.full((), 0, tl.int32)
    bit = tl.full((), 1 << 30, tl.int32)
    for _ in range(31):
        count = tl.zeros((GROUPS,), tl.int32)
        for start in range(0, n, GROUPS):
            count += (keys_at(row_ptr, aux_ptr, start + lane, n, KIND, SLOTS) >= (kth | bit)).to(
                tl.int32
            )
        kth = tl.where(tl.sum(count) >= k, kth | bit, kth)
        bit = bit >> 1
    count = tl.zeros((GROUPS,), tl.int32)
    for start in range(0, n, GROUPS):
        count += (keys_at(row_ptr, aux_ptr, start + lane, n, KIND, SLOTS) > kth).to(tl.int32)
    return kth, tl.sum(count)


@jit
def emit(row_ptr, at, key, kth, room, written, vals_ptr, idx_ptr, KIND: tl.constexpr):
    """Append chosen entries in column order: those above kth, and the first `room` of those equal
    to it.

    Returns the remaining room and the number written so far.
    """
    tied = ((key == kth) & (key > 0)).to(tl.int32)
    chosen = (key > kth) | ((tied > 0) & (tl.cumsum(tied, 0) <= room))
    chosen_i = chosen.to(tl.int32)
    to = written + tl.cumsum(chosen_i, 0) - chosen_i
    # A key is the value's bits; INT_MAX is a NaN.
    tl.store(vals_ptr + to, key.to(tl.float32, bitcast=True), mask=chosen)
    tl.store(idx_ptr + to, columns_at(row_ptr, at, chosen, KIND), mask=chosen)
    return room - tl.sum(tied), written + tl.sum(chosen_i)


@jit
def select_row(
    row_ptr,
    aux_ptr,
    n,
    k,
    list_ptr,
    vals_ptr,
    idx_ptr,
    nnz_ptr,
    KIND: tl.constexpr,
    SLOTS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """The k largest positive entries of one row -> vals (k), idx (k), nnz (1). `list_ptr`: GROUPS
    int32, for this row only."""
    lane = tl.arange(0, GROUPS)
    bound = tl.maximum(group_bound(row_ptr, aux_ptr, n, k, KIND, SLOTS, GROUPS), 1)
    # List the columns that reach the bound.
    listed = tl.full((), 0, tl.int32)
    for start in range(0, n, GROUPS):
        keep = (keys_at(row_ptr, aux_ptr, start + lane, n, KIND, SLOTS) >= bound).to(tl.int32)
        to = listed + tl.cumsum(keep, 0) - keep
        tl.store(list_ptr + to, start + lane, mask=(keep > 0) & (to < GROUPS))
        listed += tl.sum(keep)
    tl.debug_barrier()  # threads read parts of the list that others wrote
    # Choose from the list, or from the whole row when the list overflowed.
    written = tl.full((), 0, tl.int32)
    if listed <= GROUPS:
        at = tl.load(list_ptr + lane, mask=lane < listed, other=0)
        key = tl.where(lane < listed, keys_at(row_ptr, aux_ptr, at, n, KIND, SLOTS), 0)
        kth = kth_key(key, k, 0)
        room = k - tl.sum((key > kth).to(tl.int32))
        _, written = emit(row_ptr, at, key, kth, room, written, vals_ptr, idx_ptr, KIND)
    else:
        kth, above = kth_key_in_memory(row_ptr, aux_ptr, n, k, KIND, SLOTS, GROUPS)
        room = k - above
        for start in range(0, n, GROUPS):
            at = start + lane
            key = keys_at(row_ptr, aux_ptr, at, n, KIND, SLOTS)
            room, written = emit(row_ptr, at, key, kth, room, written, vals_ptr, idx_ptr, KIND)
    # Padding.
    for start in range(0, k, GROUPS):
        padding = (start + lane >= written) & (start + lane < k)
        tl.store(vals_ptr + start + lane, 0.0, mask=padding)
        tl.store(idx_ptr + start + lane, 0, mask=padding)
    tl.store(nnz_ptr, written)


@jit
def select_kernel(
    pre_ptr,
    b_ptr,
    list_ptr,
    vals_ptr,
    idx_ptr,
    nnz_ptr,
    F,
    k,
    pre_stride,
    KIND: tl.constexpr,
    GROUPS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    to = row * k
    select_row(
        pre_ptr + row * pre_stride,
        b_ptr,
        F,
        k,
        list_ptr + row * GROUPS,
        vals_ptr + to,
        idx_ptr + to,
        nnz_ptr + row,
        KIND,
        1,
        GROUPS,
    )


def groups_for(n: int, k: int) -> tuple[int, int]:
    """(GROUPS, num_warps) for rows of n entries: 8 to 16 keys per thread."""
    groups = min(max(next_power_of_2(4 * k), 1024), 4096, max(next_power_of_2(n), 32))
    return groups, 4 if groups <= 1024 else 8


def check_k(name: str, k: int, F: int, B: int) -> None:
    if not 1 <= k <= F:
        raise ValueError(f"{name} must lie in [1, {F}], got {k}")
    if B * k >= 2**31:
        raise ValueError(
            f"{B} rows of {k} entries: B*{name} must stay below 2^31; encode fewer rows at a time"
        )


def new_codes(B: int, K: int, F: int, device: torch.device) -> SparseCodes:
    vals = torch.empty(B, K, device=device)
    return SparseCodes(
        vals,
        torch.empty_like(vals, dtype=torch.int32),
        torch.empty(B, dtype=torch.int32, device=device),
        F,
    )


def select_into(
    codes: SparseCodes, start: int, pre_BF: torch.Tensor, b_F: torch.Tensor | None = None
) -> None:
    """Fill the rows of `codes` from `start` on from their pre-activations, to which the bias `b_F`
    is added if there is one."""
    rows, F = pre_BF.shape
    if rows == 0:
        return
    stop, K = start + rows, codes.capacity
    groups, warps = groups_for(F, K)
    lists = torch.empty(rows, groups, dtype=torch.int32, device=pre_BF.device)
    select_kernel[(rows,)](
        pre_BF, b_F if b_F is not None else pre_BF, lists, codes.vals[start:stop],
        codes.idx[start:stop], codes.nnz[start:stop],
        F, K, pre_BF.stride(0), KIND="values" if b_F is None else "biased", GROUPS=groups,
        num_warps=warps,
    )  # fmt: skip


def select_topk(pre_BF: torch.Tensor, k: int) -> SparseCodes:
    """The k largest positive entries of each row as codes: exact, NaN counts as largest and active,
    ties to the smallest column.

    `pre_BF` may be fp32, bf16 or fp16 with any row stride. Raises ValueError when k is not in [1,
    F].
    """
    if pre_BF.ndim != 2 or pre_BF.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(
            f"expected a matrix of fp32, bf16 or fp16, got {pre_BF.dtype} of shape"
            f" {tuple(pre_BF.shape)}"
        )
    B, F = pre_BF.shape
    check_k("k", k, F, B)
    codes = new_codes(B, k, F, pre_BF.device)
    select_into(codes, 0, unit_stride(pre_BF.detach()))
    return codes


def cases() -> list[Case]:
    def case(dtype: torch.dtype, F: int, k: int, kind: str) -> Case:
        groups, warps = groups_for(F, k)
        signature = {
            "pre_ptr": POINTER[dtype], "b_ptr": "*fp32", "list_ptr": "*i32", "vals_ptr": "*fp32",
            "idx_ptr": "*i32", "nnz_ptr": "*i32",
            "F": "i32", "k": "i32", "pre_stride": "i32",
        }  # fmt: skip
        constants = {"KIND": kind, "GROUPS": groups}
        return Case(
            f"select {dtype} F={F} k={k} {kind}",
            select_kernel,
            signature,
            constants,
            warps,
            aligned=("F", "pre_stride"),
        )

    return [
        case(torch.float32, 24576, 32, "biased"),
        case(torch.bfloat16, 24576, 32, "values"),
        case(torch.float32, 73728, 512, "biased"),
        case(torch.float32, 131072, 2048, "values"),
    ]
