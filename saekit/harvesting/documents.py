"""What harvesting reads, whatever it comes from: documents, each a text or an image."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

Modality = Literal["text", "image"]


@dataclass(frozen=True)
class Document:
    """A text or an image. `id` is its index in the source; an image's `name` is what `Documents.image` opens again."""

    id: int
    name: str
    text: str | None = None
    image: Image | None = None
    label: str | None = None


class Documents(ABC):
    """`name` is what a store's spec records, and what `open_data` takes to open the same data again."""

    name: str
    modality: Modality

    @abstractmethod
    def documents(self, start: int = 0) -> Iterator[Document]:
        """Documents from the start-th in visiting order on; those before are not opened."""

    @abstractmethod
    def digest(self) -> str | None:
        """A cheap digest of the content (16 hex digits), None where only the hub could tell."""

    @abstractmethod
    def image(self, ref: str) -> Image:
        """The image that a Document's name stands for."""


def need_images(data: Documents) -> None:
    assert data.modality == "image", f"{data.name} holds text"


def digest_of(parts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part.encode()).digest())
    return digest.hexdigest()[:16]
