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

from saekit_kernels.codes import SparseCodes, Transpose
from saekit_kernels.gpu.runtime import Case, cdiv, jit, next_power_of_2

BLOCKS = 256
LEAST_ROWS = 32
HISTOGRAM_INTS = 2**26  # 256 MB: beyond F = 262,144 there are fewer blocks instead
SCAN_LATENTS = 32
SCAN_WARPS = 8


def check_positions(codes: SparseCodes) -> None:
    """Raises ValueError when flat positions b*K + t do not fit 32 bits."""
    if codes.vals.numel() >= 2**31:
        raise ValueError(
            f"codes of {len(codes)} rows x {codes.capacity} entries have 2^31 positions or more;"
            " pass fewer rows at a time"
        )


def row_blocks(B: int, F: int) -> tuple[int, int]:
    """(number of blocks, rows per block)."""
    blocks = min(BLOCKS, max(HISTOGRAM_INTS // max(F, 1), 1), cdiv(B, LEAST_ROWS))
    rows = cdiv(B, blocks)
    return cdiv(B, rows), rows


def entry_block(K: int) -> int:
    return min(max(next_power_of_2(K), 32), 512)


@jit
def _count(idx_ptr, nnz_ptr, count_ptr, K, F, rows, ENTRIES: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    histogram_ptr = count_ptr + (row // rows) * F
    nnz = tl.load(nnz_ptr + row)
    for start in range(0, nnz, ENTRIES):
        t = start + tl.arange(0, ENTRIES)
        j = tl.load(idx_ptr + row * K + t, mask=t < nnz, other=0)
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
def _place(idx_ptr, nnz_ptr, ptr_ptr, offset_ptr, pos_ptr, B, K, F, rows, ENTRIES: tl.constexpr):
    block = tl.program_id(0).to(tl.int64)
    cursor_ptr = offset_ptr + block * F
    for row in range(block * rows, tl.minimum(block * rows + rows, B)):
        nnz = tl.load(nnz_ptr + row)
        for start in range(0, nnz, ENTRIES):
            t = start + tl.arange(0, ENTRIES)
            live = t < nnz
            j = tl.load(idx_ptr + row * K + t, mask=live, other=0)
            before = tl.load(cursor_ptr + j, mask=live, other=0)
            tl.store(
                pos_ptr + tl.load(ptr_ptr + j, mask=live, other=0) + before,
                (row * K + t).to(tl.int32),
                mask=live,
            )
            tl.store(cursor_ptr + j, before + 1, mask=live)
        tl.debug_barrier()  # the next row reads the cursors that other lanes just moved


def transpose_codes(codes: SparseCodes) -> Transpose:
    """ptr (F+1,) and pos (B*K,) int32, as SparseCodes.transpose up to ptr[F]; pos is 0 after that.

    Raises ValueError when B*K is 2^31 or more.
    """
    check_positions(codes)
    (B, K), F, device = codes.vals.shape, codes.F, codes.idx.device
    ptr = torch.zeros(F + 1, dtype=torch.int32, device=device)
    pos = torch.zeros(B * K, dtype=torch.int32, device=device)
    if B * K == 0:
        return Transpose(ptr, pos)
    blocks, rows = row_blocks(B, F)
    idx, nnz, entries = codes.idx.contiguous(), codes.nnz.contiguous(), entry_block(K)
    count = torch.zeros(blocks, F, dtype=torch.int32, device=device)
    total = torch.empty(F, dtype=torch.int32, device=device)
    _count[(B,)](idx, nnz, count, K, F, rows, entries, num_warps=1)
    _scan[(cdiv(F, SCAN_LATENTS),)](
        count, total, blocks, F, next_power_of_2(blocks), SCAN_LATENTS, num_warps=SCAN_WARPS
    )
    torch.cumsum(total, 0, dtype=torch.int32, out=ptr[1:])
    _place[(blocks,)](
        idx, nnz, ptr, count, pos, B, K, F, rows, entries, num_warps=cdiv(entries, 128)
    )
    return Transpose(ptr, pos)


def cases() -> list[Case]:
    rows = {"idx_ptr": "*i32", "nnz_ptr": "*i32"}
    listed = []
    for K in (32, 1000):
        sizes, entries = {"K": "i32", "F": "i32", "rows": "i32"}, entry_block(K)
        listed += [
            Case(
                f"transpose_count_{K}",
                _count,
                rows | {"count_ptr": "*i32"} | sizes,
                {"ENTRIES": entries},
                1,
                aligned=("F", "rows"),
            ),
            Case(
                f"transpose_place_{K}",
                _place,
                rows
                | {"ptr_ptr": "*i32", "offset_ptr": "*i32", "pos_ptr": "*i32", "B": "i32"}
                | sizes,
                {"ENTRIES": entries},
                cdiv(entries, 128),
                aligned=("B", "F", "rows"),
            ),
        ]
    scan = {"count_ptr": "*i32", "total_ptr": "*i32", "blocks": "i32", "F": "i32"}
    for blocks in (256, 4):
        name, constants = f"transpose_scan_{blocks}", {"BLOCKS": blocks, "LATENTS": SCAN_LATENTS}
        listed.append(Case(name, _scan, scan, constants, SCAN_WARPS, aligned=("F",)))
    return listed
