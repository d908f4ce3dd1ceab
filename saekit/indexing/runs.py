"""Rows -> runs: parts of the rows that fit in memory, each sorted by latent and kept by row, in one
file. A run is what a killed pass has for good."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_matrix

from saekit.errors import NumericsError
from saekit.indexing.entries import Triples, encoded_chunks
from saekit.indexing.manifest import RUNS, IndexManifest, Rounding, Run
from saekit.indexing.opening import OpenedPair
from saekit.indexing.tensor_file import mapped_tensors, writing_tensors
from saekit.store.files import known_digest, sha256_of
from saekit.store.oserrors import reading

# of memory per entry while a run is collected (12), joined (12), sorted (8) and written
BYTES_PER_ENTRY = 36
MOST_ENTRIES = 2**31 - 1  # of a run, whose offsets are int32 while it is sorted


@dataclass
class Entries:
    """Entries in row order: how many each of the rows has (R,) int64, their latents (N,) int32 and
    values (N,) fp32, and what rounding did to these."""

    counts: np.ndarray
    latent: np.ndarray
    value: np.ndarray
    rounding: Rounding | None = None


def run_tensors(manifest: IndexManifest, rows: int, entries: int) -> dict[str, tuple[str, int]]:
    """What a run's file holds: `ptr`, `row`, `value` by latent, `row_ptr`, `latent`, `row_value` by
    row. Row numbers are those of the store."""
    return {
        "ptr": ("int64", manifest.latents + 1),
        "row_ptr": ("int64", rows + 1),
        "row": (manifest.row_type, entries),
        "value": (manifest.values, entries),
        "latent": ("int32", entries),
        "row_value": (manifest.values, entries),
    }


class RunWriter:
    """Collects entries and writes a run whenever the next would exceed the budget. The manifest
    lists a run once its file is whole."""

    def __init__(self, folder: Path, manifest: IndexManifest, budget: int) -> None:
        """`budget` in bytes."""
        self._folder, self._manifest = folder, manifest
        self._most = min(budget // BYTES_PER_ENTRY, MOST_ENTRIES)
        self._pending: list[Entries] = []
        self._entries = 0
        self._rounding = manifest.runs[-1].rounding if manifest.runs else None
        (folder / RUNS).mkdir(exist_ok=True)

    @property
    def rows(self) -> int:
        """Rows in runs."""
        runs = self._manifest.runs
        return runs[-1].first_row + runs[-1].rows if runs else 0

    def append(self, entries: Entries) -> None:
        if self._pending and self._entries + len(entries.latent) > self._most:
            self.close()
        self._pending.append(entries)
        self._entries += len(entries.latent)
        if entries.rounding is not None:
            self._rounding = entries.rounding.after(self._rounding)

    def close(self) -> None:
        """Write what is pending."""
        if not self._pending:
            return
        counts, latent, value = (
            np.concatenate([getattr(part, name) for part in self._pending])
            for name in ("counts", "latent", "value")
        )
        self._pending, self._entries = [], 0
        run, first = self._manifest.runs, self.rows
        name = f"{len(run):05d}.safetensors"
        path = self._folder / RUNS / name
        self._write(path, first, counts, latent, value)
        size = len(counts), len(latent)
        run.append(Run(name, first, *size, sha256_of(path), self._rounding))
        self._manifest.write(self._folder)

    def _write(
        self, path: Path, first: int, counts: np.ndarray, latent: np.ndarray, value: np.ndarray
    ) -> None:
        manifest = self._manifest
        row_ptr = np.concatenate([[0], np.cumsum(counts)])
        shape = (len(counts), manifest.latents)
        by_latent = csr_matrix((value, latent, row_ptr), shape=shape).tocsc()
        shapes = run_tensors(manifest, len(counts), len(latent))
        with writing_tensors(path, shapes) as file:
            file.append("row_ptr", row_ptr)
            file.append("latent", latent)
            file.append("row_value", value)
            file.append("ptr", by_latent.indptr)
            file.append("row", by_latent.indices.astype(manifest.row_type) + first)
            file.append("value", by_latent.data)


def keep_whole_runs(folder: Path, manifest: IndexManifest) -> str:
    """Drop from the manifest the first run whose file is missing or damaged, and those after it;
    returns a sentence about that, '' when all are whole."""
    for number, run in enumerate(manifest.runs):
        path = folder / RUNS / run.name
        if path.is_file() and known_digest(path, run.sha256) == run.sha256:
            continue
        del manifest.runs[number:]
        manifest.write(folder)
        return f"{path} is missing or damaged: its rows and those after it are encoded again"
    return ""


def open_run(folder: Path, manifest: IndexManifest, run: Run) -> dict[str, np.ndarray]:
    path = folder / RUNS / run.name
    with reading(path):
        return mapped_tensors(path, run_tensors(manifest, run.rows, run.entries))


def encoded_entries(
    pair: OpenedPair, device: torch.device, chunk: int, start: int
) -> Iterator[Entries]:
    """Those of the store's rows from `start` on, a chunk at a time. Raises NumericsError for an
    infinite value."""
    for batch, found in encoded_chunks(pair.model, pair.store, device, chunk, start):
        check_finite(pair, found)
        assert batch.rows is not None
        yield _entries(found, int(batch.rows[0]), len(batch.x))


def check_finite(pair: OpenedPair, found: Triples) -> None:
    """Raises NumericsError for an infinite value."""
    if not bool(torch.isfinite(found.value).all()):
        row = int(found.row[~torch.isfinite(found.value)][0])
        raise NumericsError(
            f"{pair.name} gives inf for {pair.store.locate(row)}",
            "check the weights and the row",
        )


def _entries(found: Triples, first: int, rows: int) -> Entries:
    counts = np.bincount(found.row.numpy() - first, minlength=rows)
    return Entries(counts, found.latent.numpy().astype(np.int32), found.value.numpy())
