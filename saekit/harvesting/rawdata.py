"""Data that becomes rows without a model: images, arrays, texts. saekit.harvesting.raw writes them
to a store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from saekit.embedded.digests import SAMPLED_ABOVE, file_digest, is_sampled
from saekit.errors import DataError, NumericsError, UsageError, opt
from saekit.harvesting.arrays import load_array
from saekit.harvesting.config import HarvestConfig
from saekit.harvesting.listed import ListedDocuments, shuffled
from saekit.harvesting.pictures import DEEP
from saekit.harvesting.sources import Data, open_data
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
    x_RD: np.ndarray | None  # None: the document is dropped


class RawData(ABC):
    """Data that becomes rows without a model: `rows_each` rows of width `d_in` per example."""

    hook: str
    modality: str
    dataset: str
    d_in: int
    layout: Layout = "flat"
    grid: tuple[int, int] | None = None
    rows_each: int = 1
    count: int | None = None  # examples that will be stored; None when only a pass would show
    notes: tuple[str, ...] = ()
    column: str | None = None  # the column of a table that is read

    @property
    def skipped(self) -> Sequence[str]:
        """Broken inputs that the last pass has skipped so far (skip_broken)."""
        return ()

    @abstractmethod
    def examples(self, start: int) -> Iterator[RawExample]:
        """From the start-th on, in visiting order."""

    @abstractmethod
    def digest(self) -> str | None: ...

    def extras(self) -> dict[str, bytes]:
        """Files beside the shards that are needed to show the rows: content by name."""
        return {}


# -- pixels ----------------------------------------------------------------------------------------


class Pixels(RawData):
    """Rows are images: (H,W,C) flattened, pixels / 255. Modes other than L become RGB."""

    hook, modality = "pixels", "image"

    def __init__(self, data: Data, config: HarvestConfig) -> None:
        _need_flat(config, "an image")
        self._data = open_data(
            data,
            modality="image",
            column=config.column,
            seed=config.seed,
            skip_broken=config.skip_broken,
        )
        self.dataset, self.column, self.notes = self._data.name, self._data.column, self._data.notes
        first = next(self._data.documents(), None)
        if first is None:
            raise DataError(
                f"{self.dataset} holds no image that can be read",
                f"drop {opt('skip_broken')} to see why",
            )
        image = _gray_or_rgb(first.image, first.name)
        self._first, self._kind = first.name, (image.size, image.mode)
        width, height = image.size
        self.grid = (height, width)
        self.d_in = height * width * len(image.getbands())
        self.count = (
            len(self._data)
            if isinstance(self._data, ListedDocuments) and not config.skip_broken
            else None
        )

    @property
    def skipped(self) -> Sequence[str]:
        return self._data.skipped

    def digest(self) -> str | None:
        return self._data.digest()

    def examples(self, start: int) -> Iterator[RawExample]:
        for document in self._data.documents(start):
            image = _gray_or_rgb(document.image, document.name)
            if (image.size, image.mode) != self._kind:
                raise DataError(
                    f"image {document.name} is {_size(image.size)} {image.mode}, and {self._first}"
                    f" {_size(self._kind[0])} {self._kind[1]}",
                    "resize the images to one size and mode first (PIL: image.resize,"
                    f" image.convert), then {opt('overwrite', True)}",
                )
            pixels_RD = np.asarray(image, np.float32).reshape(1, -1) / 255
            yield RawExample(document.id, document.name, document.label, pixels_RD)


def _gray_or_rgb(image: Image | None, name: str) -> Image:
    assert image is not None, "an image document has an image"
    if DEEP in image.info:
        cause = f"image {name} has mode I;{image.info[DEEP]}: its values do not fit 0 to 255"
        raise DataError(
            cause, "convert the images to 8 bits, or give their values as an array (raw:array)"
        )
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


# -- arrays ----------------------------------------------------------------------------------------


class Array(RawData):
    """A .npy file, memory-mapped, or a .npz with `x` and optionally `y`, one label per entry.

    (N,D) gives rows; (N,T,D) sequences of T rows; (N,H,W,C) rows of H*W*C values, or with layout
    grid grids of H*W rows of C.
    """

    hook, modality = "array", "array"

    def __init__(self, data: Data, config: HarvestConfig) -> None:
        if not isinstance(data, str | Path):
            raise UsageError(
                "raw:array reads a .npy or .npz file",
                "saekit.train takes an array in memory as it is",
            )
        if config.column is not None:
            raise UsageError(
                f"{opt('column')} with raw:array: an array has no columns with names",
                f"drop {opt('column')}",
            )
        self._path = Path(data).expanduser()
        self.dataset = str(self._path.absolute())
        self._x, self._labels = load_array(self._path)
        shape = self._x.shape
        layouts: dict[int, Layout] = {2: "flat", 3: "sequence", 4: "flat"}
        self.layout = "grid" if len(shape) == 4 and config.layout == "grid" else layouts[len(shape)]
        if config.layout not in ("flat", self.layout):
            cause = f"{opt('layout', config.layout)}: {data} has the shape {shape}"
            raise DataError(cause, "a sequence takes an array (N,T,D), a grid one (N,H,W,C)")
        self.grid = shape[1:3] if len(shape) == 4 else None
        self.rows_each = int(np.prod(shape[1:-1])) if self.layout != "flat" else 1
        self.d_in = int(np.prod(shape[1:])) // self.rows_each
        self.count = len(self._x)
        self._order = shuffled(len(self._x), config.seed)
        self._skip_broken = config.skip_broken
        self._skipped: list[str] = []
        if is_sampled(self._path):
            note = (
                f"{data}: above {SAMPLED_ABOVE >> 30} GiB changes are detected only by size, time"
                " and samples"
            )
            self.notes += (note,)

    @property
    def skipped(self) -> Sequence[str]:
        return self._skipped

    def digest(self) -> str:
        return file_digest(self._path)

    def examples(self, start: int) -> Iterator[RawExample]:
        """With skip_broken, entries with NaN or inf are examples without rows."""
        self._skipped = skipped = []
        for number, index in enumerate(self._order):
            if number < start and not self._skip_broken:
                continue
            # fp64 holds values that overflow the stored dtype, so that the writer can distinguish
            # overflow from inf.
            x_RD = np.asarray(self._x[index], np.float64).reshape(self.rows_each, self.d_in)
            if not np.isfinite(x_RD).all():
                place = (
                    f"row {index}"
                    if x_RD.shape[0] == 1
                    else f"row {int(np.argmin(np.isfinite(x_RD).all(1)))} of example {index}"
                )
                if not self._skip_broken:
                    hint = (
                        f"repair or remove it, then {opt('overwrite', True)}; or skip such entries"
                        f" with {opt('skip_broken', True)}"
                    )
                    raise NumericsError(f"{place} of {self._path} holds NaN or inf", hint)
                skipped.append(f"entry {index}")
                x_RD = None
            if number >= start:
                yield RawExample(
                    index,
                    f"{self._path.name}#{index}",
                    self._labels[index] if self._labels else None,
                    x_RD,
                )


# -- texts -----------------------------------------------------------------------------------------


class TfIdf(RawData):
    """Rows are texts: one column per word, l2-normalized, so that all values are in [0, 1].

    Words are runs of letters, lower case, without English stop words; the columns are the
    `vocabulary` most frequent ones. The idf is that of scikit-learn's TfidfVectorizer (smoothed).
    It is fitted on all documents, held-out ones too; it does not use labels. Documents without a
    word of the vocabulary are dropped and counted.
    """

    hook, modality = "tfidf", "text"

    def __init__(self, data: Data, config: HarvestConfig) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        _need_flat(config, "a text")
        source = open_data(
            data,
            modality="text",
            column=config.column,
            seed=config.seed,
            skip_broken=config.skip_broken,
        )
        self.dataset, self._digest = source.name, source.digest()
        self.column, self.notes = source.column, source.notes
        self._documents: list[tuple[int, str, str | None]] = []

        def texts() -> Iterator[str | None]:
            for document in source.documents():
                self._documents.append((document.id, document.name, document.label))
                yield document.text

        vectorizer = TfidfVectorizer(
            token_pattern=WORD, stop_words="english", max_features=config.vocabulary
        )
        try:
            self._x = vectorizer.fit_transform(texts()).tocsr()
        except ValueError as error:  # the only one it raises for strings: an empty vocabulary
            raise DataError(
                f"{source.name} holds no word that is not a stop word", "give English text"
            ) from error
        self._skipped = source.skipped
        self._words = vectorizer.get_feature_names_out().tolist()
        self._idf = vectorizer.idf_.tolist()
        self.d_in = len(self._words)
        self.count = int((np.diff(self._x.indptr) > 0).sum())
        if self.d_in < config.vocabulary:
            note = (
                f"the documents hold {self.d_in:,} different words of the {config.vocabulary:,}"
                " asked for"
            )
            self.notes += (note,)
        if dropped := len(self._documents) - self.count:
            note = f"{dropped:,} documents hold no word of the vocabulary and are left out"
            self.notes += (note,)

    @property
    def skipped(self) -> Sequence[str]:
        return self._skipped

    def digest(self) -> str | None:
        return self._digest

    def examples(self, start: int) -> Iterator[RawExample]:
        for number in range(start, len(self._documents)):
            x_1D = self._x[number]
            yield RawExample(*self._documents[number], x_1D.toarray() if x_1D.nnz else None)

    def extras(self) -> dict[str, bytes]:
        return {
            VOCABULARY: json_bytes({"schema_version": 1, "words": self._words, "idf": self._idf})
        }


def _need_flat(config: HarvestConfig, what: str) -> None:
    if config.layout != "flat":
        raise UsageError(
            f"{opt('layout', config.layout)}: {what} is one row", f"drop {opt('layout')}"
        )
