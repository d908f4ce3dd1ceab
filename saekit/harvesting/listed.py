"""Documents that can be listed: known by number before any is opened, visited in an order that
depends on the seed."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from saekit.errors import DataError, MissingError
from saekit.harvesting.documents import Document, Documents, Modality, need_images

if TYPE_CHECKING:
    from PIL.Image import Image


def _no_label(index: int) -> str | None:
    return None


@dataclass
class Listing:
    """`names` in source order; `load(index)` returns the text or the image, or raises DataError
    when it is broken. Items with the same `document(index)` are never on both sides of a split."""

    name: str
    names: Sequence[str]
    load: Callable[[int], Any]
    digest: Callable[[], str]
    label: Callable[[int], str | None] = _no_label
    document: Callable[[int], int] = int


class ListedDocuments(Documents):
    def __init__(
        self, listing: Listing, modality: Modality, seed: int, skip_broken: bool = False
    ) -> None:
        if not listing.names:
            raise DataError(
                f"{listing.name} holds no {modality} documents",
                "check the path and the files in it",
            )
        self.name, self.modality, self.skip_broken = listing.name, modality, skip_broken
        self._listing, self._order = listing, shuffled(len(listing.names), seed)

    def __len__(self) -> int:
        return len(self._listing.names)

    def documents(self, start: int = 0) -> Iterator[Document]:
        if self.skip_broken:
            return islice(self._unbroken(), start, None)
        return (self._document(index) for index in self._order[start:])

    def _unbroken(self) -> Iterator[Document]:
        self.skipped = skipped = []
        for index in self._order:
            try:
                document = self._document(index)
            except DataError:
                skipped.append(self._listing.names[index])
                continue
            yield document

    def _document(self, index: int) -> Document:
        value = self._listing.load(index)
        text, image = (value, None) if self.modality == "text" else (None, value)
        listing = self._listing
        return Document(
            listing.document(index), listing.names[index], text, image, listing.label(index)
        )

    def digest(self) -> str:
        return self._listing.digest()

    def image(self, ref: str) -> Image:
        need_images(self)
        if ref not in self._indices:
            raise MissingError(
                f"{self.name} has no image {ref}", "the data has changed since it was harvested"
            )
        return self._listing.load(self._indices[ref])

    @functools.cached_property
    def _indices(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self._listing.names)}


def shuffled(count: int, seed: int) -> list[int]:
    """0..count-1 in an order that depends only on the seed: by hash, so that no change of a
    library's random generator affects it."""
    return sorted(
        range(count),
        key=lambda index: hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest(),
    )
