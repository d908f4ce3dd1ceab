"""checkpoint + store -> index: the verb `index`.

One pass over the rows writes runs (saekit.indexing.runs), which are then merged
(saekit.indexing.merge). Killed at any moment, it is continued to the same bytes. Rows that an index
of another store has already, because both stores begin with the same shards, are copied from there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Annotated

import torch

from saekit.device import pick_device
from saekit.display import brief
from saekit.errors import DataError, UsageError, opt
from saekit.indexing.dense import index_dense
from saekit.indexing.entries import CHUNK_ROWS
from saekit.indexing.manifest import (
    RUNS,
    IndexManifest,
    Values,
    checked_manifest,
    index_folder,
    indexed_store,
)
from saekit.indexing.merge import merge
from saekit.indexing.opening import OpenedPair, opened_pair
from saekit.indexing.reader import Index, read_index
from saekit.indexing.rounding import in_half
from saekit.indexing.runs import Entries, RunWriter, encoded_entries, keep_whole_runs
from saekit.options import COMMON, AnyStore, Device, Doc
from saekit.store.files import folder_bytes, write_config
from saekit.store.folder_kinds import INDEX
from saekit.store.opening import RowsLike
from saekit.store.reader import Store
from saekit.store.run_folder import run_folder
from saekit.store.stack import stores_of
from saekit.training.checkpoints import ModelLike
from saekit.types import Progress

LEAST_BUDGET, DEFAULT_BUDGET = 1, 1024  # MB
Report = Callable[[Progress], None]


@dataclass(frozen=True)
class IndexResult:
    path: str
    """The folder of the index, in that of the checkpoint."""
    latents: int
    rows: int
    bytes: int
    """Of all its files."""
    seconds: float
    entries: int | None
    """Active entries: rows x L0. None for a dense code, whose values are not kept."""
    rounding: dict[str, float] | None
    """Of float16 values: {largest, relative, raised}, see docs/index-search.md; else None."""

    def __repr__(self) -> str:
        return brief(self, {**vars(self), "rounding": self.rounding})

    @cached_property
    def index(self) -> Index:
        """The index itself, opened when first used."""
        return read_index(Path(self.path))


def index(
    checkpoint: Annotated[
        ModelLike,
        Doc("Checkpoint: a folder that saekit wrote.", metavar="CKPT", positional=True),
    ],
    store: Annotated[
        RowsLike,
        Doc(
            "Store folder. For a crosscoder, give the stores of its training, in the same order.",
            metavar="STORE...",
        ),
    ],
    *,
    values: Annotated[
        Values,
        Doc(
            "Type of the stored activations. float16 takes three quarters of the space, and rounds."
        ),
    ] = "float32",
    budget: Annotated[
        int, Doc("Memory for sorting, in MB, besides what the model needs.", metavar="MB")
    ] = DEFAULT_BUDGET,
    any_store: AnyStore = False,
    device: Device = "auto",
    resume: Annotated[bool, Doc("Continue an index that was interrupted.", COMMON)] = False,
    overwrite: Annotated[bool, Doc("Replace an index that is there.", COMMON)] = False,
    progress: Report = lambda _: None,
) -> IndexResult:
    """Write every activation of a store, by latent and by row, beside the checkpoint: in its folder
    `index/`, one index for each store. Search and pages then read no row twice.

    One pass over the rows, in bounded memory. An entry is active where the model says so, as
    everywhere: a code that is not 0, a sigmoid code above 0.5. Of a dense code (pca, vae ...), in
    which every entry would be one, what a page shows of each latent is written: counts, histogram,
    strongest rows and a sample.

    Parameters
        checkpoint: a folder of saekit's own, or what `saekit.train` returned. A published
            dictionary becomes one with `saekit.import_dictionary`.
        store: a path or an open Store; a crosscoder takes the stores of its training, in the same
            order, as a list.
        values: `float16` rounds the activations, to at most 1 part in 2,000 for those above 6e-5,
            and the result states the error. Counts stay exact.
        budget: the bytes of the result do not depend on it.
        any_store: also take a store of another model, hook or scope than that of a checkpoint's
            training.
        device: where the store's rows are encoded.
        resume: continue an index that was interrupted; one that is whole stays as it is.

    Raises UsageError, DataError (checkpoint and store do not fit, an index that is there),
    MissingError, NumericsError (an activation is infinite, or too large for float16).
    """
    # what can be wrong, before anything is written
    began = time.monotonic()
    if values not in ("float32", "float16"):
        raise UsageError(f"{opt('values', values)}: choose float32 or float16")
    if budget < LEAST_BUDGET:
        raise UsageError(f"{opt('budget', budget)} must be at least {LEAST_BUDGET} MB")
    where = pick_device(device)
    pair = opened_pair(checkpoint, store, any_store)
    folder = _folder_of(pair)
    if pair.model.active_above is None and values != "float32":
        raise DataError(
            f"the code of {pair.name} is dense: its index has no list of values to round",
            f"drop {opt('values', values)}",
        )
    wanted = _wanted(pair, values, where)

    with run_folder(
        folder,
        INDEX,
        resume=resume,
        overwrite=overwrite,
        differs=lambda _, path: IndexManifest.read(path).difference(wanted),
    ) as out:
        settings = {
            "checkpoint": pair.name,
            "store": [str(part.path) for part in stores_of(pair.store)],
            "values": values,
            "budget": budget,
        }
        if not out.resuming:
            wanted.write(out.path)  # first: it marks the folder as an index
        write_config(out.path / "config.toml", settings)
        manifest = IndexManifest.read(out.path) if out.resuming else wanted
        manifest = _Pass(pair, out.path, manifest, budget * 1_000_000, where, progress).run()
    return IndexResult(
        str(folder),
        manifest.latents,
        manifest.rows,
        folder_bytes(folder),
        time.monotonic() - began,
        None if manifest.dense else manifest.entries,
        None if manifest.rounding is None else manifest.rounding.stated(),
    )


def _folder_of(pair: OpenedPair) -> Path:
    """Where the index goes. Raises DataError for a model that has no folder of saekit's."""
    if pair.checkpoint is None:
        raise DataError(
            f"{pair.name} is a model in memory, and an index is kept beside its checkpoint",
            "give the checkpoint folder",
        )
    if not pair.checkpoint.own:
        raise DataError(
            f"{pair.name} is not a folder that saekit wrote, and an index is kept beside its"
            " checkpoint",
            f"saekit import {pair.name} OUT, then index OUT",
        )
    return index_folder(Path(pair.checkpoint.path), pair.contents())


def _wanted(pair: OpenedPair, values: Values, device: torch.device) -> IndexManifest:
    stores = [indexed_store(part) for part in stores_of(pair.store) if isinstance(part, Store)]
    if any(shard.rows and not shard.examples for shard in pair.store.origin.manifest.shards):
        raise DataError(f"{pair.store.path} does not say which examples its rows belong to")
    return IndexManifest(
        pair.weights_digest(),
        stores,
        pair.model.latents,
        pair.store.count(),
        values,
        device.type,
        CHUNK_ROWS,
        dense=pair.model.active_above is None,
    )


def index_into(folder: Path, pair: OpenedPair, device: torch.device, progress: Report) -> Index:
    """The index of float32 values in a folder that is there and empty, of any model."""
    manifest = _wanted(pair, "float32", device)
    manifest.write(folder)
    _Pass(pair, folder, manifest, DEFAULT_BUDGET * 1_000_000, device, progress).run()
    return read_index(folder)


class _Pass:
    """From what the manifest lists to the whole index."""

    def __init__(
        self,
        pair: OpenedPair,
        folder: Path,
        manifest: IndexManifest,
        budget: int,
        device: torch.device,
        progress: Report,
    ) -> None:
        self.pair, self.folder, self.manifest = pair, folder, manifest
        self.budget, self.device, self.progress = budget, device, progress

    def run(self) -> IndexManifest:
        if self.manifest.dense and not self.manifest.complete:
            self.manifest = self._of_dense_code()
        elif not self.manifest.complete:
            self._write_runs()
            self.manifest = self._merged()
        for path in (self.folder / RUNS).glob("*"):
            path.unlink()
        if (self.folder / RUNS).is_dir():
            os.rmdir(self.folder / RUNS)
        return self.manifest

    def _of_dense_code(self) -> IndexManifest:
        manifest, report = self.manifest, self.progress
        rows_done = lambda done: report(Progress("index", done, manifest.rows))
        files = index_dense(self.folder, manifest, self.pair, self.device, rows_done)
        whole = replace(manifest, files=files, complete=True)
        whole.write(self.folder)
        return whole

    def _write_runs(self) -> None:
        rows = self.manifest.rows
        if damage := keep_whole_runs(self.folder, self.manifest):
            self._say(damage)
        writer = RunWriter(self.folder, self.manifest, self.budget)
        done = writer.rows
        for entries in self._entries(done):
            writer.append(entries)
            done += len(entries.counts)
            self.progress(Progress("index", done, rows))
        writer.close()

    def _entries(self, start: int) -> Iterator[Entries]:
        chunk = self.manifest.chunk
        copied, known = self._known() if self.manifest.values == "float32" else (0, None)
        if known is None or start >= copied:
            found = encoded_entries(self.pair, self.device, chunk, start)
        else:
            self._say(f"{copied:,} rows are copied from {known.path}")
            found = chain(
                known.entries(start, copied, chunk),
                encoded_entries(self.pair, self.device, chunk, copied),
            )
        return map(in_half, found) if self.manifest.values == "float16" else found

    def _known(self) -> tuple[int, Index | None]:
        """The index beside this one that shares most rows with it, and their number."""
        target = self.folder
        shared: list[tuple[int, Path]] = []
        for folder in sorted(target.parent.glob("[0-9a-f]" * 16)):
            with suppress(DataError):  # a damaged one is not this command's concern
                manifest = None if folder == target else checked_manifest(folder)
                if manifest is not None and (rows := manifest.shared_rows(self.manifest)):
                    shared.append((rows, folder))
        for rows, folder in sorted(shared, reverse=True):
            with suppress(DataError):
                index = read_index(folder)
                _ = index.by_row  # its checksum
                return rows, index
        return 0, None

    def _merged(self) -> IndexManifest:
        manifest = self.manifest
        manifest.entries = sum(run.entries for run in manifest.runs)
        report = lambda done: self.progress(Progress("merge", done, manifest.latents, "latents"))
        files = merge(self.folder, manifest, self.pair.store.origin, self.budget, report)
        whole = replace(
            manifest, runs=[], files=files, rounding=manifest.runs[-1].rounding, complete=True
        )
        whole.write(self.folder)
        return whole

    def _say(self, text: str) -> None:
        self.progress(Progress("index", 0, self.manifest.rows, message=text))
