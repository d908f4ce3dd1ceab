"""Runs -> the files of an index. Runs hold rows one after another, so a latent's entries are those
of each run, joined: nothing is compared, and memory is a block of latents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from saekit.indexing.manifest import BY_FEATURE, BY_ROW, FEATURES, ORIGIN, SHOWN, IndexManifest
from saekit.indexing.origin import read_origin, write_origin
from saekit.indexing.row_order import RowOrder
from saekit.indexing.runs import open_run
from saekit.indexing.shown import shown_rows, write_shown
from saekit.indexing.statistics import FEATURE_TENSORS, at_beginnings, blocks, statistics
from saekit.indexing.tensor_file import mapped_tensors, writing_tensors
from saekit.store.files import sha256_of
from saekit.store.reader import Store

# of memory per entry of a block: row, value, and its place before and after (8 each)
BYTES_PER_ENTRY = 28
PIECE = 1 << 20  # entries copied at a time


def by_feature_tensors(manifest: IndexManifest) -> dict[str, tuple[str, int]]:
    entries = manifest.entries
    return {
        "ptr": ("int64", manifest.latents + 1),
        "row": (manifest.row_type, entries),
        "value": (manifest.values, entries),
    }


def by_row_tensors(manifest: IndexManifest) -> dict[str, tuple[str, int]]:
    entries = manifest.entries
    return {
        "ptr": ("int64", manifest.rows + 1),
        "latent": ("int32", entries),
        "value": (manifest.values, entries),
    }


def feature_tensors(manifest: IndexManifest) -> dict[str, tuple[str, int]]:
    return {name: (dtype, manifest.latents) for name, dtype in FEATURE_TENSORS.items()}


def merge(
    folder: Path,
    manifest: IndexManifest,
    store: Store,
    budget: int,
    report: Callable[[int], None] = lambda _: None,
) -> dict[str, str]:
    """Write the files of an index whose runs are whole; returns name -> sha256. `budget` in bytes.
    `report` is called with the number of latents done."""
    runs = [open_run(folder, manifest, run) for run in manifest.runs]
    _write_by_row(folder / BY_ROW, manifest, runs)
    _write_by_feature(folder / BY_FEATURE, manifest, runs, budget // BYTES_PER_ENTRY, report)
    write_origin(folder / ORIGIN, store)
    _write_figures(folder, manifest)
    written = (BY_FEATURE, BY_ROW, ORIGIN, FEATURES, SHOWN)
    return {name: sha256_of(folder / name) for name in written}


def _write_by_row(path: Path, manifest: IndexManifest, runs: list[dict[str, np.ndarray]]) -> None:
    with writing_tensors(path, by_row_tensors(manifest)) as file:
        file.append("ptr", np.zeros(1, np.int64))
        before = 0
        for run in runs:
            file.append("ptr", run["row_ptr"][1:] + before)
            before += int(run["row_ptr"][-1])
            for name, source in (("latent", "latent"), ("value", "row_value")):
                for at in range(0, len(run[source]), PIECE):
                    file.append(name, run[source][at : at + PIECE])


def _write_by_feature(
    path: Path,
    manifest: IndexManifest,
    runs: list[dict[str, np.ndarray]],
    most: int,
    report: Callable[[int], None],
) -> None:
    ptr = np.zeros(manifest.latents + 1, np.int64)
    for run in runs:
        ptr += run["ptr"]
    with writing_tensors(path, by_feature_tensors(manifest)) as file:
        file.append("ptr", ptr)
        for a, b in blocks(ptr, most):
            if b == a + 1:  # perhaps more than fits in memory
                for run in runs:
                    lo, hi = run["ptr"][a : a + 2].tolist()
                    for at in range(lo, hi, PIECE):
                        piece = slice(at, min(at + PIECE, hi))
                        file.append("row", run["row"][piece])
                        file.append("value", run["value"][piece])
            else:
                row, value = _joined(runs, ptr[a : b + 1], a, b)
                file.append("row", row)
                file.append("value", value)
            report(b)


def _joined(
    runs: list[dict[str, np.ndarray]], ptr: np.ndarray, a: int, b: int
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, values) of the latents [a, b), whose entries begin at `ptr` in the merged file."""
    row = np.empty(ptr[-1] - ptr[0], runs[0]["row"].dtype)
    value = np.empty(len(row), runs[0]["value"].dtype)
    free = ptr[:-1] - ptr[0]  # where the next entry of each latent goes
    for run in runs:
        begin = run["ptr"][a : b + 1]
        counts = np.diff(begin)
        lo, hi = int(begin[0]), int(begin[-1])
        place = np.arange(hi - lo) + np.repeat(free - (begin[:-1] - lo), counts)
        row[place], value[place] = run["row"][lo:hi], run["value"][lo:hi]
        free = free + counts
    return row, value


def _write_figures(folder: Path, manifest: IndexManifest) -> None:
    by_feature = mapped_tensors(folder / BY_FEATURE, by_feature_tensors(manifest))
    order = RowOrder(
        **mapped_tensors(folder / BY_ROW, by_row_tensors(manifest)), latents=manifest.latents
    )
    origin = read_origin(folder / ORIGIN)
    figures = statistics(**by_feature, chunk=manifest.chunk)
    figures |= at_beginnings(order, origin)
    with writing_tensors(folder / FEATURES, feature_tensors(manifest)) as file:
        for name, values in figures.items():
            file.append(name, values)
    example, chunk = origin.example, manifest.chunk
    shown = shown_rows(**by_feature, order=order, example=example, chunk=chunk, scratch=folder)
    write_shown(folder / SHOWN, shown, manifest.row_type)
