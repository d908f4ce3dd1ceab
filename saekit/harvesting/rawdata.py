"""Data that becomes rows as it is: images, arrays, texts. What is done with it stands in saekit.harvesting.raw."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from zipfile import BadZipFile

import numpy as np

from saekit.embedded.dequantise import file_digest
from saekit.errors import DataError, MissingError, NumericsError, UsageError
from saekit.harvesting.config import HarvestConfig
from saekit.harvesting.sources import ListedDocuments, open_data, shuffled
from saekit.store.files import json_bytes
from saekit.types import Layout

if TYPE_CHECKING:
    from PIL.Image import Image

VOCABULARY = "vocabulary.json"
# At least two letters: single ones are initials and the variables of formulas.
WORD = r"(?u)\b[^\W\d_]{2,}\b"


class RawExample(NamedTuple):
    doc_id: int
    ref: str
    label: str | None
    x_RD: np.ndarray | None  # None: the document is left out


class RawData(ABC):
    """Data that becomes rows as it is: `rows_each` of width `d_in` an example."""

    hook: str
    modality: str
    dataset: str
    d_in: int
    layout: Layout = "flat"
    grid: tuple[int, int] | None = None
    rows_each: int = 1
    count: int | None = None  # examples that will be stored, None when only a pass could tell
    notes: tuple[str, ...] = ()

    @abstractmethod
    def examples(self, start: int) -> Iterator[RawExample]:
        """From the start-th on, in visiting order."""

    @abstractmethod
    def digest(self) -> str | None: ...

    def extras(self) -> dict[str, bytes]:
        """Files beside the shards that show the rows again: content by name."""
        return {}


# --- pixels ---------------------------------------------------------------------------------------------------------------------


class Pixels(RawData):
    """Rows are images: (H,W,C) flattened, pixels / 255. Modes L and RGB are kept, others become RGB."""

    hook, modality = "pixels", "image"

    def __init__(self, data: str, config: HarvestConfig) -> None:
        _need_flat(config, "an image")
        self._data = open_data(data, modality="image", column=config.column, seed=config.seed)
        self.dataset = self._data.name
        first = next(self._data.documents())
        image = _grey_or_colour(first.image, first.name)
        self._first, self._kind = first.name, (image.size, image.mode)
        width, height = image.size
        self.grid = (height, width)
        self.d_in = height * width * len(image.getbands())
        self.count = len(self._data) if isinstance(self._data, ListedDocuments) else None

    def digest(self) -> str | None:
        return self._data.digest()

    def examples(self, start: int) -> Iterator[RawExample]:
        for document in self._data.documents(start):
            image = _grey_or_colour(document.image, document.name)
            if (image.size, image.mode) != self._kind:
                raise DataError(
                    f"image {document.name} is {_size(image.size)} {image.mode}, and {self._first} {_size(self._kind[0])} {self._kind[1]}",
                    "resize the images to one size and mode first (PIL: image.resize, image.convert), then --overwrite",
                )
            pixels_RD = np.asarray(image, np.float32).reshape(1, -1) / 255
            yield RawExample(document.id, document.name, document.label, pixels_RD)


def _grey_or_colour(image: Image, name: str) -> Image:
    if image.mode.startswith(("I", "F")):
        cause = f"image {name} has mode {image.mode}: its values do not fit 0 to 255"
        raise DataError(cause, "convert the images to 8 bits, or give their values as an array (raw:array)")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


# --- arrays ---------------------------------------------------------------------------------------------------------------------


class Array(RawData):
    """A .npy file, memory-mapped, or a .npz with `x` and optionally `y`, a label an entry.

    (N,D) gives rows; (N,T,D) sequences of T rows; (N,H,W,C) rows of H*W*C values, or with layout grid grids of H*W rows of C.
    """

    hook, modality = "array", "array"

    def __init__(self, data: str, config: HarvestConfig) -> None:
        if config.column is not None:
            raise UsageError("--column with raw:array: an array has no columns with names", "leave --column away")
        self._path = Path(data).expanduser()
        self.dataset = str(self._path.absolute())
        self._x, self._labels = _load(self._path)
        shape = self._x.shape
        self.layout = {2: "flat", 3: "sequence", 4: "grid" if config.layout == "grid" else "flat"}[len(shape)]
        if config.layout not in ("flat", self.layout):
            cause = f"--layout {config.layout}: {data} has the shape {shape}"
            raise DataError(cause, "a sequence takes an array (N,T,D), a grid one (N,H,W,C)")
        self.grid = shape[1:3] if len(shape) == 4 else None
        self.rows_each = int(np.prod(shape[1:-1])) if self.layout != "flat" else 1
        self.d_in = int(np.prod(shape[1:])) // self.rows_each
        self.count = len(self._x)
        self._order = shuffled(len(self._x), config.seed)

    def digest(self) -> str:
        return file_digest(self._path)

    def examples(self, start: int) -> Iterator[RawExample]:
        for index in self._order[start:]:
            # fp64 holds what the stored dtype may not, so that the writer can tell overflow from inf.
            x_RD = np.asarray(self._x[index], np.float64).reshape(self.rows_each, self.d_in)
            if not np.isfinite(x_RD).all():
                place = f"row {index}" if x_RD.shape[0] == 1 else f"row {int(np.argmin(np.isfinite(x_RD).all(1)))} of example {index}"
                raise NumericsError(f"{place} of {self._path} holds NaN or inf", "repair it or leave it out, then --overwrite")
            yield RawExample(index, f"{self._path.name}#{index}", self._labels[index] if self._labels else None, x_RD)


def _load(path: Path) -> tuple[np.ndarray, list[str] | None]:
    """(x, labels or None). No pickle is ever opened."""
    if not path.is_file():
        raise MissingError(f"there is no array file at {path}", "give a .npy or .npz file")
    if path.suffix not in (".npy", ".npz"):
        raise DataError(f"{path} is no array file", "save it with numpy.save (.npy) or numpy.savez (.npz, arrays x and y)")
    labels = None
    try:
        loaded = np.load(path, mmap_mode="r" if path.suffix == ".npy" else None, allow_pickle=False)
        if not isinstance(loaded, np.ndarray):
            if "x" not in loaded:
                raise DataError(f"{path} has no array x; it holds {', '.join(loaded) or 'none'}", "numpy.savez(path, x=..., y=...)")
            loaded, labels = loaded["x"], loaded["y"] if "y" in loaded else None
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise DataError(f"{path} cannot be read as an array: {error}", "save it with numpy.save, without objects") from error
    _check(path, loaded, labels)
    return loaded, None if labels is None else [_label(value) for value in labels]


def _check(path: Path, x: np.ndarray, y: np.ndarray | None) -> None:
    if x.dtype.kind not in "biuf":
        raise DataError(f"{path} holds {x.dtype}, not numbers", "save integers or floats")
    if x.ndim not in (2, 3, 4) or 0 in x.shape:
        raise DataError(f"{path} has the shape {x.shape}", "give (N,D), (N,T,D) or (N,H,W,C)")
    if y is not None and y.shape != x.shape[:1]:
        raise DataError(f"{path}: y has the shape {y.shape}, and x {len(x):,} entries", "give one label an entry")


def _label(value: np.generic) -> str:
    return value.decode() if isinstance(value, bytes) else str(value.item())


# --- texts ----------------------------------------------------------------------------------------------------------------------


class TfIdf(RawData):
    """Rows are texts: one column a word, l2-normalised, so that all values lie in [0, 1].

    Words are runs of letters, lower case, without English stop words; the `vocabulary` most frequent make the columns. The idf is that of
    scikit-learn's TfidfVectorizer (smoothed). It is fitted on all documents, held-out ones too; it sees no labels. Documents without a word
    of the vocabulary are left out and counted.
    """

    hook, modality = "tfidf", "text"

    def __init__(self, data: str, config: HarvestConfig) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        _need_flat(config, "a text")
        source = open_data(data, modality="text", column=config.column, seed=config.seed)
        self.dataset, self._digest = source.name, source.digest()
        self._documents: list[tuple[int, str, str | None]] = []

        def texts() -> Iterator[str]:
            for document in source.documents():
                self._documents.append((document.id, document.name, document.label))
                yield document.text

        vectorizer = TfidfVectorizer(token_pattern=WORD, stop_words="english", max_features=config.vocabulary)
        try:
            self._x = vectorizer.fit_transform(texts()).tocsr()
        except ValueError as error:  # the only one it raises for strings: an empty vocabulary
            raise DataError(f"{data} holds no word that is not a stop word", "give English text") from error
        self._words, self._idf = vectorizer.get_feature_names_out().tolist(), vectorizer.idf_.tolist()
        self.d_in = len(self._words)
        self.count = int((np.diff(self._x.indptr) > 0).sum())
        if self.d_in < config.vocabulary:
            self.notes += (f"the documents hold {self.d_in:,} different words of the {config.vocabulary:,} asked for",)
        if left_out := len(self._documents) - self.count:
            self.notes += (f"{left_out:,} documents hold no word of the vocabulary and are left out",)

    def digest(self) -> str | None:
        return self._digest

    def examples(self, start: int) -> Iterator[RawExample]:
        for number in range(start, len(self._documents)):
            x_1D = self._x[number]
            yield RawExample(*self._documents[number], x_1D.toarray() if x_1D.nnz else None)

    def extras(self) -> dict[str, bytes]:
        return {VOCABULARY: json_bytes({"schema_version": 1, "words": self._words, "idf": self._idf})}


def _need_flat(config: HarvestConfig, what: str) -> None:
    if config.layout != "flat":
        raise UsageError(f"--layout {config.layout}: {what} is one row", "leave --layout away")
