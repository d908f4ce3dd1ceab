"""Codes by row -> codes by latent (CSC), without a sort: count, scan, place.

The rows are cut into blocks. `_count` fills a histogram of latents per block (integer additions, so
their order does not matter), `_scan` turns the counts of a latent into offsets over the blocks, a
cumulative sum over latents gives `ptr`, and `_place` writes the entries: one program per block goes
through its rows in order, so rows ascend inside a latent. The latents of one row are distinct, so
its lanes never write the same address; a barrier separates the rows. Equal to the stable sort of
codes.py, bit for bit up to ptr[F].

At most BLOCKS histograms exist: 25 MB at F = 24,576 and 134 MB at 131,072, where weights and
moments take 12.9 GB. A block has at least 32 rows, so that small batches do not pay for histograms
that are almost empty.
"""

from __future__ import annotations

import torch
import triton.language as tl

from saekit_kernels.codes import Codes, Transpose
from saekit_kernels.gpu.runtime import Case, cdiv, jit, next_power_of_2, row_pointer, row_span

BLOCKS = 256
LEAST_ROWS = 32
HISTOGRAM_INTS = 2**26  # 256 MB: beyond F = 262,144 there are fewer blocks instead
WIDE = 256  # entries of a ragged row that are placed together: rows differ fiftyfold
SCAN_LATENTS = 32
SCAN_WARPS = 8


def check_positions(codes: Codes) -> None:
    """Raises ValueError when flat positions do not fit 32 bits."""
    if codes.vals.numel() >= 2**31:
        raise ValueError(
            f"codes of {len(codes)} rows have {codes.vals.numel():,} positions, 2^31 or more; pass"
            " fewer rows at a time"
        )


def row_blocks(B: int, F: int) -> tuple[int, int]:
    """(number of blocks, rows per block)."""
    blocks = min(BLOCKS, max(HISTOGRAM_INTS // max(F, 1), 1), cdiv(B, LEAST_ROWS))
    rows = cdiv(B, blocks)
    return cdiv(B, rows), rows


def entry_block(K: int) -> int:
    return min(max(next_power_of_2(K), 32), 512)


@jit
def _count(
    idx_ptr, row_ptr, count_ptr, K, F, rows, ENTRIES: tl.constexpr, RAGGED: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    histogram_ptr = count_ptr + (row // rows) * F
    first, nnz = row_span(row_ptr, row, K, RAGGED)
    for start in range(0, nnz, ENTRIES):
        t = start + tl.arange(0, ENTRIES)
        j = tl.load(idx_ptr + first + t, mask=t < nnz, other=0)
        tl.atomic_add(histogram_ptr + j, 1, mask=t < nnz, sem="relaxed")


@jit
def _scan(count_ptr, total_ptr, blocks, F, BLOCKS: tl.constexpr, LATENTS: tl.constexpr):
    """In place: count[r, j] -> the sum of count[:r, j]; total[j] = the sum over all blocks."""
    j = tl.program_id(0).to(tl.int64) * LATENTS + tl.arange(0, LATENTS)
    r = tl.arange(0, BLOCKS).to(tl.int64)
    mask = (r[:, None] < blocks) & (j[None, :] < F)
    at = count_ptr + r[:, None] * F + j[None, :]
    count = tl.load(at, mask=mask, other=0)
    tl.store(at, tl.cumsum(count, axis=0) - count, mask=mask)
    tl.store(total_ptr + j, tl.sum(count, axis=0), mask=j < F)


@jit
def _place(
    idx_ptr, row_ptr, ptr_ptr, offset_ptr, pos_ptr, of_ptr, B, K, F, rows, ENTRIES: tl.constexpr,
    RAGGED: tl.constexpr
):  # fmt: skip
    """`of_ptr`: the rows of the entries of ragged codes, in the order of `pos`."""
    block = tl.program_id(0).to(tl.int64)
    cursor_ptr = offset_ptr + block * F
    for row in range(block * rows, tl.minimum(block * rows + rows, B)):
        first, nnz = row_span(row_ptr, row, K, RAGGED)
        for start in range(0, nnz, ENTRIES):
            t = start + tl.arange(0, ENTRIES)
            live = t < nnz
            j = tl.load(idx_ptr + first + t, mask=live, other=0)
            before = tl.load(cursor_ptr + j, mask=live, other=0)
            to = tl.load(ptr_ptr + j, mask=live, other=0) + before
            tl.store(pos_ptr + to, (first + t).to(tl.int32), mask=live)
            if RAGGED:
                tl.store(of_ptr + to, tl.zeros_like(to) + row, mask=live)
            tl.store(cursor_ptr + j, before + 1, mask=live)
        tl.debug_barrier()  # the next row reads the cursors that other lanes just moved


def transpose_codes(codes: Codes) -> Transpose:
    """As the transpose of codes.py up to ptr[F]; `pos` is 0 after that. Of ragged codes, with the
    row of every entry.

    Raises ValueError when there are 2^31 positions or more.
    """
    check_positions(codes)
    B, F, n, device = len(codes), codes.F, codes.vals.numel(), codes.idx.device
    row_ptr, K, ragged = row_pointer(codes)
    ptr = torch.zeros(F + 1, dtype=torch.int32, device=device)
    pos = torch.zeros(n, dtype=torch.int32, device=device)
    row = torch.zeros_like(pos) if ragged else None
    if n == 0:
        return Transpose(ptr, pos, row)
    blocks, rows = row_blocks(B, F)
    idx, entries = codes.idx.contiguous(), entry_block(max(n // B, WIDE) if ragged else K)
    count = torch.zeros(blocks, F, dtype=torch.int32, device=device)
    total = torch.empty(F, dtype=torch.int32, device=device)
    _count[(B,)](idx, row_ptr, count, K, F, rows, entries, ragged, num_warps=1)
    _scan[(cdiv(F, SCAN_LATENTS),)](
        count, total, blocks, F, next_power_of_2(blocks), SCAN_LATENTS, num_warps=SCAN_WARPS
    )
    torch.cumsum(total, 0, dtype=torch.int32, out=ptr[1:])
    _place[(blocks,)](
        *(idx, row_ptr, ptr, count, pos, pos if row is None else row),
        *(B, K, F, rows, entries, ragged),
        num_warps=cdiv(entries, 128),
    )
    return Transpose(ptr, pos, row)


def cases() -> list[Case]:
    rows = {"idx_ptr": "*i32", "row_ptr": "*i32"}
    sizes = {"K": "i32", "F": "i32", "rows": "i32"}
    outputs = {"ptr_ptr": "*i32", "offset_ptr": "*i32", "pos_ptr": "*i32", "of_ptr": "*i32"}
    listed = []
    for K, ragged in ((32, False), (1000, False), (WIDE, True)):
        constants = {"ENTRIES": entry_block(K), "RAGGED": ragged}
        name = "ragged" if ragged else str(K)
        count = rows | {"count_ptr": "*i32"} | sizes
        place = rows | outputs | {"B": "i32"} | sizes
        warps = cdiv(constants["ENTRIES"], 128)
        listed += [
            Case(f"transpose_count_{name}", _count, count, constants, 1, aligned=("F", "rows")),
            Case(
                f"transpose_place_{name}", _place, place, constants, warps,
                aligned=("B", "F", "rows"),
            ),
        ]  # fmt: skip
    scan = {"count_ptr": "*i32", "total_ptr": "*i32", "blocks": "i32", "F": "i32"}
    for blocks in (256, 4):
        name, constants = f"transpose_scan_{blocks}", {"BLOCKS": blocks, "LATENTS": SCAN_LATENTS}
        listed.append(Case(name, _scan, scan, constants, SCAN_WARPS, aligned=("F",)))
    return listed
