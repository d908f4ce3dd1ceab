"""Encoder and selection: rows x -> SparseCodes, by three rules: the k largest, everything above a
threshold, the B*k largest of a batch.

Two plans give the same selected sets. `gemm` computes the pre-activations of a chunk of rows in
fp32 and selects. `filter` (filter.py) finds the latents that can matter with a bf16 product and
scores those in fp32; it is chosen where the CPU multiplies bf16 natively and the matrices are
large. The values of the two plans differ in the last bits, since their sums run in different
orders. Nothing of size B x F outlives a call.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch

from saekit_kernels.codes import RaggedCodes, SparseCodes, from_entries, from_selected
from saekit_kernels.filter import CHUNK_ROWS as FILTER_ROWS
from saekit_kernels.filter import GROUP as FILTER_GROUP
from saekit_kernels.filter import LEAST_PRODUCT, Filter, fast_bf16, positions
from saekit_kernels.select import GROUP, topk_rows
from saekit_kernels.sparse import row_products
from saekit_kernels.threads import map_chunks, spans
from saekit_kernels.workspace import Workspace

Entries = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # row, column, value: one of each

# A buffer of 38 MB per thread at F = 18,432; 256 to 4096 rows measured within 10 % of one another.
CHUNK_ROWS = 512
# Rows whose survivors are scored together: the weights are read once for all of them.
SCORED_ROWS = 1024
LEAST_THREADED = 1 << 34  # multiplications from which each chunk gets its own thread
CROWDED = 512  # mean survivors per row above which fp32 products with all of W cost less


def as_given(function):
    """Without gradients, and without autocast, which acts only on this thread."""

    @functools.wraps(function)
    def run(x_BD, *arguments, **options):
        with torch.no_grad(), torch.autocast(x_BD.device.type, enabled=False):
            return function(x_BD, *arguments, **options)

    return run


def threads_pay(x_BD: torch.Tensor, W_enc_FD: torch.Tensor) -> bool:
    return x_BD.device.type == "cpu" and x_BD.numel() * W_enc_FD.shape[0] >= LEAST_THREADED


def check_plan(plan: str) -> None:
    if plan not in ("auto", "filter", "gemm"):
        raise ValueError(f"plan {plan}: choose auto, filter, gemm")


def encoder_plan(x_BD: torch.Tensor, W_enc_FD: torch.Tensor) -> str:
    """filter | gemm: the plan that `auto` takes for these."""
    large = x_BD.numel() * W_enc_FD.shape[0] >= LEAST_PRODUCT
    if (
        x_BD.device.type == "cpu"
        and x_BD.dtype == W_enc_FD.dtype == torch.float32
        and large
        and fast_bf16()
    ):
        return "filter"
    return "gemm"


@as_given
def encode_topk(
    x_BD: torch.Tensor,
    W_enc_FD: torch.Tensor,
    b_enc_F: torch.Tensor,
    k: int,
    workspace: Workspace | None = None,
    plan: str = "auto",
) -> SparseCodes:
    """The k largest ReLU(x W_enc^T + b_enc) of each row; exact, ties to the smallest column. Not
    differentiable.

    `plan` filter needs at least 64 k latents and becomes gemm below that. Rows with fewer than k
    positive pre-activations have nnz < k. Raises ValueError when k is not in [1, F].
    """
    F = W_enc_FD.shape[0]
    if not 1 <= k <= F:
        raise ValueError(f"k must lie in [1, {F}], got {k}")
    x_BD, W_enc_FD, b_enc_F = x_BD.detach(), W_enc_FD.detach(), b_enc_F.detach()
    if len(x_BD) == 0:
        return _no_rows(x_BD, k, F)
    workspace = workspace or Workspace()
    check_plan(plan)
    plan = encoder_plan(x_BD, W_enc_FD) if plan == "auto" else plan
    if plan == "filter" and F // FILTER_GROUP >= 2 * k:
        selected = _topk_by_filter(x_BD, W_enc_FD, b_enc_F, k, workspace)
        if selected is not None:
            return from_selected(*selected, F)
    return from_selected(*_topk_by_gemm(x_BD, W_enc_FD, b_enc_F, k, workspace), F)


@as_given
def encode_threshold(
    x_BD: torch.Tensor,
    W_enc_FD: torch.Tensor,
    b_enc_F: torch.Tensor,
    threshold: torch.Tensor | float = 0.0,
    workspace: Workspace | None = None,
    plan: str = "auto",
    most: float | None = None,
) -> RaggedCodes | None:
    """Every positive pre-activation above its threshold: a ReLU with 0, a JumpReLU with one
    threshold per latent (F,), BatchTopK inference with one scalar. NaN counts as active. Returns
    None when the first rows have more than `most` active latents on average: dense work is then
    cheaper, and little was lost. Not differentiable."""
    F = W_enc_FD.shape[0]
    x_BD, W_enc_FD, b_enc_F = x_BD.detach(), W_enc_FD.detach(), b_enc_F.detach()
    if len(x_BD) == 0:
        return from_entries(*_no_entries(x_BD), 0, F)
    threshold_F = (
        torch.as_tensor(threshold, dtype=x_BD.dtype, device=x_BD.device).clamp_min(0.0).expand(F)
    )
    workspace = workspace or Workspace()
    check_plan(plan)
    plan = encoder_plan(x_BD, W_enc_FD) if plan == "auto" else plan
    find, pieces = _above_by_filter if plan == "filter" else _above_by_gemm, []
    for piece in find(x_BD, W_enc_FD, b_enc_F, threshold_F, workspace, most):
        if piece is None:
            return None
        rows, row, column, vals = piece
        if rows.start == 0 and most is not None and len(vals) > most * rows.stop:
            return None
        pieces.append((row + rows.start, column, vals))
    return from_entries(*_end_to_end(pieces), len(x_BD), F)


@as_given
def encode_batchtopk(
    x_BD: torch.Tensor,
    W_enc_FD: torch.Tensor,
    b_enc_F: torch.Tensor,
    k: int,
    workspace: Workspace | None = None,
    plan: str = "auto",
    bound: float = 0.0,
) -> tuple[RaggedCodes, torch.Tensor]:
    """(codes, threshold): the B*k largest positive pre-activations of the whole batch (ties to the
    smallest row, then column), and the smallest of them, 0-d (0 when none is positive). Bussmann et
    al. 2024, arXiv 2412.06410. Not differentiable.

    `bound` is a guess below the threshold, such as a fraction of the last step's: when B*k entries
    lie above it, only those are considered. A wrong guess only costs time. Raises ValueError when k
    is not in [1, F].
    """
    (B, _), F = x_BD.shape, W_enc_FD.shape[0]
    if not 1 <= k <= F:
        raise ValueError(f"k must lie in [1, {F}], got {k}")
    x_BD, W_enc_FD, b_enc_F = x_BD.detach(), W_enc_FD.detach(), b_enc_F.detach()
    entries = _no_entries(x_BD)
    if len(x_BD) == 0:
        return from_entries(*entries, 0, F), x_BD.new_zeros(())
    workspace = workspace or Workspace()
    if bound > 0:
        above = encode_threshold(x_BD, W_enc_FD, b_enc_F, bound, workspace, plan)
        assert above is not None  # without `most`
        if len(above.vals) >= B * k:
            row = above.row_of(torch.arange(len(above.idx), device=above.idx.device)).long()
            entries = _largest((row, above.idx.long(), above.vals), B * k)
    if len(entries[0]) == 0:
        for piece in _above_by_gemm(x_BD, W_enc_FD, b_enc_F, x_BD.new_zeros(F), workspace):
            assert piece is not None  # without `most`
            rows, row, column, vals = piece
            # An entry that B*k others exceed cannot come back.
            entries = _largest(_end_to_end([entries, (row + rows.start, column, vals)]), B * k)
    row, column, vals = entries
    threshold = vals.min() if len(vals) else vals.new_zeros(())
    return from_entries(row, column, vals, B, F), threshold


def _no_entries(x_BD: torch.Tensor) -> Entries:
    empty = torch.zeros(0, dtype=torch.int64, device=x_BD.device)
    return empty, empty, x_BD.new_zeros(0)


def _end_to_end(pieces: Iterable[Entries]) -> Entries:
    row, column, vals = map(torch.cat, zip(*pieces))
    return row, column, vals


def _no_rows(x_BD: torch.Tensor, k: int, F: int) -> SparseCodes:
    empty = x_BD.new_zeros(0, k)
    return SparseCodes(empty, empty.to(torch.int32), empty.new_zeros(0, dtype=torch.int32), F)


# -- fp32 products ---------------------------------------------------------------------------------


class _Product:
    """Pre-activations in fp32 (or the dtype of x), chunk by chunk, in a buffer per thread."""

    def __init__(self, x_BD, W_FD, b_F, workspace: Workspace) -> None:
        self.x_BD, self.W_FD, self.b_F, self.workspace = x_BD, W_FD, b_F, workspace
        self.F = len(W_FD)

    def __call__(self, rows: slice, slot: int) -> torch.Tensor:
        """(C,padded F): the columns after F stay -inf and are never selected while k <= F."""
        x = self.x_BD[rows]
        shape = (min(CHUNK_ROWS, len(self.x_BD)), -(-self.F // GROUP) * GROUP)
        pre = self.workspace.get(f"pre {slot}", shape, x)[: len(x)]
        torch.addmm(self.b_F, x, self.W_FD.T, out=pre[:, : self.F])
        pre[:, self.F :] = -torch.inf
        return pre


def _topk_by_gemm(x_BD, W_FD, b_F, k: int, workspace: Workspace):
    product, threaded = _Product(x_BD, W_FD, b_F, workspace), threads_pay(x_BD, W_FD)
    pieces = map_chunks(
        lambda rows, slot: topk_rows(product(rows, slot), k), spans(len(x_BD), CHUNK_ROWS), threaded
    )
    vals, idx = map(torch.cat, zip(*pieces))
    return vals, idx


def _positive(pre_BF: torch.Tensor, threshold: torch.Tensor | float) -> Entries:
    row, column = positions(~(pre_BF <= threshold))
    return row, column, pre_BF[row, column]


def _above_by_gemm(x_BD, W_FD, b_F, threshold_F, workspace: Workspace, most: float | None = None):
    """(rows, row in the chunk, column, value) of what is above its threshold, chunk by chunk; only
    None when the first chunk has more than `most` of them per row."""
    product, threaded = _Product(x_BD, W_FD, b_F, workspace), threads_pay(x_BD, W_FD)
    limit = torch.nn.functional.pad(threshold_F, (0, -len(W_FD) % GROUP))
    first = slice(0, min(CHUNK_ROWS, len(x_BD)))
    pre = product(first, 0)
    if most is not None and (pre > limit).sum() > most * first.stop:
        yield None
        return
    yield first, *_positive(pre, limit)
    yield from map_chunks(
        lambda rows, slot: (rows, *_positive(product(rows, slot), limit)),
        spans(len(x_BD), CHUNK_ROWS, CHUNK_ROWS),
        threaded,
    )


def _largest(entries: Entries, count: int) -> Entries:
    """The `count` largest of (row, column, value) entries in row-major order, ties to the first."""
    row, column, vals = entries
    if len(vals) <= count:
        return entries
    keep = torch.sort(vals, descending=True, stable=True).indices[:count].sort().values
    return row[keep], column[keep], vals[keep]


# -- bf16 products, fp32 scores --------------------------------------------------------------------


def _scored(row, column, x_CD, W_FD, b_F) -> torch.Tensor:
    """x_row . W_column + b_column for every entry, row-major."""
    return row_products(row, column, x_CD, W_FD).add_(b_F[column])


def _topk_by_filter(x_BD, W_FD, b_F, k: int, workspace: Workspace):
    """(vals (B,k), idx (B,k)), or None when the weights are not finite."""
    bf16 = Filter(x_BD, W_FD, b_F, workspace)
    if not bf16.usable:
        return None
    vals, idx = x_BD.new_empty(len(x_BD), k), x_BD.new_empty(len(x_BD), k, dtype=torch.int64)

    def select(rows: slice, slot: int) -> torch.Tensor:
        """Fill in these rows; returns the numbers of the crowded ones, which are left to fp32."""
        row, column, crowded = _search(rows, lambda part: bf16.largest(part, slot, k))
        count = torch.bincount(row, minlength=rows.stop - rows.start)
        vals[rows], idx[rows] = _topk_of_entries(
            row, column, _scored(row, column, x_BD[rows], W_FD, b_F), count, k
        )
        return crowded.nonzero()[:, 0] + rows.start

    redo = torch.cat(
        [
            (~bf16.finite_B).nonzero()[:, 0],
            *map_chunks(select, spans(len(x_BD), SCORED_ROWS), threads_pay(x_BD, W_FD)),
        ]
    )
    for again in redo.split(CHUNK_ROWS):
        if len(again):
            vals[again], idx[again] = topk_rows(torch.addmm(b_F, x_BD[again], W_FD.T), k)
    return vals, idx


def _topk_of_entries(row, column, values, count, k: int):
    """The k largest entries of each row; rows with fewer are filled with -inf (never a code)."""
    width = -(-(max(int(count.max()), k) + 1) // GROUP) * GROUP
    slot = row * width + torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    table = values.new_full((len(count) * width,), -torch.inf)
    table[slot] = values
    columns = row.new_zeros(len(table))
    columns[slot] = column
    vals, at = topk_rows(table.view(len(count), width), k)
    return vals, columns.view(len(count), width).gather(1, at)


def _above_by_filter(x_BD, W_FD, b_F, threshold_F, workspace: Workspace, most: float | None = None):
    """As _above_by_gemm, through the filter; what is not finite goes through fp32."""
    bf16 = Filter(x_BD, W_FD, b_F, workspace, threshold_F)
    if not bf16.usable or not bf16.finite_B.all():
        yield from _above_by_gemm(x_BD, W_FD, b_F, threshold_F, workspace, most)
        return

    def scored(rows: slice, row: torch.Tensor, column: torch.Tensor):
        x = x_BD[rows]
        if len(row) > CROWDED * len(x):
            return rows, *_positive(torch.addmm(b_F, x, W_FD.T), threshold_F)
        vals = _scored(row, column, x, W_FD, b_F)
        keep = vals > threshold_F[column]
        return rows, row[keep], column[keep], vals[keep]

    first = slice(0, min(FILTER_ROWS, len(x_BD)))
    low = bf16.product(first, 0)
    zero_B = bf16.shift.expand(len(low))
    # With many values near their thresholds, as early in an L1 run, the bound rules out too little.
    if bf16.possible(low, first, zero_B).sum() > 4 * CROWDED * first.stop:
        yield from _above_by_gemm(x_BD, W_FD, b_F, threshold_F, workspace, most)
        return
    yield scored(first, *bf16.survivors(low, first, zero_B))
    yield from map_chunks(
        lambda rows, slot: scored(rows, *_search(rows, lambda part: bf16.above(part, slot))),
        spans(len(x_BD), SCORED_ROWS, FILTER_ROWS),
        threads_pay(x_BD, W_FD),
    )


def _search(rows: slice, find) -> tuple[torch.Tensor, ...]:
    """The results of `find` for FILTER_ROWS rows at a time, end to end. The first result is row
    numbers, which are shifted to count from rows.start."""
    pieces = []
    for part in spans(rows.stop, FILTER_ROWS, rows.start):
        row, *others = find(part)
        pieces.append((row + (part.start - rows.start), *others))
    return tuple(map(torch.cat, zip(*pieces)))
