"""DATA to documents, whatever it is: an embedded set, a file, a folder, a hub dataset.

Two shapes of data. What can be listed (embedded sets, paragraphs of a .txt, folders) is visited in an order shuffled by `seed`,
so that the first rows of a harvest are a fair sample of all of it. What can only be streamed (jsonl, csv, parquet, the hub) keeps
its order. Either way a document's id is its index in the source, so it means the same under every seed.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekit.embedded import data_set, is_embedded
from saekit.embedded.dequantise import file_digest
from saekit.errors import DataError, MissingError
from saekit.harvesting.documents import Document, Documents, Modality, digest_of, need_images
from saekit.harvesting.streams import TABLES, open_hub, open_table

if TYPE_CHECKING:
    from PIL.Image import Image

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".text")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def open_data(data: str, *, modality: Modality, column: str | None = None, seed: int = 0) -> Documents:
    """Open DATA as documents of `modality`. `column` is the field of a table that holds the text or image (else it is guessed).

    Raises UsageError for an unknown embedded name, MissingError when there is nothing at `data`, DataError when it holds the
    other modality, no documents, or no such column.
    """
    if is_embedded(data):
        return _embedded(data, modality, seed)
    path = Path(data).expanduser()
    if path.is_dir():
        return _folder(path, modality, column, seed)
    if path.is_file():
        return _file(path, modality, column, seed)
    repo, _, split = data.partition(":")
    looks_local = data.endswith(os.sep) or path.suffix in (*TEXT_SUFFIXES, *IMAGE_SUFFIXES, *TABLES) or repo.startswith((".", "~", os.sep))
    if looks_local and not Path(repo).is_dir():
        raise MissingError(f"there is no data at {data}", "check the path, or use embedded:pydocs or embedded:digits")
    return open_hub(repo, split or "train", modality, column)


# --- what can be listed --------------------------------------------------


class ListedDocuments(Documents):
    """`names` in source order; `load(index)` gives the text or the image."""

    def __init__(
        self,
        name: str,
        modality: Modality,
        names: Sequence[str],
        load: Callable[[int], Any],
        digest: Callable[[], str],
        seed: int,
        label: Callable[[int], str | None] = lambda index: None,
    ) -> None:
        if not names:
            raise DataError(f"{name} holds no {modality} documents", "check the path and the files in it")
        self.name, self.modality, self.names = name, modality, names
        self._load, self._digest, self._label, self._order = load, digest, label, shuffled(len(names), seed)

    def __len__(self) -> int:
        return len(self.names)

    def documents(self, start: int = 0) -> Iterator[Document]:
        for index in self._order[start:]:
            value = self._load(index)
            text, image = (value, None) if self.modality == "text" else (None, value)
            yield Document(index, self.names[index], text, image, self._label(index))

    def digest(self) -> str:
        return self._digest()

    def image(self, ref: str) -> Image:
        need_images(self)
        if ref not in self._indices:
            raise MissingError(f"{self.name} has no image {ref}", "the data has changed since it was harvested")
        return self._load(self._indices[ref])

    @functools.cached_property
    def _indices(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}


def shuffled(count: int, seed: int) -> list[int]:
    """0..count-1 in an order that depends on the seed alone: by hash, so that no library's generator can change it."""
    return sorted(range(count), key=lambda index: hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest())


def _embedded(data: str, modality: Modality, seed: int) -> Documents:
    found = data_set(data)
    _need_modality(data, found.modality, modality)
    return ListedDocuments(data, modality, found.names, found.load, lambda: digest_of(found.content()), seed, found.label)


def _file(path: Path, modality: Modality, column: str | None, seed: int) -> Documents:
    name = str(path.absolute())
    if path.suffix in TABLES:
        return open_table([path], name, modality, column)
    _need_modality(name, "image" if path.suffix.lower() in IMAGE_SUFFIXES else "text", modality)
    if modality == "image":
        return _images(path.parent, [path], name, seed)
    if path.suffix not in TEXT_SUFFIXES:
        known = ", ".join((*TEXT_SUFFIXES, *TABLES))
        raise DataError(f"{path} is of no kind that can be read as text", f"give one of {known}, or a folder")
    paragraphs = [part for part in re.split(r"\n[ \t\r]*\n", _read_text(path)) if part.strip()]
    names = [f"{path.name}#{index}" for index in range(len(paragraphs))]
    return ListedDocuments(name, "text", names, paragraphs.__getitem__, lambda: file_digest(path), seed)


def _folder(path: Path, modality: Modality, column: str | None, seed: int) -> Documents:
    name = str(path.absolute())
    files = sorted(each for each in path.rglob("*") if each.is_file() and not each.name.startswith("."))
    kinds = sorted({file.suffix for file in files if file.suffix in TABLES})
    if len(kinds) > 1:
        raise DataError(f"{path} holds tables of several kinds: {', '.join(kinds)}", "give one file, or a folder of one kind")
    if modality == "image":
        if images := [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]:
            return _images(path, images, name, seed)
    # A README beside tables, as in every downloaded dataset, is not the data.
    elif not kinds and (texts := [file for file in files if file.suffix in TEXT_SUFFIXES]):
        names = [file.relative_to(path).as_posix() for file in texts]
        return ListedDocuments(name, "text", names, lambda index: _read_text(texts[index]), lambda: _listing(path, texts), seed)
    if kinds:
        return open_table([file for file in files if file.suffix in kinds], name, modality, column)
    wanted = IMAGE_SUFFIXES if modality == "image" else (*TEXT_SUFFIXES, *TABLES)
    raise DataError(f"{path} holds no {modality} files", f"put {', '.join(wanted)} files there")


def _images(root: Path, files: list[Path], name: str, seed: int) -> Documents:
    names = [file.relative_to(root).as_posix() for file in files]

    def label(index: int) -> str | None:
        folder, _, rest = names[index].partition("/")
        return folder if rest else None

    return ListedDocuments(name, "image", names, lambda index: _read_image(files[index]), lambda: _listing(root, files), seed, label)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start})", "convert it, or leave it out of the folder") from error


def _read_image(path: Path) -> Image:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()
            return image.copy()
    except (UnidentifiedImageError, OSError, SyntaxError) as error:  # SyntaxError: what PIL raises for a broken PNG
        raise DataError(f"{path} cannot be read as an image: {error}", "remove or repair the file") from error


def _need_modality(name: str, holds: Modality, wanted: Modality) -> None:
    if holds != wanted:
        other = "embedded:pydocs" if wanted == "text" else "embedded:digits"
        raise DataError(f"{name} holds {holds}s, not {wanted}s", f"give {wanted} data, such as {other}")


def _listing(root: Path, files: Sequence[Path]) -> str:
    """Names and sizes: reading a million images to tell whether they changed would cost more than harvesting them."""
    return digest_of([f"{file.relative_to(root).as_posix()} {file.stat().st_size}" for file in files])
