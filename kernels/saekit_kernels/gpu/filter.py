"""K1: a GEMM whose epilogue keeps only the candidates, and a second kernel that chooses among them.

The pre-activations, B x F, never reach memory. At d = 768 writing them in bf16 and reading them
again would cost 48 % of the GEMM (docs/kernels.md); instead, a few candidates per tile are stored,
8 bytes each.

- `filter_kernel`: tile (rows, columns) of x W^T + b. An entry whose key passes the row's bound, or
  whose value passes the column's threshold, goes to one of the SLOTS slots of this (row, tile). The
  decisions of a row are the bits of a word, and the number of bits below an entry's own is its
  slot: no atomics, ascending columns, and far fewer registers than a cumulative sum, which spilled.
  The count is stored unclipped, so that an overflowing tile is noticed.
- `choose_kernel`: one program per row selects among the row's slots (gpu/select.py). It knows
  whether the choice is correct for any bound: no entry was lost to a full tile, and there are k
  survivors (or the bound let every positive entry through). If not, it flags the row.

Flagged rows are redone by gpu/redo.py. Keys, ties and NaN are those of gpu/select.py. A candidate
is written as one int64, key << 32 | column, and read as two int32, (column, key), which is its
layout in memory.
"""

from __future__ import annotations

import torch
import triton.language as tl

from saekit_kernels.codes import SparseCodes
from saekit_kernels.gpu.runtime import INTERPRETED, POINTER, Case, cdiv, jit, next_power_of_2
from saekit_kernels.gpu.select import positive_key, select_row

CANDIDATE_BYTES = 1 << 28  # 256 MB of slots at a time; more rows are split into chunks


@jit
def popcount(x):
    """Bits set in an int32. LLVM compiles this form to one instruction."""
    x = x.to(tl.uint32)
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)


@jit
def put_in_slots(key, cols, used, slot_ptr, slots_at, SLOTS: tl.constexpr):
    """Write key << 32 | column for the positive keys of 32 columns, after the `used` slots of each
    row; returns the new `used`, unclipped.

    The 32 decisions of a row become one word; an entry's slot is the number of bits below its own.
    """
    bit = tl.full((32,), 1, tl.int32) << tl.arange(0, 32)
    hits = tl.sum(tl.where(key > 0, bit[None, :], 0), 1)
    below = hits[:, None] & (bit - 1)[None, :]  # pyright: ignore[reportArgumentType]
    slot = used[:, None] + popcount(below)
    packed = (key.to(tl.int64) << 32) | cols[None, :]
    tl.store(slot_ptr + (slots_at[:, None] + slot), packed, mask=(key > 0) & (slot < SLOTS))
    return used + popcount(hits)


@jit
def tile_of(pid, B, tiles, BM: tl.constexpr):
    """(first row, column tile) of a program. Eight row blocks share a column tile before the next
    one: x and W stay in L2."""
    group = pid // (8 * tiles)
    group_rows = tl.minimum(tl.cdiv(B, BM) - group * 8, 8)
    within = pid % (8 * tiles)
    return (group * 8 + within % group_rows) * BM, within // group_rows


@jit
def passing_keys(
    pre,
    rows,
    cols,
    b_ptr,
    bound_ptr,
    theta_ptr,
    B,
    F,
    bound_stride,
    theta_stride,
    BY_ROW: tl.constexpr,
):
    """Keys of pre + b where the policy keeps the entry, 0 elsewhere. Columns after F are masked:
    their pre-activation is 0, or NaN in a row with an infinity, and every policy keeps NaN."""
    pre += tl.load(b_ptr + cols, mask=cols < F, other=0.0).to(tl.float32)[None, :]
    key = positive_key(pre)
    if BY_ROW:
        keep = key >= tl.load(bound_ptr + rows * bound_stride, mask=rows < B, other=0)[:, None]
    else:
        theta = tl.load(theta_ptr + cols * theta_stride, mask=cols < F, other=0.0).to(tl.float32)
        keep = (pre > theta[None, :]) | (key == 0x7FFFFFFF)
    return tl.where(keep & (rows[:, None] < B) & (cols[None, :] < F), key, 0)


@jit
def filter_kernel(
    x_ptr, w_ptr, b_ptr, bound_ptr, theta_ptr, slot_ptr, count_ptr, enabled_ptr, B, F, D, x_stride,
    w_stride, bound_stride, theta_stride,
    tiles, BY_ROW: tl.constexpr, SLOTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, UPCAST: tl.constexpr
):  # fmt: skip
    if tl.load(enabled_ptr) == 0:
        return
    row0, tile = tile_of(tl.program_id(0).to(tl.int64), B, tiles, BM)
    rows = row0 + tl.arange(0, BM)
    cols = tile * BN + tl.arange(0, BN)
    at = tl.arange(0, BK)
    x_at = x_ptr + rows[:, None] * x_stride + at[None, :]
    w_at = w_ptr + cols[:, None] * w_stride + at[None, :]
    acc = tl.zeros((BM, BN), tl.float32)
    for start in range(0, D, BK):
        inside = at[None, :] < D - start
        x = tl.load(x_at + start, mask=inside & (rows[:, None] < B), other=0.0)
        w = tl.load(w_at + start, mask=inside & (cols[:, None] < F), other=0.0)
        if UPCAST:
            x = x.to(tl.float32)
            w = w.to(tl.float32)
        acc = tl.dot(x, w.T, acc, input_precision="ieee")

    # 32 columns at a time: candidates and addresses of the whole tile are 64-bit and would not fit
    # the registers. Each piece continues after the slots of the previous one, so the columns of a
    # row ascend. Offsets from the tile's first slot stay below 128 F, so int32 is enough.
    used = tl.zeros((BM,), tl.int32)
    slot_ptr += (row0 * tiles + tile) * SLOTS
    slots_at = tl.arange(0, BM) * (tiles * SLOTS)
    halves = tl.split(tl.permute(tl.reshape(acc, (BM, 2, BN // 2)), (0, 2, 1)))
    for h in tl.static_range(2):  # pyright: ignore[reportGeneralTypeIssues]
        if BN == 64:
            cols = tile * BN + h * 32 + tl.arange(0, 32)
            key = passing_keys(
                halves[h],
                rows,
                cols,
                b_ptr,
                bound_ptr,
                theta_ptr,
                B,
                F,
                bound_stride,
                theta_stride,
                BY_ROW,
            )
            used = put_in_slots(key, cols, used, slot_ptr, slots_at, SLOTS)
        else:
            quarters = tl.split(tl.permute(tl.reshape(halves[h], (BM, 2, 32)), (0, 2, 1)))
            for q in tl.static_range(2):  # pyright: ignore[reportGeneralTypeIssues]
                cols = tile * BN + h * 64 + q * 32 + tl.arange(0, 32)
                key = passing_keys(
                    quarters[q],
                    rows,
                    cols,
                    b_ptr,
                    bound_ptr,
                    theta_ptr,
                    B,
                    F,
                    bound_stride,
                    theta_stride,
                    BY_ROW,
                )
                used = put_in_slots(key, cols, used, slot_ptr, slots_at, SLOTS)
    tl.store(count_ptr + rows * tiles + tile, used, mask=rows < B)


@jit
def choose_kernel(
    slot_ptr, count_ptr, bound_ptr, enabled_ptr, list_ptr, vals_ptr, idx_ptr, nnz_ptr, total_ptr,
    flag_ptr, k, bound_stride, tiles,
    RULE: tl.constexpr, SLOTS: tl.constexpr, GROUPS: tl.constexpr
):  # fmt: skip
    """Select among a row's candidates, or flag the row. total: entries that passed the filter,
    stored or not."""
    if tl.load(enabled_ptr) == 0:
        return
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, GROUPS)
    passed = tl.zeros((GROUPS,), tl.int32)
    fullest = tl.zeros((GROUPS,), tl.int32)
    for start in range(0, tiles, GROUPS):
        count = tl.load(count_ptr + row * tiles + start + lane, mask=start + lane < tiles, other=0)
        passed += count
        fullest = tl.maximum(fullest, count)
    total = tl.sum(passed)
    lost = tl.max(fullest) > SLOTS
    if RULE == "topk":  # k survivors, or a bound that every positive entry passes
        failed = lost | ((total < k) & (tl.load(bound_ptr + row * bound_stride) > 1))
    elif RULE == "complete":  # every survivor must be there
        failed = lost
    else:  # "clip": more than k survivors are reported, so their loss needs no repair
        failed = lost & (total <= k)
    tl.store(total_ptr + row, total)
    tl.store(flag_ptr + row, tl.cast(failed, tl.int32))
    if failed == 0:
        n = tiles * SLOTS
        to = row * k
        select_row(
            slot_ptr + row * n * 2, count_ptr + row * tiles, n, k, list_ptr + row * GROUPS,
            vals_ptr + to, idx_ptr + to, nnz_ptr + row,
            "slots", SLOTS, GROUPS
        )  # fmt: skip


def filter_config(x: torch.dtype, w: torch.dtype) -> dict[str, int]:
    """Tile sizes without register spills on sm_80, sm_90 and sm_100. Low precision fills tensor
    cores; ieee fp32 runs on plain FMAs."""
    if x == w and w != torch.float32:
        return {"BM": 128, "BN": 128, "BK": 64, "num_warps": 8, "num_stages": 3}
    return {"BM": 64, "BN": 64, "BK": 16, "num_warps": 4, "num_stages": 2}


def slots_for(survivors: float, F: int, BN: int) -> int:
    """Slots of a (row, tile), so that it rarely overflows when m = survivors BN / F are expected:
    Poisson, P(> m + 6 sqrt(m) + 4) < 1e-6."""
    m = survivors * BN / F
    return min(max(next_power_of_2(int(m + 6 * m**0.5 + 4)), 8), BN)


def choose_groups(k: int) -> tuple[int, int]:
    """(GROUPS, num_warps) of the choice. The slots of a tile fill from the front, so only some of
    the groups, which are slot numbers modulo GROUPS, get entries: 16 k groups rather than 4 k. 512
    and 2048 compile without spills at these warps, 1024 does not."""
    return (512, 4) if k <= 32 else (2048, 8) if k <= 128 else (4096, 8)


def chunk_rows(F: int, slots: int, config: dict[str, int]) -> int:
    """Rows per launch, so that the slots take CANDIDATE_BYTES."""
    row_bytes = cdiv(F, config["BN"]) * slots * 8
    return max(CANDIDATE_BYTES // row_bytes // config["BM"], 1) * config["BM"]


def filter_rows(
    x_BD: torch.Tensor,
    W_FD: torch.Tensor,
    b_F: torch.Tensor,
    survivors: float,
    rule: str,
    codes: SparseCodes,
    total_B: torch.Tensor,
    flag_B: torch.Tensor,
    bound: torch.Tensor | None = None,
    theta: torch.Tensor | None = None,
    enabled: torch.Tensor | None = None,
) -> None:
    """Filter and choose all rows into codes (rows of codes.capacity entries), total_B and flag_B.

    `bound`: keys (int32), one per row or one for all; else `theta`: thresholds, one per column or
    one for all. `survivors`: how many entries of a row are expected to pass, which sets the number
    of slots. Does nothing when `enabled`, an int32 on the device, is 0.
    """
    B, F, k = len(codes), codes.F, codes.capacity
    config = filter_config(x_BD.dtype, W_FD.dtype)
    slots, tiles = slots_for(survivors, F, config["BN"]), cdiv(F, config["BN"])
    groups, warps = choose_groups(k)
    # Inputs that may be absent, and buffers for the candidates of one chunk.
    enabled = (
        enabled if enabled is not None else torch.ones((), dtype=torch.int32, device=x_BD.device)
    )
    bound_stride = bound.stride(0) if bound is not None and bound.ndim else 0
    rows = min(chunk_rows(F, slots, config), B)
    slot = torch.empty(rows, tiles * slots, dtype=torch.int64, device=x_BD.device)
    count = torch.empty(rows, tiles, dtype=torch.int32, device=x_BD.device)
    for start in range(0, B, rows):
        part = slice(start, min(start + rows, B))
        x = x_BD[part]
        if bound is None:
            bound_part = flag_B  # not read
        else:
            bound_part = bound[part] if bound.ndim else bound
        filter_kernel[(cdiv(len(x), config["BM"]) * tiles,)](
            x, W_FD, b_F, bound_part, theta if theta is not None else b_F, slot, count, enabled,
            len(x), F, x.shape[1], x.stride(0),
            W_FD.stride(0), bound_stride,
            theta.stride(0) if theta is not None and theta.ndim else 0, tiles,
            BY_ROW=bound is not None,
            SLOTS=slots, UPCAST=INTERPRETED or x.dtype != W_FD.dtype, **config,
        )  # fmt: skip
        lists = torch.empty(len(x), groups, dtype=torch.int32, device=x.device)
        choose_kernel[(len(x),)](
            slot.view(torch.int32), count, bound_part, enabled, lists, codes.vals[part],
            codes.idx[part], codes.nnz[part], total_B[part],
            flag_B[part], k, bound_stride, tiles, RULE=rule, SLOTS=slots, GROUPS=groups,
            num_warps=warps,
        )  # fmt: skip


def cases() -> list[Case]:
    return [
        _filter_case(torch.bfloat16, 24576, 288, True),
        _filter_case(torch.bfloat16, 73728, 288, False),
        _filter_case(torch.bfloat16, 131072, 288, True),
        _filter_case(torch.float32, 24576, 288, True),
        _choose_case(24576, 32, 16, "topk"),
        _choose_case(24576, 65, 16, "complete"),
        _choose_case(73728, 129, 16, "complete"),
        _choose_case(131072, 2048, 8, "clip"),
    ]


def _filter_case(dtype: torch.dtype, F: int, survivors: int, by_row: bool) -> Case:
    config = filter_config(dtype, dtype)
    constants = {
        "BY_ROW": by_row,
        "SLOTS": slots_for(survivors, F, config["BN"]),
        "UPCAST": False,
        **{name: config[name] for name in ("BM", "BN", "BK")},
    }
    signature = {
        "x_ptr": POINTER[dtype],
        "w_ptr": POINTER[dtype],
        "b_ptr": "*fp32",
        "bound_ptr": "*i32",
        "theta_ptr": "*fp32",
        "slot_ptr": "*i64",
        "count_ptr": "*i32",
        "enabled_ptr": "*i32",
    }
    sizes = ("B", "F", "D", "x_stride", "w_stride", "bound_stride", "theta_stride", "tiles")
    signature |= dict.fromkeys(sizes, "i32")
    return Case(
        f"filter {dtype} F={F} by_row={by_row}",
        filter_kernel,
        signature,
        constants,
        config["num_warps"],
        config["num_stages"],
        tensor_cores=dtype != torch.float32,
        aligned=("F", "D", "x_stride", "w_stride"),
    )


def _choose_case(F: int, k: int, slots: int, rule: str) -> Case:
    groups, warps = choose_groups(k)
    signature = {
        "slot_ptr": "*i32",
        "count_ptr": "*i32",
        "bound_ptr": "*i32",
        "enabled_ptr": "*i32",
        "list_ptr": "*i32",
        "vals_ptr": "*fp32",
        "idx_ptr": "*i32",
        "nnz_ptr": "*i32",
        "total_ptr": "*i32",
        "flag_ptr": "*i32",
        **dict.fromkeys(("k", "bound_stride", "tiles"), "i32"),
    }
    constants = {"RULE": rule, "SLOTS": slots, "GROUPS": groups}
    return Case(f"choose F={F} k={k} {rule}", choose_kernel, signature, constants, warps)
