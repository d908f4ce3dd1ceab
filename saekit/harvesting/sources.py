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
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saekit.embedded import check_data_name, is_embedded
from saekit.embedded.dequantise import file_digest
from saekit.errors import DataError, MissingError, did_you_mean
from saekit.harvesting.models import not_found

if TYPE_CHECKING:
    from PIL.Image import Image

Modality = Literal["text", "image"]

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".text")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
TABLES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}  # suffix -> builder of datasets


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


def open_data(data: str, *, modality: Modality, column: str | None = None, seed: int = 0) -> Documents:
    """Open DATA for a model of `modality`. `column` is the field of a table that holds the text or image (else it is guessed).

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
    return _hub(repo, split or "train", modality, column)


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
        _need_images(self)
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
    if check_data_name(data) == "pydocs":
        _need_modality(data, "text", modality)
        from saekit.embedded import pydocs

        found = pydocs.documents()
        names, texts = [name for name, _ in found], [text for _, text in found]
        return ListedDocuments(data, "text", names, texts.__getitem__, lambda: _digest_of(names + texts), seed)
    _need_modality(data, "image", modality)
    from saekit.embedded import digits

    names = [f"digit-{index:04d}" for index in range(digits.count())]
    return ListedDocuments(data, "image", names, digits.image, lambda: _digest_of([digits.arrays()[0].tobytes().hex()]), seed, digits.label)


def _file(path: Path, modality: Modality, column: str | None, seed: int) -> Documents:
    name = str(path.absolute())
    if path.suffix in TABLES:
        return _table([path], name, modality, column)
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
        return _table([file for file in files if file.suffix in kinds], name, modality, column)
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


# --- what is streamed --------------------------------------------------


class StreamedDocuments(Documents):
    """Rows of a streaming dataset, in file order."""

    def __init__(self, name: str, modality: Modality, rows: Any, column: str | None, digest: Callable[[], str | None]) -> None:
        self.name, self.modality = name, modality
        self._digest = digest
        first = next(iter(rows.take(1)), None)
        if first is None:
            raise DataError(f"{name} has no rows", "check the file or the split")
        self.column = _pick_column(name, first, modality, column)
        self._rows = _with_images(rows, self.column) if modality == "image" else rows
        self._classes = getattr((getattr(rows, "features", None) or {}).get("label"), "names", None)

    def documents(self, start: int = 0) -> Iterator[Document]:
        for index, row in self._numbered(start):
            value, label = row[self.column], row.get("label")
            if self._classes and isinstance(label, int):
                label = self._classes[label]
            text, image = (str(value or ""), None) if self.modality == "text" else (None, value)
            yield Document(index, str(index), text, image, None if label is None else str(label))

    def digest(self) -> str | None:
        return self._digest()

    def image(self, ref: str) -> Image:
        _need_images(self)
        for _, row in self._numbered(int(ref)):
            return row[self.column]
        raise MissingError(f"{self.name} has no image {ref}", "the data has changed since it was harvested")

    def _numbered(self, start: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """(index, row) from `start` on; a row that cannot be read or decoded is named."""
        from datasets.exceptions import DatasetGenerationError
        from PIL import UnidentifiedImageError

        rows = iter(self._rows.skip(start) if start else self._rows)
        for index in count(start):
            try:
                row = next(rows)
            except StopIteration:
                return
            except (ValueError, SyntaxError, UnidentifiedImageError, DatasetGenerationError) as error:
                raise DataError(f"row {index} of {self.name} cannot be read: {error}", "repair or remove the row") from error
            except OSError as error:
                raise MissingError(f"{self.name} cannot be read past row {index}: {error}", "continue with --resume") from error
            yield index, row


def _table(files: list[Path], name: str, modality: Modality, column: str | None) -> Documents:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    builder = TABLES[files[0].suffix]
    try:
        rows = load_dataset(builder, data_files=[str(file) for file in files], split="train", streaming=True)
        return StreamedDocuments(name, modality, rows, column, lambda: _digest_of([file_digest(file) for file in files]))
    except (ValueError, DatasetGenerationError) as error:  # ArrowInvalid and JSON errors are ValueErrors
        raise DataError(f"{name} cannot be read as {builder}: {error}", "check the file") from error


def _hub(repo: str, split: str, modality: Modality, column: str | None) -> Documents:
    """`split` may carry a configuration in front: `name:config:split`."""
    from datasets import load_dataset

    config, _, split = split.rpartition(":")
    name = f"{repo}:{config}:{split}" if config else f"{repo}:{split}"
    try:
        rows = load_dataset(repo, config or None, split=split, streaming=True)
        return StreamedDocuments(name, modality, rows, column, lambda: None)
    except ValueError as error:  # unknown split or configuration; the message lists them
        raise DataError(f"{name}: {error}", "give DATA as name:split or name:config:split") from error
    except (OSError, RuntimeError) as error:
        raise not_found("dataset", repo, error) from error


def _with_images(rows: Any, column: str) -> Any:
    """Decode the column from {bytes, path} when the files do not say themselves that it holds images."""
    from datasets import Image

    features = getattr(rows, "features", None)
    return rows if features and isinstance(features.get(column), Image) else rows.cast_column(column, Image())


def _pick_column(name: str, row: dict[str, Any], modality: Modality, column: str | None) -> str:
    def fits(value: Any) -> bool:
        if modality == "text":
            return isinstance(value, str)
        return hasattr(value, "getbands") or (isinstance(value, dict) and "bytes" in value)

    candidates = [key for key, value in row.items() if fits(value)]
    preferred = "text" if modality == "text" else "image"
    guess = preferred if preferred in candidates else next(iter(candidates), None)
    wanted = column or guess
    if wanted not in row:
        what = f"has no column {column}" if column else f"has no column with {modality}"
        hint = f"{did_you_mean(column, row) if column else ''}--column {guess}" if guess else "choose other data"
        raise DataError(f"{name} {what}; its columns are {', '.join(row)}", hint)
    if wanted not in candidates:
        hint = f"--column {guess}" if guess else "choose other data"
        raise DataError(f"column {wanted} of {name} holds {type(row[wanted]).__name__}, not {modality}", hint)
    return wanted


# --- checks and digests --------------------------------------------------


def _need_modality(name: str, holds: Modality, wanted: Modality) -> None:
    if holds != wanted:
        other = "embedded:pydocs" if wanted == "text" else "embedded:digits"
        raise DataError(f"{name} holds {holds}s, and the model reads {wanted}s", f"give {wanted} data, such as {other}")


def _need_images(data: Documents) -> None:
    assert data.modality == "image", f"{data.name} holds text"


def _digest_of(parts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part.encode()).digest())
    return digest.hexdigest()[:16]


def _listing(root: Path, files: Sequence[Path]) -> str:
    """Names and sizes: reading a million images to tell whether they changed would cost more than harvesting them."""
    return _digest_of([f"{file.relative_to(root).as_posix()} {file.stat().st_size}" for file in files])
