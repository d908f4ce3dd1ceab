"""What harvesting reads from any source: documents, which are texts or images."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from saekit.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

Modality = Literal["text", "image"]
_POINTER = b"version https://git-lfs.github.com/spec/"
NAMED = 3  # inputs that a message names; the others are counted


@dataclass(frozen=True)
class Document:
    """A text or an image. `id` is its index in the source; several pictures of one thing may share
    it. `Documents.image` opens an image by its `name`."""

    id: int
    name: str
    text: str | None = None
    image: Image | None = None
    label: str | None = None


class Documents(ABC):
    """`name` is recorded in a store's spec; `open_data` opens the same data by it."""

    name: str
    modality: Modality
    column: str | None = None  # the column of a table that is read
    notes: tuple[str, ...] = ()  # what the user should know before it is read
    # broken inputs that the last pass has skipped so far (skip_broken)
    skipped: Sequence[str] = ()

    @abstractmethod
    def documents(self, start: int = 0) -> Iterator[Document]:
        """Documents from the start-th in visiting order on. Earlier ones are not opened, unless
        broken ones are skipped: only opening shows which count."""

    @abstractmethod
    def digest(self) -> str | None:
        """A digest of the content (16 hex digits); None when the content is on the hub."""

    @abstractmethod
    def image(self, ref: str) -> Image:
        """The image of the Document with the name `ref`."""


def need_images(data: Documents) -> None:
    assert data.modality == "image", f"{data.name} holds text"


def digest_of(parts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part.encode("utf-8", "surrogatepass")).digest())
    return digest.hexdigest()[:16]


def refuse_pointer(path: Path) -> None:
    """Raise DataError for a pointer file of git-lfs."""
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise DataError(
                f"{path} is a pointer of git-lfs, not the data",
                f"`git lfs pull` in {path.parent} fetches it",
            )


def readable_name(path: str) -> str:
    """A file name as text: bytes that are not UTF-8 are written as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def some_of(names: Sequence[str]) -> str:
    """'a, b, c and 4 more'."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more:,} more" if more > 0 else "")
