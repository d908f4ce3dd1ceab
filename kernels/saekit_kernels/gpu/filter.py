"""K1: candidates of every row. A product whose pre-activations are compared with a bound or with
thresholds, and only what passes is stored, 8 bytes each.

- `filter_kernel`, the fused plan: tile (rows, columns) of x W^T + b. An entry whose key passes the
  row's bound, or whose value passes the column's threshold, goes to one of the SLOTS slots of this
  (row, tile). The decisions of a row are the bits of a word, and the number of bits below an
  entry's own is its slot: no atomics, ascending columns, and far fewer registers than a cumulative
  sum, which spilled. The count is stored unclipped, so that an overflowing tile is noticed.
- `collect_kernel`, plan B: the same slots from pre-activations that the vendor's product stored, in
  one read.
- `choose_kernel` (TopK): one program per row selects among the row's slots (gpu/select.py). It
  knows whether the choice is correct for any bound: no entry was lost to a full tile, and there are
  k survivors (or the bound let every positive entry through). If not, it flags the row, and
  gpu/redo.py redoes it.
- `pack_kernel` (thresholds, BatchTopK): one program per row writes all its candidates end to end.
  There are as many slots as columns, of which only those written take bandwidth, so a row may hold
  any number of entries.

Keys, ties and NaN are those of gpu/select.py. A candidate is written as one int64, key << 32 |
column, and read as two int32, (column, key), which is its layout in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton.language as tl

from saekit_kernels.codes import SparseCodes
from saekit_kernels.gpu.runtime import INTERPRETED, POINTER, Case, cdiv, jit, next_power_of_2
from saekit_kernels.gpu.select import positive_key, select_row

# Slots, and the pre-activations of plan B, at a time; more rows are split into chunks. A chunk has
# at least 2048 rows: at each one W is read again, 1 GB at F = 131,072 and d = 4096.
CHUNK_BYTES = 1 << 29
LEAST_ROWS, MOST_ROWS = 2048, 4096
TILE = 128  # columns of a tile of plan B
COLLECTED = 8  # of its tiles in a program
# More launch options of filter_kernel. {"maxnreg": 128} puts two blocks on an SM of sm_90, at the
# cost of spills; which wins is for a device to say (benchmarks/gpu).
LAUNCH: dict[str, int] = {}
PACKED = 256  # tiles that a program of pack_kernel goes through together


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
    x_ptr, w_ptr, b_ptr, bound_ptr, theta_ptr, slot_ptr, count_ptr, B, F, D, x_stride,
    w_stride, bound_stride, theta_stride, tiles,
    BY_ROW: tl.constexpr, SLOTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, UPCAST: tl.constexpr
):  # fmt: skip
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
def collect_kernel(
    pre_ptr, b_ptr, bound_ptr, theta_ptr, slot_ptr, count_ptr, B, F, pre_stride, bound_stride,
    theta_stride, tiles,
    BY_ROW: tl.constexpr, SLOTS: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr
):  # fmt: skip
    """The candidates of TILES tiles of one row, from stored pre-activations."""
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1).to(tl.int64) * TILES + tl.arange(0, TILES)
    cols = tile[:, None] * TILE + tl.arange(0, TILE)[None, :]
    inside = cols < F
    pre = tl.load(pre_ptr + row * pre_stride + cols, mask=inside, other=0.0).to(tl.float32)
    pre += tl.load(b_ptr + cols, mask=inside, other=0.0).to(tl.float32)
    key = positive_key(pre)
    if BY_ROW:
        keep = key >= tl.load(bound_ptr + row * bound_stride)
    else:
        theta = tl.load(theta_ptr + cols * theta_stride, mask=inside, other=0.0).to(tl.float32)
        keep = (pre > theta) | (key == 0x7FFFFFFF)
    hit = (keep & inside & (key > 0)).to(tl.int32)
    slot = tl.cumsum(hit, 1) - hit
    at = (row * tiles + tile)[:, None] * SLOTS + slot
    packed = (key.to(tl.int64) << 32) | cols
    tl.store(slot_ptr + at, packed, mask=(hit > 0) & (slot < SLOTS))
    tl.store(count_ptr + row * tiles + tile, tl.sum(hit, 1), mask=tile < tiles)


@jit
def choose_kernel(
    slot_ptr, count_ptr, bound_ptr, list_ptr, vals_ptr, idx_ptr, nnz_ptr, flag_ptr, k,
    bound_stride, tiles, SLOTS: tl.constexpr, GROUPS: tl.constexpr
):  # fmt: skip
    """Select the k largest of a row's candidates, or flag the row."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, GROUPS)
    passed = tl.zeros((GROUPS,), tl.int32)
    fullest = tl.zeros((GROUPS,), tl.int32)
    for start in range(0, tiles, GROUPS):
        count = tl.load(count_ptr + row * tiles + start + lane, mask=start + lane < tiles, other=0)
        passed += count
        fullest = tl.maximum(fullest, count)
    # Correct with k survivors, or with a bound that every positive entry passes.
    short = (tl.sum(passed) < k) & (tl.load(bound_ptr + row * bound_stride) > 1)
    failed = (tl.max(fullest) > SLOTS) | short
    tl.store(flag_ptr + row, tl.cast(failed, tl.int32))
    if failed == 0:
        n = tiles * SLOTS
        to = row * k
        select_row(
            slot_ptr + row * n * 2, count_ptr + row * tiles, n, k, list_ptr + row * GROUPS,
            vals_ptr + to, idx_ptr + to, nnz_ptr + row,
            "slots", SLOTS, GROUPS
        )  # fmt: skip


@jit
def pack_kernel(
    slot_ptr, count_ptr, first_ptr, vals_ptr, idx_ptr, room, tiles,
    SLOTS: tl.constexpr, TILES: tl.constexpr
):  # fmt: skip
    """All candidates of a row, end to end from position first[row] on, in column order. What would
    lie at `room` or after is dropped: the caller knows by the totals."""
    row = tl.program_id(0).to(tl.int64)
    to = tl.load(first_ptr + row)
    for start in range(0, tiles, TILES):
        tile = start + tl.arange(0, TILES)
        count = tl.load(count_ptr + row * tiles + tile, mask=tile < tiles, other=0)
        place = to + tl.cumsum(count, 0) - count
        for t in range(0, tl.max(count)):  # pyright: ignore[reportArgumentType]
            live = t < count
            at = (row * tiles + tile) * SLOTS + t
            column = tl.load(slot_ptr + 2 * at, mask=live, other=0)
            key = tl.load(slot_ptr + 2 * at + 1, mask=live, other=0)
            fits = live & (place + t < room)
            # A key is the value's bits; INT_MAX is a NaN.
            tl.store(vals_ptr + place + t, key.to(tl.float32, bitcast=True), mask=fits)
            tl.store(idx_ptr + place + t, column, mask=fits)
        to += tl.sum(count)


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


def chunk_rows(row_bytes: int, block: int) -> int:
    """Rows at a time: a multiple of `block`."""
    return min(max(CHUNK_BYTES // row_bytes, LEAST_ROWS), MOST_ROWS) // block * block


@dataclass(frozen=True)
class Candidates:
    """Of a chunk of rows, in buffers that the next chunk overwrites."""

    rows: slice
    slot: torch.Tensor  # (rows, tiles * slots, 2) int32: (column, key)
    count: torch.Tensor  # (rows, tiles) int32: how many passed, stored or not
    slots: int

    @property
    def tiles(self) -> int:
        return self.count.shape[1]


def candidates(
    x_BD: torch.Tensor,
    W_FD: torch.Tensor,
    b_F: torch.Tensor,
    plan: str,
    survivors: float | None = None,
    bound: torch.Tensor | None = None,
    theta: torch.Tensor | None = None,
) -> Iterator[Candidates]:
    """The entries that pass, for one chunk of rows after another.

    `bound`: keys (int32), one per row or one for all; else `theta`: thresholds, one per column or
    one for all. `survivors`: how many entries of a row are expected to pass, which sets the number
    of slots; None: no tile can overflow. `plan`: fused | gemm.
    """
    B, F, fused = len(x_BD), len(W_FD), plan == "fused"
    config = filter_config(x_BD.dtype, W_FD.dtype)
    width = config["BN"] if fused else TILE
    tiles, slots = cdiv(F, width), width if survivors is None else slots_for(survivors, F, width)
    row_bytes = 8 * tiles * slots + (0 if fused else F * product_type(x_BD, W_FD).itemsize)
    rows = max(min(chunk_rows(row_bytes, config["BM"]), B), 1)
    # Buffers, and what is the same for all chunks.
    slot = torch.empty(rows, tiles * slots, dtype=torch.int64, device=x_BD.device)
    count = torch.empty(rows, tiles, dtype=torch.int32, device=x_BD.device)
    bound_stride = bound.stride(0) if bound is not None and bound.ndim else 0
    theta_stride = theta.stride(0) if theta is not None and theta.ndim else 0
    for start in range(0, B, rows):
        part = slice(start, min(start + rows, B))
        x, n = x_BD[part], part.stop - part.start
        # Without a bound or thresholds, the pointer of something else, which is not read.
        bounds = count if bound is None else bound[part] if bound.ndim else bound
        by_row, thetas = bound is not None, b_F if theta is None else theta
        if fused:
            filter_kernel[(cdiv(n, config["BM"]) * tiles,)](
                *(x, W_FD, b_F, bounds, thetas, slot, count),
                *(n, F, x.shape[1], x.stride(0), W_FD.stride(0), bound_stride, theta_stride),
                *(tiles, by_row, slots),
                UPCAST=INTERPRETED or x.dtype != W_FD.dtype,
                **config,
                **LAUNCH,
            )
        else:
            pre = product(x, W_FD)
            collect_kernel[(n, cdiv(tiles, COLLECTED))](
                *(pre, b_F, bounds, thetas, slot, count),
                *(n, F, pre.stride(0), bound_stride, theta_stride, tiles),
                *(by_row, slots, TILE, COLLECTED),
                num_warps=4,
            )
        yield Candidates(part, slot[:n].view(torch.int32), count[:n], slots)


def product_type(x_BD: torch.Tensor, W_FD: torch.Tensor) -> torch.dtype:
    """bf16 for a product of bf16; fp16 would overflow beyond 65,504."""
    return torch.bfloat16 if x_BD.dtype == W_FD.dtype == torch.bfloat16 else torch.float32


def product(x_BD: torch.Tensor, W_FD: torch.Tensor) -> torch.Tensor:
    """x W^T by the vendor's library, sums in fp32. fp32 inputs follow
    torch.set_float32_matmul_precision."""
    if product_type(x_BD, W_FD) == torch.bfloat16:
        return torch.mm(x_BD, W_FD.T)
    if x_BD.is_cuda and x_BD.dtype == W_FD.dtype == torch.float16:
        return torch.mm(x_BD, W_FD.T, out_dtype=torch.float32)
    return torch.mm(x_BD.float(), W_FD.T.float())


def choose(
    found: Candidates, codes: SparseCodes, flag_B: torch.Tensor, bound_B: torch.Tensor
) -> None:
    """The codes.capacity largest candidates of each row of a chunk into codes, or its flag."""
    part, k = found.rows, codes.capacity
    groups, warps = choose_groups(k)
    lists = torch.empty(len(found.count), groups, dtype=torch.int32, device=flag_B.device)
    choose_kernel[(len(found.count),)](
        *(found.slot, found.count, bound_B[part], lists),
        *(codes.vals[part], codes.idx[part], codes.nnz[part], flag_B[part]),
        *(k, bound_B.stride(0), found.tiles, found.slots, groups),
        num_warps=warps,
    )


def pack(
    chunks: Iterator[Candidates], B: int, room: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(first (B+1,) int64, vals, idx): all candidates end to end; row b's are first[b]:first[b+1].
    vals and idx have `room` entries: what lies beyond is not there."""
    first = torch.zeros(B + 1, dtype=torch.int64, device=device)
    vals = torch.empty(room, device=device)
    idx = torch.empty(room, dtype=torch.int32, device=device)
    for found in chunks:
        part = found.rows
        ends = first[part.start + 1 : part.stop + 1]
        torch.cumsum(found.count.sum(1), 0, out=ends)
        ends += first[part.start]
        pack_kernel[(len(found.count),)](
            *(found.slot, found.count, first[part], vals, idx),
            *(room, found.tiles, found.slots, PACKED),
            num_warps=4,
        )
    return first, vals, idx


def cases() -> list[Case]:
    return [
        _filter_case(torch.bfloat16, 24576, 288, True),
        _filter_case(torch.bfloat16, 73728, None, False),
        _filter_case(torch.bfloat16, 131072, 288, True),
        _filter_case(torch.float32, 24576, 288, True),
        _collect_case(torch.bfloat16, 24576, 288, True),
        _collect_case(torch.float32, 131072, None, False),
        _choose_case(24576, 32, 16),
        _choose_case(24576, 65, 16),
        _choose_case(131072, 2048, 8),
        _pack_case(),
    ]


def _slots(survivors: int | None, F: int, width: int) -> int:
    return width if survivors is None else slots_for(survivors, F, width)


def _filter_case(dtype: torch.dtype, F: int, survivors: int | None, by_row: bool) -> Case:
    config = filter_config(dtype, dtype)
    constants = {
        "BY_ROW": by_row,
        "SLOTS": _slots(survivors, F, config["BN"]),
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


def _collect_case(dtype: torch.dtype, F: int, survivors: int | None, by_row: bool) -> Case:
    signature = {
        "pre_ptr": POINTER[dtype],
        "b_ptr": "*fp32",
        "bound_ptr": "*i32",
        "theta_ptr": "*fp32",
        "slot_ptr": "*i64",
        "count_ptr": "*i32",
    }
    sizes = ("B", "F", "pre_stride", "bound_stride", "theta_stride", "tiles")
    signature |= dict.fromkeys(sizes, "i32")
    slots = _slots(survivors, F, TILE)
    constants = {"BY_ROW": by_row, "SLOTS": slots, "TILE": TILE, "TILES": COLLECTED}
    name, aligned = f"collect {dtype} F={F} by_row={by_row}", ("F", "pre_stride")
    return Case(name, collect_kernel, signature, constants, 4, aligned=aligned)


def _choose_case(F: int, k: int, slots: int) -> Case:
    groups, warps = choose_groups(k)
    pointers = ("slot", "count", "bound", "list", "vals", "idx", "nnz", "flag")
    signature = {f"{name}_ptr": "*fp32" if name == "vals" else "*i32" for name in pointers}
    signature |= dict.fromkeys(("k", "bound_stride", "tiles"), "i32")
    constants = {"SLOTS": slots, "GROUPS": groups}
    return Case(f"choose F={F} k={k}", choose_kernel, signature, constants, warps)


def _pack_case() -> Case:
    signature = {"slot_ptr": "*i32", "count_ptr": "*i32", "first_ptr": "*i64"}
    signature |= {"vals_ptr": "*fp32", "idx_ptr": "*i32", "room": "i32", "tiles": "i32"}
    return Case("pack", pack_kernel, signature, {"SLOTS": TILE, "TILES": PACKED}, 4)
