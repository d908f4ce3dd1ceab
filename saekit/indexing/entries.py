"""The active entries of a store's rows, a chunk of rows at a time: what indexes are made of.

A chunk always begins at a multiple of its size, so that a pass which is continued, or an index
which grows with its store, encodes the same chunks as a pass from the start: the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from saekit_kernels import keep_freed_memory

from saekit.device import CPU
from saekit.models.autoencoder import Autoencoder
from saekit.models.codes import Code, entries
from saekit.store.reader import Store
from saekit.store.stack import StackedStore
from saekit.training.fit import on_device
from saekit.types import ActivationBatch

CHUNK_ROWS = 8192


@dataclass
class Triples:
    """Active entries of a chunk: row (N,) int64 in the store, latent (N,) int64, value (N,) fp32,
    signed."""

    row: torch.Tensor
    latent: torch.Tensor
    value: torch.Tensor

    def at(self, which: torch.Tensor) -> Triples:
        return Triples(self.row[which], self.latent[which], self.value[which])


def active_entries(code: Code, above: float, first_row: int) -> Triples:
    row, latent, value = (part.cpu() for part in entries(code, above))
    return Triples(row + first_row, latent, value.float())


def encoded_chunks(
    model: Autoencoder,
    store: Store | StackedStore,
    device: torch.device = CPU,
    rows: int = CHUNK_ROWS,
    start: int = 0,
) -> Iterator[tuple[ActivationBatch, Triples]]:
    """The rows from `start` on, `rows` at a time, with their active entries, as the model says
    which are; of a sparse code."""
    assert model.active_above is not None, "a sparse code"
    for batch, code in encoded_batches(model, store, device, rows, start):
        assert batch.rows is not None
        yield batch, active_entries(code, model.active_above, int(batch.rows[0]))


def encoded_batches(
    model: Autoencoder,
    store: Store | StackedStore,
    device: torch.device = CPU,
    rows: int = CHUNK_ROWS,
    start: int = 0,
) -> Iterator[tuple[ActivationBatch, Code]]:
    """The rows from `start` on, `rows` at a time, with their codes."""
    assert start % rows == 0, "chunks begin at multiples of their size"
    keep_freed_memory()
    model = on_device(model, device)
    for batch in store.batches(rows, start=start):
        with torch.no_grad():
            code = model.encode(batch.x.to(device).float())
        yield batch, code
