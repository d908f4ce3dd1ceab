"""The encoder with bf16 products, and fp32 scores of the latents that these cannot rule out: the
plan `filter` of encode.py. Rows that the filter does not cover go through fp32 products."""

from __future__ import annotations

import torch

from saekit_kernels.by_product import CHUNK_ROWS, above_by_product, threads_pay
from saekit_kernels.filter import CHUNK_ROWS as FILTER_ROWS
from saekit_kernels.filter import Filter
from saekit_kernels.select import (
    GROUP,
    Entries,
    end_to_end,
    entries_above,
    kth_largest,
    largest,
    signed_topk_rows,
    topk_rows,
)
from saekit_kernels.sparse import row_products
from saekit_kernels.threads import map_chunks, spans
from saekit_kernels.workspace import Workspace

# Rows whose survivors are scored together: the weights are read once for all of them.
SCORED_ROWS = 1024
CROWDED = 512  # mean survivors per row above which fp32 products with all of W cost less
# A threshold of the batch that is estimated from a few rows is one that twice as many entries pass.
SPARE = 2


def _scored(row, column, x_CD, W_FD, b_F) -> torch.Tensor:
    """x_row . W_column + b_column for every entry, row-major."""
    return row_products(row, column, x_CD, W_FD).add_(b_F[column])


def topk_by_filter(x_BD, W_FD, b_F, k: int, workspace: Workspace, signed: bool = False):
    """(vals (B,k), idx (B,k)), or None when the weights are not finite. `signed`: those that are
    largest in magnitude; F is then a multiple of filter.GROUP."""
    bf16 = Filter(x_BD, W_FD, b_F, workspace, signed=signed)
    if not bf16.usable:
        return None
    vals, idx = x_BD.new_empty(len(x_BD), k), x_BD.new_empty(len(x_BD), k, dtype=torch.int64)

    def select(rows: slice, slot: int) -> torch.Tensor:
        """Fill in these rows; returns the numbers of the crowded ones, which are left to fp32."""
        row, column, crowded = _search(rows, lambda part: bf16.largest(part, slot, k))
        count = torch.bincount(row, minlength=rows.stop - rows.start)
        scores = _scored(row, column, x_BD[rows], W_FD, b_F)
        vals[rows], idx[rows] = _topk_of_entries(row, column, scores, count, k, signed)
        return crowded.nonzero()[:, 0] + rows.start

    redo = torch.cat(
        [
            (~bf16.finite_B).nonzero()[:, 0],
            *map_chunks(select, spans(len(x_BD), SCORED_ROWS), threads_pay(x_BD, W_FD)),
        ]
    )
    for again in redo.split(CHUNK_ROWS):
        if len(again):
            pre = torch.addmm(b_F, x_BD[again], W_FD.T)
            vals[again], idx[again] = signed_topk_rows(pre, k) if signed else topk_rows(pre, k)
    return vals, idx


def _topk_of_entries(row, column, values, count, k: int, signed: bool):
    """The k largest entries of each row; rows with fewer are filled with -inf (never a code). If
    signed, those that are largest in magnitude, of which a row has k."""
    width = -(-(max(int(count.max()), k) + 1) // GROUP) * GROUP
    slot = row * width + torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    table = values.new_full((len(count) * width,), -torch.inf)
    table[slot] = values.abs() if signed else values
    columns = row.new_zeros(len(table))
    columns[slot] = column
    vals, at = topk_rows(table.view(len(count), width), k)
    if signed:
        table[slot] = values
        vals = table.view(len(count), width).gather(1, at)
    return vals, columns.view(len(count), width).gather(1, at)


def above_by_filter(x_BD, W_FD, b_F, threshold_F, workspace: Workspace, most: float | None = None):
    """As above_by_product."""
    bf16 = Filter(x_BD, W_FD, b_F, workspace, threshold_F)
    if not bf16.usable:
        yield from above_by_product(x_BD, W_FD, b_F, threshold_F, workspace, most)
        return

    def scored(rows: slice, row: torch.Tensor, column: torch.Tensor):
        x = x_BD[rows]
        if len(row) > CROWDED * len(x):
            return rows, *entries_above(torch.addmm(b_F, x, W_FD.T), threshold_F)
        vals = _scored(row, column, x, W_FD, b_F)
        keep = vals > threshold_F[column]
        entries = row[keep], column[keep], vals[keep]
        return rows, *_with_left_out(bf16, x, rows, W_FD, b_F, threshold_F, entries)

    first = slice(0, min(FILTER_ROWS, len(x_BD)))
    low = bf16.product(first, 0)
    zero_B = bf16.shift.expand(len(low))
    # With many values near their thresholds, as early in an L1 run, the bound rules out too little.
    if bf16.possible(low, first, zero_B).sum() > 4 * CROWDED * first.stop:
        yield from above_by_product(x_BD, W_FD, b_F, threshold_F, workspace, most)
        return
    yield scored(first, *bf16.survivors(low, first, zero_B))
    yield from map_chunks(
        lambda rows, slot: scored(rows, *_search(rows, lambda part: bf16.above(part, slot))),
        spans(len(x_BD), SCORED_ROWS, FILTER_ROWS),
        threads_pay(x_BD, W_FD),
    )


def batch_by_filter(
    x_BD, W_FD, b_F, count: int, bound: float, workspace: Workspace
) -> Entries | None:
    """The `count` largest positive entries of the batch, row-major, searched above `bound` and, if
    these are too few or it is 0, above an estimate; None where neither serves."""
    bf16 = Filter(x_BD, W_FD, b_F, workspace)
    if not bf16.usable:
        return None
    for estimate in (lambda: bound, lambda: _estimated(bf16, count)):
        floor = estimate()
        if floor > 0:
            entries = _batch_above(bf16, x_BD, W_FD, b_F, count, floor)
            if len(entries[2]) >= count:
                return largest(entries, count)
    return None


def _estimated(bf16: Filter, count: int) -> float:
    """A value that about SPARE * count entries of the batch exceed, as the first rows have it."""
    rows = slice(0, min(FILTER_ROWS, len(bf16.x_low)))
    floors = bf16.group_floors(bf16.group_maxima(bf16.product(rows, 0)), rows).flatten()
    expected = -(-SPARE * count * rows.stop // len(bf16.x_low))
    return float(kth_largest(floors, min(expected, len(floors))) - bf16.shift)


def _batch_above(bf16: Filter, x_BD, W_FD, b_F, count: int, floor: float) -> Entries:
    """Entries above `floor`, row-major: all those that can be among the `count` largest. Fewer than
    `count` if there are not more above `floor`."""
    threaded = threads_pay(x_BD, W_FD)

    def search(rows: slice, slot: int) -> tuple[torch.Tensor, ...]:
        row, *others = _search(rows, lambda part: bf16.intervals(part, slot, floor))
        return row + rows.start, *others

    # Of each entry an interval. As many as are wanted reach the count-th largest lower end, so what
    # lies below it is out.
    pieces = map_chunks(search, spans(len(x_BD), SCORED_ROWS), threaded)
    row, column, least, most = end_to_end(pieces)
    if len(row) > count:
        keep = most >= kth_largest(least, count)
        row, column = row[keep], column[keep]

    def score(rows: slice, slot: int) -> Entries:
        first, last = torch.searchsorted(row, torch.tensor([rows.start, rows.stop])).tolist()
        in_chunk, columns, x = row[first:last] - rows.start, column[first:last], x_BD[rows]
        vals = _scored(in_chunk, columns, x, W_FD, b_F)
        keep = vals > floor
        entries = in_chunk[keep], columns[keep], vals[keep]
        in_chunk, columns, vals = _with_left_out(bf16, x, rows, W_FD, b_F, floor, entries)
        return in_chunk + rows.start, columns, vals

    # Score what remains.
    row, column, vals = end_to_end(map_chunks(score, spans(len(x_BD), SCORED_ROWS), threaded))
    return row, column, vals


def _with_left_out(bf16: Filter, x_CD, rows: slice, W_FD, b_F, threshold, entries: Entries):
    """The entries of a chunk with those of its rows that the filter leaves to fp32."""
    left_out = (~bf16.finite_B[rows]).nonzero()[:, 0]
    if len(left_out) == 0:
        return entries
    pieces = [entries]
    for part in left_out.split(CHUNK_ROWS):
        row, column, vals = entries_above(torch.addmm(b_F, x_CD[part], W_FD.T), threshold)
        pieces.append((part[row], column, vals))
    row, column, vals = end_to_end(pieces)
    row, order = row.sort(stable=True)
    return row, column[order], vals[order]


def _search(rows: slice, find) -> tuple[torch.Tensor, ...]:
    """The results of `find` for FILTER_ROWS rows at a time, end to end. The first result is row
    numbers, which are shifted to count from rows.start."""
    pieces = []
    for part in spans(rows.stop, FILTER_ROWS, rows.start):
        row, *others = find(part)
        pieces.append((row + (part.start - rows.start), *others))
    return end_to_end(pieces)
