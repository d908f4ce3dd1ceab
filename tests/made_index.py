"""Indexes for tests: of any model, and of entries that no model made."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from saekit.device import CPU
from saekit.indexing.build import index_into
from saekit.indexing.entries import CHUNK_ROWS
from saekit.indexing.manifest import IndexManifest, indexed_store
from saekit.indexing.merge import merge
from saekit.indexing.opening import OpenedPair
from saekit.indexing.reader import Index
from saekit.indexing.runs import Entries, RunWriter


def made_index(folder: Path, model, store) -> Index:
    folder.mkdir()
    return index_into(folder, OpenedPair("the model", model, None, store), CPU, lambda _: None)


def index_of_entries(
    folder: Path, store, latents: int, row: np.ndarray, latent: np.ndarray, value: np.ndarray
) -> Index:
    """Of entries (n,) in any order."""
    folder.mkdir()
    rows, stores = store.count(), [indexed_store(store)]
    manifest = IndexManifest("0" * 64, stores, latents, rows, "float32", "cpu", CHUNK_ROWS)
    order = np.lexsort((latent, row))
    counts = np.bincount(row, minlength=rows)
    writer = RunWriter(folder, manifest, 10**8)
    writer.append(Entries(counts, latent[order].astype(np.int32), value[order].astype(np.float32)))
    writer.close()
    manifest.entries = len(row)
    manifest.files = merge(folder, manifest, store, 10**8)
    return Index(folder, manifest)
