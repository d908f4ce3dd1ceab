"""Which latents are active in each patch of the images that a page shows: patches/NNN.js.

An image has as many entries as the dictionary's L0 times its patches, so a page keeps the strongest
of each patch, at three significant digits, and stops at a number of bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from saekit.indexing.reader import Index
from saekit.inspection.site import Folder, Inline, pack
from saekit.store.reader import Store
from saekit.store.stack import StackedStore
from saekit.types import Example

KEPT = 6  # latents of a patch, of largest size
DIGITS = 3
IMAGES_EACH_FILE = 32
MOST_BYTES = 64_000_000
BYTES_EACH_PATCH = 26  # of six latents, packed (measured on emoji)


class PatchLatents:
    """Reads them from the index, by the id of an example."""

    def __init__(self, index: Index, store: Store | StackedStore) -> None:
        self._index, self._first_row, self._rows = index, dict[int, int](), dict[int, int]()
        grid = store.spec.grid
        assert grid is not None, "a store of images with patches"
        self._patches = grid[0] * grid[1]
        offset = 0
        for shard in store.origin.shards:
            arrays = shard.arrays
            ids = arrays["examples.id"].tolist()
            self._first_row |= zip(ids, (arrays["examples.first_row"] + offset).tolist())
            self._rows |= zip(ids, arrays["examples.rows"].tolist())
            offset += len(shard)

    @property
    def most_bytes(self) -> int:
        """About so many bytes the patches of all images would take on a page, and no more."""
        return min(MOST_BYTES, len(self._rows) * self._patches * BYTES_EACH_PATCH)

    def __call__(self, example_id: int) -> list[list[float]]:
        """Of every patch, row-major: [latent, value, latent, value, ...], the largest size first;
        [] for a patch that was not stored."""
        order, first = self._index.by_row, self._first_row[example_id]
        stop = first + self._rows[example_id]
        ptr = order.ptr[first : stop + 1]
        entries, counts = slice(int(ptr[0]), int(ptr[-1])), np.diff(ptr)
        latent, value = order.latent[entries], order.value[entries].astype(np.float32)
        # entries by row, and of a row by size; a class token and registers are at positions below 0
        row = np.repeat(np.arange(stop - first), counts)
        best = np.lexsort((-np.abs(value), row))
        place = np.arange(len(row)) - np.repeat(ptr[:-1] - ptr[0], counts)
        patch = np.repeat(self._index.origin.position[first:stop], counts)
        kept = (place < KEPT) & (patch >= 0)
        found: list[list[float]] = [[] for _ in range(self._patches)]
        columns = (patch[kept], latent[best][kept], value[best][kept])
        for at, j, size in zip(*(column.tolist() for column in columns)):
            found[at] += [j, float(f"{size:.{DIGITS}g}")]
        return found


class PatchFiles:
    """Writes every image once, IMAGES_EACH_FILE in a file, until MOST_BYTES are reached. `ids` are
    those of their examples, in the order of the files."""

    def __init__(self, latents: PatchLatents | None, site: Folder | Inline) -> None:
        self.latents, self.site = latents, site
        self.ids: list[int] = []
        self.bytes = 0
        self._known: set[int] = set()
        self._waiting: list[list[list[float]]] = []

    def add(self, examples: list[Example]) -> None:
        if self.latents is None:
            return
        for example in examples:
            index = example.example_id
            if example.grid is None or index in self._known or self.bytes > MOST_BYTES:
                continue
            self._known.add(index)
            self.ids.append(index)
            self._waiting.append(self.latents(index))
            if len(self._waiting) == IMAGES_EACH_FILE:
                self.close()

    def close(self) -> None:
        if self._waiting:
            packed = pack(self._waiting)
            self.site.patches((len(self.ids) - 1) // IMAGES_EACH_FILE, packed)
            self.bytes += len(packed)
            self._waiting = []

    def to_json(self) -> dict[str, Any]:
        """What the catalog says of them."""
        return {"images": self.ids, "each_file": IMAGES_EACH_FILE, "kept": KEPT}
