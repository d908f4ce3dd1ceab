"""Weight gradients, feature-major: for every latent, the weighted sum of the rows where it fired.

One program takes one latent and a slice of d, goes through the latent's entries in the transposed
codes and writes its row of dW once, zeros too: no memset, no atomics, one fixed order of every sum.
`sparse_weight_grad_dual` computes the gradients of both matrices and of the encoder bias in one
pass. All latents process one slice of d before the next: 8192 rows x 256 fp32 columns are 8 MB and
stay in L2.

Heavy latents. A latent that fires on half of 8192 rows would be 4096 entries in one program, a
serial tail after all others. Entries are cut at fixed offsets into chunks of 256: the latent's
program sums the first chunk, `_chunk_sums` the others, and the latent's program adds their sums in
order. Only the device knows how many chunks there are, so the grid is the most that B*K entries can
need, and programs without a chunk return at once: the host reads nothing back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton.language as tl

from saekit_kernels.codes import Codes, RaggedCodes
from saekit_kernels.gpu.runtime import Case, cdiv, jit, row_pointer, unit_stride
from saekit_kernels.gpu.transpose import check_positions

ENTRIES = 4
SLICE = 256
CHUNK = 256
# With at most max(F, MOST_SLOTS) partial rows, the partial sums never take more memory than dW, or
# 64 MB at d = 4096.
MOST_SLOTS = 4096


@dataclass(frozen=True)
class Chunks:
    """Where heavy latents are cut. The chunks of latent j after its first one are the slots
    first[j] .. first[j+1].

    owner[slot] is j, or F for a slot without a chunk.
    """

    length: int
    slots: int
    first: torch.Tensor  # (F+1,) int32
    owner: torch.Tensor  # (slots,) int32


def plan_chunks(codes: Codes) -> Chunks:
    """By device operations only: shapes depend on B, F and the number of positions, never on which
    latents fired."""
    ptr = codes.transpose().ptr
    length, slots = _chunk_bound(len(codes), codes.vals.numel(), codes.F)
    first = torch.zeros(codes.F + 1, dtype=torch.int32, device=ptr.device)
    if slots == 0:
        return Chunks(length, 0, first, first)
    # ceil(count / length) - 1
    extra = (ptr.diff() - 1).div_(length, rounding_mode="floor").clamp_(min=0)
    torch.cumsum(extra, 0, dtype=torch.int32, out=first[1:])
    slot = torch.arange(slots, dtype=torch.int32, device=ptr.device)
    return Chunks(
        length, slots, first, torch.searchsorted(first[1:], slot, right=True, out_int32=True)
    )


def _chunk_bound(B: int, entries: int, F: int) -> tuple[int, int]:
    """(entries per chunk, the most chunks besides first ones). A latent has at most B entries, all
    latents together at most `entries`."""
    length = CHUNK
    while True:
        slots = min(entries // length, F * (cdiv(B, length) - 1)) if B else 0
        if slots <= max(F, MOST_SLOTS):
            return length, slots
        length *= 2


@jit
def add_entries(
    acc1, acc2, sum1, sum2, start, end, pos_ptr, of_ptr, K, coef1_ptr, rows1_ptr, stride1,
    coef2_ptr, rows2_ptr, stride2,
    cols, col_mask, DUAL: tl.constexpr, LISTED: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    """acc + sum over entries [start, end) of coef * rows[row of the entry, cols], for one or two
    pairs of (coef, rows). The row of an entry is LISTED in `of_ptr`, or its position over K.

    sum1, sum2 (ENTRIES,) are sums of the coefficients themselves.
    """
    for e in range(start, end, ENTRIES):
        live = e + tl.arange(0, ENTRIES) < end
        at = tl.load(pos_ptr + e + tl.arange(0, ENTRIES), mask=live, other=0)
        if LISTED:
            row = tl.load(of_ptr + e + tl.arange(0, ENTRIES), mask=live, other=0).to(tl.int64)
        else:
            row = (at // K).to(tl.int64)
        mask = live[:, None] & col_mask[None, :]
        c1 = tl.load(coef1_ptr + at, mask=live, other=0.0)
        r1 = tl.load(rows1_ptr + row[:, None] * stride1 + cols[None, :], mask=mask, other=0.0).to(
            tl.float32
        )
        acc1 += tl.sum(c1[:, None] * r1, axis=0)
        sum1 += c1
        if DUAL:
            c2 = tl.load(coef2_ptr + at, mask=live, other=0.0)
            r2 = tl.load(
                rows2_ptr + row[:, None] * stride2 + cols[None, :], mask=mask, other=0.0
            ).to(tl.float32)
            acc2 += tl.sum(c2[:, None] * r2, axis=0)
            sum2 += c2
    return acc1, acc2, sum1, sum2


@jit
def _chunk_sums(
    ptr_ptr, pos_ptr, of_ptr, first_ptr, owner_ptr, coef1_ptr, rows1_ptr, stride1, coef2_ptr,
    rows2_ptr, stride2,
    partial1_ptr, partial2_ptr, partial_sum1_ptr, partial_sum2_ptr, K, d, F, length,
    DUAL: tl.constexpr, LISTED: tl.constexpr, SLICE: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    """The sums of one chunk that is not the first of its latent."""
    slot = tl.program_id(0).to(tl.int64)
    j = tl.load(owner_ptr + slot)
    if j == F:
        return
    part = tl.program_id(1).to(tl.int64)
    cols = part * SLICE + tl.arange(0, SLICE)
    chunk = (slot - tl.load(first_ptr + j)).to(tl.int32) + 1
    start = tl.load(ptr_ptr + j) + chunk * length
    end = start + tl.minimum(length, tl.load(ptr_ptr + j + 1) - start)
    zeros = tl.zeros((SLICE,), tl.float32)
    none = tl.zeros((ENTRIES,), tl.float32)
    acc1, acc2, sum1, sum2 = add_entries(
        zeros, zeros, none, none, start, end, pos_ptr, of_ptr, K, coef1_ptr, rows1_ptr,
        stride1, coef2_ptr, rows2_ptr, stride2,
        cols, cols < d, DUAL, LISTED, ENTRIES,
    )  # fmt: skip
    tl.store(partial1_ptr + slot * d + cols, acc1, mask=cols < d)
    if part == 0:
        tl.store(partial_sum1_ptr + slot, tl.sum(sum1, axis=0))
    if DUAL:
        tl.store(partial2_ptr + slot * d + cols, acc2, mask=cols < d)
        if part == 0:
            tl.store(partial_sum2_ptr + slot, tl.sum(sum2, axis=0))


@jit
def _latent_sums(
    ptr_ptr, pos_ptr, of_ptr, first_ptr, coef1_ptr, rows1_ptr, stride1, coef2_ptr, rows2_ptr,
    stride2, partial1_ptr, partial2_ptr, partial_sum1_ptr, dW1_ptr, dW2_ptr, sum1_ptr, K, d, length,
    DUAL: tl.constexpr, CHUNKED: tl.constexpr, LISTED: tl.constexpr, SLICE: tl.constexpr,
    ENTRIES: tl.constexpr,
):  # fmt: skip
    j = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1).to(tl.int64)
    cols = part * SLICE + tl.arange(0, SLICE)
    col_mask = cols < d
    start = tl.load(ptr_ptr + j)
    end = start + tl.minimum(length, tl.load(ptr_ptr + j + 1) - start)
    zeros = tl.zeros((SLICE,), tl.float32)
    none = tl.zeros((ENTRIES,), tl.float32)
    acc1, acc2, sum1, _ = add_entries(
        zeros, zeros, none, none, start, end, pos_ptr, of_ptr, K, coef1_ptr, rows1_ptr,
        stride1, coef2_ptr, rows2_ptr, stride2,
        cols, col_mask, DUAL, LISTED, ENTRIES,
    )  # fmt: skip
    total1 = tl.sum(sum1, axis=0)
    if CHUNKED:
        for slot in range(
            tl.load(first_ptr + j).to(tl.int64), tl.load(first_ptr + j + 1).to(tl.int64)
        ):
            acc1 += tl.load(partial1_ptr + slot * d + cols, mask=col_mask, other=0.0)
            if DUAL:
                acc2 += tl.load(partial2_ptr + slot * d + cols, mask=col_mask, other=0.0)
                total1 += tl.load(partial_sum1_ptr + slot)
    tl.store(dW1_ptr + j * d + cols, acc1, mask=col_mask)
    if DUAL:
        tl.store(dW2_ptr + j * d + cols, acc2, mask=col_mask)
        if part == 0:
            tl.store(sum1_ptr + j, total1)


@dataclass(frozen=True)
class Partials:
    """The sums of the chunks besides first ones: rows (slots, D), coefficients (slots,)."""

    rows1: torch.Tensor
    rows2: torch.Tensor
    sum1: torch.Tensor
    sum2: torch.Tensor


Pair = tuple[torch.Tensor, torch.Tensor]  # coefficients in the shape of the codes, rows (n,D)


def listed_rows(codes: Codes, row_of: torch.Tensor | None = None) -> torch.Tensor | None:
    """(entries,) int32, in the order of the transpose: which of the rows that are summed belongs to
    each entry. `row_of` says it in the order of the codes. None: the row of the code, by its
    position."""
    transpose = codes.transpose()
    if row_of is not None:
        return row_of.flatten().to(torch.int32)[transpose.pos.long()]
    if isinstance(codes, RaggedCodes) and transpose.row is None:
        return codes.row_of(transpose.pos.long())
    return transpose.row


def chunk_partials(
    codes: Codes, chunks: Chunks, first: Pair, second: Pair | None, rows: torch.Tensor | None
) -> Partials:
    """`_chunk_sums` over every slot. Without a second pair, rows2 and sum2 are those of the first;
    they must not be read."""
    (coef1, rows1), (coef2, rows2) = first, second or first
    dual, d = second is not None, rows1.shape[1]
    new = lambda *shape: torch.empty(shape, dtype=torch.float32, device=rows1.device)
    partial1, sum1 = new(chunks.slots, d), new(chunks.slots)
    partial2, sum2 = (new(chunks.slots, d), new(chunks.slots)) if dual else (partial1, sum1)
    if chunks.slots:
        csc = codes.transpose()
        _chunk_sums[(chunks.slots, cdiv(d, SLICE))](
            *(csc.ptr, csc.pos, csc.pos if rows is None else rows, chunks.first, chunks.owner),
            *(coef1, rows1, rows1.stride(0), coef2, rows2, rows2.stride(0)),
            *(partial1, partial2, sum1, sum2, row_pointer(codes)[1], d, codes.F, chunks.length),
            *(dual, rows is not None, SLICE, ENTRIES),
            num_warps=1,
        )
    return Partials(partial1, partial2, sum1, sum2)


def sparse_weight_grad(
    codes: Codes,
    coef_BK: torch.Tensor,
    rows_BD: torch.Tensor,
    row_of: torch.Tensor | None = None,
) -> torch.Tensor:
    """dW (F,D) fp32: dW[j] = sum over the entries (b,t) of latent j of coef[b,t] * rows[b]. Latents
    that did not fire get zeros. `row_of`, in the shape of the codes: the row that an entry takes
    instead of b.

    Raises ValueError when the shapes do not fit or there are 2^31 positions or more.
    """
    return _weight_grads(codes, (coef_BK, rows_BD), None, row_of)[0]


def sparse_weight_grad_dual(
    codes: Codes,
    coef1_BK: torch.Tensor,
    rows1_BD: torch.Tensor,
    coef2_BK: torch.Tensor,
    rows2_BD: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dW1 (F,D), dW2 (F,D), sum1 (F,)), fp32: two weight gradients over the same codes and the sum
    of coef1 over each latent.

    With (dvals, x, vals, g) these are the gradients of W_enc, W_dec and b_enc. Raises like
    `sparse_weight_grad`.
    """
    return _weight_grads(codes, (coef1_BK, rows1_BD), (coef2_BK, rows2_BD), None)


def check_pair(codes: Codes, coef_BK: torch.Tensor, rows_BD: torch.Tensor) -> Pair:
    """The pair as kernels read it: contiguous coefficients for flat positions, rows with unit
    column stride. Raises ValueError when the coefficients do not fit the codes."""
    if coef_BK.shape != codes.vals.shape:
        raise ValueError(
            f"coefficients must have the shape of the codes, {tuple(codes.vals.shape)}, got"
            f" {tuple(coef_BK.shape)}"
        )
    return coef_BK.float().contiguous(), unit_stride(rows_BD)


def _weight_grads(
    codes: Codes, first: Pair, second: Pair | None, row_of: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # Check. Without a second pair, the kernel gets the first one again and does not read it.
    check_positions(codes)
    for _, pair_rows in (first, second or first):
        if pair_rows.ndim != 2 or (row_of is None and len(pair_rows) != len(codes)):
            raise ValueError(
                f"rows must have shape ({len(codes)}, D), got {tuple(pair_rows.shape)}"
            )
    first = check_pair(codes, *first)
    second = None if second is None else check_pair(codes, *second)
    (coef1, rows1), (coef2, rows2) = first, second or first
    dual, d = second is not None, rows1.shape[1]
    if rows2.shape[1] != d:
        raise ValueError(f"both sets of rows must have one width, got {d} and {rows2.shape[1]}")
    # Outputs: the kernel writes every element, unless there are no entries.
    new = lambda *shape: (torch.zeros if codes.vals.numel() == 0 else torch.empty)(
        shape, dtype=torch.float32, device=rows1.device
    )
    dW1, sum1 = new(codes.F, d), new(codes.F)
    dW2 = new(codes.F, d) if dual else dW1
    if codes.vals.numel() == 0:
        return dW1, dW2, sum1
    # Further chunks of heavy latents, then every latent.
    chunks, csc = plan_chunks(codes), codes.transpose()
    rows = listed_rows(codes, row_of)
    partials = chunk_partials(codes, chunks, first, second, rows)
    _latent_sums[(codes.F, cdiv(d, SLICE))](
        *(csc.ptr, csc.pos, csc.pos if rows is None else rows, chunks.first),
        *(coef1, rows1, rows1.stride(0), coef2, rows2, rows2.stride(0)),
        *(partials.rows1, partials.rows2, partials.sum1, dW1, dW2, sum1),
        *(row_pointer(codes)[1], d, chunks.length),
        *(dual, chunks.slots > 0, rows is not None, SLICE, ENTRIES),
        num_warps=1,
    )
    return dW1, dW2, sum1


def pair_signature(rows1: str, rows2: str) -> dict[str, str]:
    pairs = {
        "coef1_ptr": "*fp32",
        "rows1_ptr": rows1,
        "stride1": "i32",
        "coef2_ptr": "*fp32",
        "rows2_ptr": rows2,
        "stride2": "i32",
    }
    return dict.fromkeys(("ptr_ptr", "pos_ptr", "of_ptr", "first_ptr"), "*i32") | pairs


def cases() -> list[Case]:
    pointers = lambda *names: {f"{name}_ptr": "*fp32" for name in names}
    sizes = {"K": "i32", "d": "i32"}
    aligned = ("stride1", "stride2", "K", "d", "length")
    listed = []
    for dtype, dual in (("*fp32", False), ("*bf16", True)):
        blocks = {"DUAL": dual, "LISTED": dual, "SLICE": SLICE, "ENTRIES": ENTRIES}
        name = "dual" if dual else "single"
        pair = pair_signature(dtype, "*fp32")
        chunk = (
            pair
            | {"owner_ptr": "*i32"}
            | pointers("partial1", "partial2", "partial_sum1", "partial_sum2")
            | sizes
        )
        chunk |= {"F": "i32", "length": "i32"}
        listed.append(Case(f"grad_chunks_{name}", _chunk_sums, chunk, blocks, 1, aligned=aligned))
        latent = (
            pair
            | pointers("partial1", "partial2", "partial_sum1", "dW1", "dW2", "sum1")
            | sizes
            | {"length": "i32"}
        )
        blocks = blocks | {"CHUNKED": True}
        listed.append(
            Case(f"grad_latents_{name}", _latent_sums, latent, blocks, 1, aligned=aligned)
        )
    return listed
