"""Exact selection from pre-activations: the top-k of each row, ties to the smallest column; what is
above a threshold, and the largest of that.

The k largest entries of a row lie in the k groups with the largest maxima (for any other group,
there are k entries elsewhere that are at least as large), so one pass for the maxima and a top-k
over k*8 candidates replace a top-k over F. Taking k+1 shows whether the k-th value is tied; rows
with a tie (all-equal rows, duplicated latents) are redone by a stable sort.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

Entries = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # row, column, value: one of each

# Columns per group, F/GROUP apart, so that the maximum reads contiguous memory;
# docs/notes/kernels.md has the measurements.
GROUP = 8
GROUPS = (GROUP, 4)  # the first that gives enough groups is used
LEAST_GROUPS = 2.5  # groups per selected one below which the shortcut is slower


def topk_rows(pre_BF: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(vals_Bk, idx_Bk int64), in no order: those of a stable descending sort, in which NaN comes
    first, except where k reaches into -inf. The width of `pre_BF` must be a multiple of GROUP for
    the fast path."""
    F = pre_BF.shape[1]
    if not 1 <= k <= F:
        raise ValueError(f"k must lie in [1, {F}], got {k}")
    take = min(k + 1, F)
    group = next(
        (size for size in GROUPS if F % size == 0 and F // size >= LEAST_GROUPS * take), None
    )
    vals, idx = (
        pre_BF.topk(take, dim=1, sorted=False)
        if group is None
        else _topk_by_groups(pre_BF, take, group)
    )
    if take > k:
        # Overwrite the smallest of the k+1 with the last one. Where another entry equals it, the
        # choice was arbitrary, as it is among NaN and inf, which count as equal here.
        order = vals.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
        least, at = order.min(1, keepdim=True)
        tied = (
            ((order == least).sum(1, dtype=torch.int32) > 1) & (least[:, 0] > -torch.inf)
        ).nonzero()[:, 0]
        for chosen in (vals, idx):
            chosen.scatter_(1, at, chosen[:, k:].clone())
        vals, idx = vals[:, :k], idx[:, :k]
        # Redo tied rows by a stable sort.
        if len(tied):
            redo_vals, redo_idx = pre_BF[tied].sort(dim=1, descending=True, stable=True)
            vals[tied], idx[tied] = redo_vals[:, :k], redo_idx[:, :k]
    return vals, idx


def signed_topk_rows(pre_BF: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for those that are largest in magnitude: the values have their signs."""
    _, idx = topk_rows(pre_BF.abs(), k)
    return pre_BF.gather(1, idx), idx


def _topk_by_groups(
    pre_BF: torch.Tensor, take: int, group: int
) -> tuple[torch.Tensor, torch.Tensor]:
    groups = pre_BF.shape[1] // group
    grouped = pre_BF.view(len(pre_BF), group, groups)
    winners = grouped.amax(1).topk(take, dim=1, sorted=False).indices
    candidates = grouped.gather(2, winners[:, None, :].expand(-1, group, -1)).flatten(1)
    vals, slot = candidates.topk(take, dim=1, sorted=False)
    return vals, torch.div(slot, take, rounding_mode="floor") * groups + winners.gather(
        1, slot % take
    )


def entries_above(pre_BF: torch.Tensor, threshold: torch.Tensor | float) -> Entries:
    """Row-major; NaN counts as above."""
    row, column = positions(~(pre_BF <= threshold))
    return row, column, pre_BF[row, column]


def largest(entries: Entries, count: int) -> Entries:
    """The `count` largest of (row, column, value) entries in row-major order, ties to the first."""
    row, column, vals = entries
    if len(vals) <= count:
        return entries
    order = vals.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    smallest = kth_largest(order, count)
    if smallest == torch.inf:  # not all of inf and NaN: NaN first
        order = vals.isposinf().to(vals.dtype) + 2 * vals.isnan()
        smallest = kth_largest(order, count)
    keep = order > smallest
    keep[(order == smallest).nonzero()[: count - int(keep.sum()), 0]] = True
    return row[keep], column[keep], vals[keep]


def kth_largest(vals: torch.Tensor, k: int) -> torch.Tensor:
    """0-d: the k-th largest of (n,), by quickselect."""
    return vals.kthvalue(len(vals) - k + 1).values


def end_to_end(pieces: Iterable[tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    return tuple(map(torch.cat, zip(*pieces)))


def positions(hit_BF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(row, column) of the true entries, row-major. A width divisible by 8 is searched 8 columns at
    a time."""
    width = hit_BF.shape[1]
    if width % 8 or not hit_BF.is_contiguous():
        row, column = hit_BF.nonzero().unbind(1)
        return row, column
    eights = hit_BF.view(torch.int64).flatten().nonzero()[:, 0]
    inside = hit_BF.view(-1, 8)[eights].flatten().nonzero()[:, 0]
    flat = (eights[inside >> 3] << 3) + (inside & 7)
    row = torch.div(flat, width, rounding_mode="floor")
    return row, flat - row * width
