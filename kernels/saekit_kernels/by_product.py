"""The encoder with all pre-activations of a chunk of rows in fp32 (or the dtype of x): the plan
`gemm` of encode.py."""

from __future__ import annotations

import torch

from saekit_kernels.select import (
    GROUP,
    Entries,
    end_to_end,
    entries_above,
    largest,
    topk_rows,
)
from saekit_kernels.threads import map_chunks, spans
from saekit_kernels.workspace import Workspace

# A buffer of 38 MB per thread at F = 18,432; 256 to 4096 rows measured within 10 % of one another.
CHUNK_ROWS = 512
LEAST_THREADED = 1 << 34  # multiplications from which each chunk gets its own thread


def threads_pay(x_BD: torch.Tensor, W_enc_FD: torch.Tensor) -> bool:
    return x_BD.device.type == "cpu" and x_BD.numel() * W_enc_FD.shape[0] >= LEAST_THREADED


class _Product:
    """Pre-activations, chunk by chunk, in a buffer per thread."""

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


def topk_by_product(x_BD, W_FD, b_F, k: int, workspace: Workspace):
    """(vals (B,k), idx (B,k)): the k largest pre-activations of each row, in no order."""
    product, threaded = _Product(x_BD, W_FD, b_F, workspace), threads_pay(x_BD, W_FD)
    pieces = map_chunks(
        lambda rows, slot: topk_rows(product(rows, slot), k), spans(len(x_BD), CHUNK_ROWS), threaded
    )
    vals, idx = map(torch.cat, zip(*pieces))
    return vals, idx


def above_by_product(x_BD, W_FD, b_F, threshold_F, workspace: Workspace, most: float | None = None):
    """(rows, row in the chunk, column, value) of what is above its threshold, chunk by chunk; only
    None when the first chunk has more than `most` of them per row."""
    product, threaded = _Product(x_BD, W_FD, b_F, workspace), threads_pay(x_BD, W_FD)
    limit = torch.nn.functional.pad(threshold_F, (0, -len(W_FD) % GROUP))
    first = slice(0, min(CHUNK_ROWS, len(x_BD)))
    pre = product(first, 0)
    if most is not None and (pre > limit).sum() > most * first.stop:
        yield None
        return
    yield first, *entries_above(pre, limit)
    yield from map_chunks(
        lambda rows, slot: (rows, *entries_above(product(rows, slot), limit)),
        spans(len(x_BD), CHUNK_ROWS, CHUNK_ROWS),
        threaded,
    )


def batch_by_product(x_BD, W_FD, b_F, count: int, floor: float, workspace: Workspace) -> Entries:
    """The `count` largest entries above `floor` of the whole batch, row-major; fewer where there
    are not so many."""
    product, threaded = _Product(x_BD, W_FD, b_F, workspace), threads_pay(x_BD, W_FD)

    def largest_of_chunk(rows: slice, slot: int) -> Entries:
        # An entry that `count` others of its chunk exceed is not among those of the batch.
        row, column, vals = largest(entries_above(product(rows, slot), floor), count)
        return row + rows.start, column, vals

    pieces = map_chunks(largest_of_chunk, spans(len(x_BD), CHUNK_ROWS), threaded)
    row, column, vals = end_to_end(pieces)
    return largest((row, column, vals), count)
