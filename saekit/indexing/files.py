"""The files of an index, memory-mapped, each checked when it is first read."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from saekit.errors import DataError, opt
from saekit.indexing.dense import read_histogram
from saekit.indexing.histogram import Histogram
from saekit.indexing.manifest import (
    BY_FEATURE,
    BY_ROW,
    FEATURES,
    HISTOGRAMS,
    ORIGIN,
    SHOWN,
    IndexManifest,
)
from saekit.indexing.merge import by_feature_tensors, by_row_tensors, feature_tensors
from saekit.indexing.origin import Origin, read_origin
from saekit.indexing.row_order import RowOrder
from saekit.indexing.shown import ShownRows, read_shown, shown_rows
from saekit.indexing.tensor_file import Shapes, mapped_tensors
from saekit.store.files import known_digest
from saekit.store.oserrors import reading
from saekit.typed import MisfitError


class IndexFiles:
    """Raises DataError for a file that is missing, and when it is first read for one whose checksum
    is not that of index.json."""

    def __init__(self, path: Path, manifest: IndexManifest) -> None:
        self.path, self.manifest = path, manifest
        for name in manifest.files:
            if not (path / name).is_file():
                raise _damaged(path / name, "is missing")

    def _checked(self, name: str) -> Path:
        """The path of a file whose checksum is right. Raises DataError."""
        if name not in self.manifest.files:
            raise DataError(
                f"{self.path} is of a dense code: it keeps what a page shows of each latent, and no"
                " list of active rows",
                "activations, co-activation, tokens and labels are of sparse codes",
            )
        path, expected = self.path / name, self.manifest.files[name]
        with reading(path):
            digest = known_digest(path, expected)
        if digest != expected:
            raise _damaged(
                path,
                f"is damaged: its sha256 is {digest[:12]}, not {expected[:12]} as in index.json",
            )
        return path

    def _tensors(self, name: str, shapes: Shapes) -> dict[str, np.ndarray]:
        path = self._checked(name)
        try:
            with reading(path):
                return mapped_tensors(path, shapes)
        except MisfitError as error:
            raise _damaged(path, f"is not of this index: {error}") from None

    @cached_property
    def features(self) -> dict[str, np.ndarray]:
        """Figures of every latent (saekit.indexing.statistics)."""
        return self._tensors(FEATURES, feature_tensors(self.manifest))

    @cached_property
    def by_feature(self) -> dict[str, np.ndarray]:
        """The entries by latent: ptr (F+1,), row and value (N,)."""
        return self._tensors(BY_FEATURE, by_feature_tensors(self.manifest))

    @cached_property
    def by_row(self) -> RowOrder:
        """The same entries by row."""
        tensors = self._tensors(BY_ROW, by_row_tensors(self.manifest))
        return RowOrder(**tensors, latents=self.manifest.latents)

    @cached_property
    def shown(self) -> ShownRows:
        """The rows by which each latent is shown."""
        if SHOWN not in self.manifest.files:  # of schema 1
            example, chunk = self.origin.example, self.manifest.chunk
            ptr, row, value = (self.by_feature[name] for name in ("ptr", "row", "value"))
            return shown_rows(ptr, row, value, self.by_row, example, chunk)
        path = self._checked(SHOWN)
        try:
            with reading(path):
                return read_shown(path, self.manifest.latents, self.manifest.row_type)
        except MisfitError as error:
            raise _damaged(path, f"is not of this index: {error}") from None

    def histogram(self, latent: int) -> Histogram:
        """Of a latent of a dense code."""
        path = self._checked(HISTOGRAMS)
        with reading(path):
            return read_histogram(path, self.manifest, self.features["range"], latent)

    @cached_property
    def origin(self) -> Origin:
        """Tokens, contexts or images, documents and labels of the rows."""
        path = self._checked(ORIGIN)
        try:
            with reading(path):
                return read_origin(path)
        except MisfitError as error:
            raise _damaged(path, f"is not of this index: {error}") from None


def _damaged(path: Path, problem: str) -> DataError:
    hint = f"index the store again with {opt('overwrite', True)}, or restore the file from a copy"
    return DataError(f"{path} {problem}", hint)
