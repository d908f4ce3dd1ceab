"""The surroundings of picked rows: the rows of each whole context or image, and the value of a
latent on each row.

They are read from the index where there is one. Else the contexts on a page are encoded a second
time, so the cost depends on the page, not on the store.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from saekit.indexing.entries import CHUNK_ROWS
from saekit.indexing.reader import Index
from saekit.models.autoencoder import Autoencoder
from saekit.models.codes import Code
from saekit.store.reader import Store
from saekit.store.stack import StackedStore


@dataclass
class Windows:
    """N windows: window i shows the store rows [start[i], stop[i]); values[ptr[i]:ptr[i+1]] is the
    latent on them."""

    start: np.ndarray
    stop: np.ndarray
    ptr: np.ndarray
    values: np.ndarray


def example_bounds(store: Store | StackedStore) -> tuple[np.ndarray, np.ndarray]:
    """First and last-plus-one store row of every example that has rows, ascending."""
    firsts, counts, offset = [], [], 0
    for shard in store.origin.shards:
        rows = np.asarray(shard.arrays["examples.rows"])
        firsts.append(np.asarray(shard.arrays["examples.first_row"])[rows > 0] + offset)
        counts.append(rows[rows > 0])
        offset += len(shard)
    first = np.concatenate(firsts)
    return first, first + np.concatenate(counts)


def read_windows(
    model: Autoencoder,
    store: Store | StackedStore,
    row: np.ndarray,
    latent: np.ndarray,
    index: Index | None = None,
) -> Windows:
    """The window of each picked (row, latent): all rows of the row's example. `index`: of this
    model and store, with every value that is not 0."""
    first, last = example_bounds(store)
    example = np.searchsorted(first, row, side="right") - 1
    start, stop = first[example], last[example]
    ptr = np.concatenate([[0], np.cumsum(stop - start)])
    if index is not None:
        return Windows(start, stop, ptr, _indexed(index, latent, start, stop, ptr))
    # every (row, latent) pair of a window, flat: pair p belongs to window owner[p]
    owner = np.repeat(np.arange(len(row)), stop - start)
    pair_row = np.arange(ptr[-1]) - ptr[owner] + start[owner]
    return Windows(start, stop, ptr, _values_at(model, store, pair_row, latent[owner]))


def _indexed(
    index: Index, latent: np.ndarray, start: np.ndarray, stop: np.ndarray, ptr: np.ndarray
) -> np.ndarray:
    """The values of all windows. Those of one latent lie side by side."""
    values = np.empty(ptr[-1], np.float32)
    first = np.flatnonzero(np.diff(latent, prepend=-1))
    for a, b in zip(first, np.append(first[1:], len(latent))):
        values[ptr[a] : ptr[b]] = index.windows(int(latent[a]), start[a:b], stop[a:b])
    return values


@torch.no_grad()
def _values_at(
    model: Autoencoder, store: Store | StackedStore, pair_row: np.ndarray, pair_latent: np.ndarray
) -> np.ndarray:
    order = np.argsort(pair_row, kind="stable")
    sorted_row, sorted_latent = pair_row[order], torch.from_numpy(pair_latent[order])
    unique, begin = np.unique(sorted_row, return_index=True)
    begin = np.append(begin, len(sorted_row))
    values = np.empty(len(pair_row), np.float32)
    for c in range(0, len(unique), CHUNK_ROWS):
        rows = unique[c : c + CHUNK_ROWS]
        code = model.encode(store.take(rows).x.float())
        lo, hi = begin[c], begin[min(c + CHUNK_ROWS, len(unique))]
        local = torch.from_numpy(np.searchsorted(rows, sorted_row[lo:hi]))
        values[order[lo:hi]] = _entries(code, local, sorted_latent[lo:hi]).numpy()
    return values


def _entries(code: Code, row: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
    """code[row, latent], without a dense copy of a sparse code."""
    pieces = []
    for r, j in zip(row.split(1 << 18), latent.split(1 << 18)):
        values = code[r, j]
        assert isinstance(values, torch.Tensor), "entries, not rows"
        pieces.append(values.float())
    return torch.cat(pieces) if pieces else torch.zeros(0)
