"""Data in memory as documents: lists of texts, images, rows of the datasets library.

Lists and other iterables are visited in an order shuffled by the seed, like files; rows of a
dataset in their own order, like those of a table. An iterable is read to its end once, so a
generator must end and its items must fit into memory. A resumed harvest needs the same items again;
the digest of their content is compared.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from saekit.errors import DataError
from saekit.harvesting.documents import Documents, Modality
from saekit.harvesting.listed import ListedDocuments, Listing
from saekit.harvesting.streams import LABEL, HubTable, StreamedDocuments
from saekit.harvesting.tables import Row, Table, arrow_kind
from saekit.types import IN_MEMORY

if TYPE_CHECKING:
    from PIL.Image import Image

_BATCH = 64  # rows of a dataset per read


def open_objects(
    data: Any, modality: Modality, column: str | None, seed: int, skip_broken: bool
) -> Documents:
    """Documents of `modality` in objects.

    texts: an iterable of str or of (str, label). images: an iterable of PIL images, arrays or
    tensors (see `as_image`) or of (image, label); an array (N,H,W,3) is one. A datasets.Dataset or
    IterableDataset, or a DataFrame, gives either, by `column`. Raises DataError for anything else,
    and for an item that is not a text or an image when it is read.
    """
    # Datasets of Hugging Face, which are only imported if the caller did so.
    if (datasets := sys.modules.get("datasets")) is not None:
        if isinstance(data, datasets.Dataset):
            return DatasetDocuments(
                f"{len(data)} {modality}s{IN_MEMORY}",
                modality,
                DatasetTable(data),
                column,
                skip_broken,
            )
        if isinstance(data, datasets.IterableDataset):
            return StreamedDocuments(
                f"{modality}s{IN_MEMORY}",
                modality,
                HubTable(data.decode(False), ()),
                column,
                skip_broken,
            )
    # A DataFrame, whose rows are like those of a table.
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(data, pandas.DataFrame):
        from datasets import Dataset

        rows = Dataset.from_pandas(data, preserve_index=False)
        return open_objects(rows, modality, column, seed, skip_broken)
    # What cannot be a list of texts or images.
    if isinstance(data, dict):
        hint = f"give one of them, such as data[{next(iter(data), '')!r}]"
        raise DataError(f"data holds several parts: {', '.join(map(str, data))}", hint)
    if column is not None:
        raise DataError(
            f"column {column} of data in memory that has no columns",
            "give a datasets.Dataset, or no column",
        )
    if not isinstance(data, Iterable):
        raise DataError(
            f"data is a {type(data).__name__}",
            "give a path, a list of texts or images, or a datasets.Dataset",
        )
    if isinstance(data, np.ndarray | torch.Tensor) and data.ndim == 3 and data.shape[2] in (1, 3):
        raise DataError(
            f"data has the shape {tuple(data.shape)}, which is one image",
            "give several: [image, ...], or an array (N,H,W,3)",
        )
    return ListedDocuments(_listing(list(data), modality), modality, seed, skip_broken)


# -- lists -----------------------------------------------------------------------------------------


def _listing(items: list[Any], modality: Modality) -> Listing:
    def load(index: int) -> Any:
        value, _ = _pair(items[index])
        return _text(value, index) if modality == "text" else as_image(value, f"item {index}")

    def label(index: int) -> str | None:
        _, label = _pair(items[index])
        return None if label is None else str(label)

    def digest() -> str:
        return _digest(_pair(item) for item in items)

    return Listing(
        f"{len(items)} {modality}s{IN_MEMORY}",
        [str(index) for index in range(len(items))],
        load,
        digest,
        label,
    )


def _pair(item: Any) -> tuple[Any, Any]:
    """(text or image, label or None). A pair is a tuple: a list may be an image."""
    return item if isinstance(item, tuple) and len(item) == 2 else (item, None)


def _text(value: Any, index: int) -> str:
    if not isinstance(value, str):
        raise DataError(
            f"item {index} is a {type(value).__name__}, not a text",
            "give texts, or pairs (text, label)",
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"item {index} holds half of a character (a lone surrogate)", "repair or remove it"
        ) from error
    return str(value)


def as_image(value: Any, name: str) -> Image:
    """A PIL image of `value`: a PIL image itself, or an array or tensor (H,W), (H,W,C) or (C,H,W)
    with C 1 or 3, uint8 or floats from 0 to 1.

    Floats are rounded to 8 bits. Raises DataError, with `name`, for other shapes, dtypes and
    values, such as pixels that a processor has already normalized.
    """
    from PIL import Image

    # To an array.
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()
    if not isinstance(value, np.ndarray):
        raise DataError(
            f"{name} is a {type(value).__name__}, not an image",
            "give PIL images, arrays or tensors, or pairs (image, label)",
        )
    # To (H,W) or (H,W,C).
    pixels = value
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.shape[2] not in (1, 3):
        pixels = pixels.transpose(1, 2, 0)
    if (
        pixels.ndim not in (2, 3)
        or 0 in pixels.shape
        or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3))
    ):
        raise DataError(
            f"{name} has the shape {value.shape}", "an image is (H,W), (H,W,3) or (3,H,W)"
        )
    # To uint8.
    if pixels.dtype.kind == "f":
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # also for NaN
            raise DataError(
                f"{name} has values from {pixels.min():.3g} to {pixels.max():.3g}",
                "give floats from 0 to 1, or uint8: the model's processor normalizes them",
            )
        pixels = np.rint(pixels * 255).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise DataError(f"{name} holds {pixels.dtype}", "give uint8, or floats from 0 to 1")
    pixels = pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    return Image.fromarray(np.ascontiguousarray(pixels))


# -- the datasets library --------------------------------------------------------------------------


class DatasetTable(Table):
    """A datasets.Dataset, possibly selected, shuffled or mapped. Images are decoded by us."""

    kind = "dataset"

    def __init__(self, rows: Any) -> None:
        super().__init__([])
        self._rows = rows.with_format("arrow")
        self.classes = getattr(rows.features.get(LABEL), "names", None)

    def columns(self) -> dict[str, str | None]:
        return (
            {field.name: arrow_kind(field.type) for field in self._rows.features.arrow_schema}
            if len(self._rows)
            else {}
        )

    def rows(self, columns: Sequence[str] | None, start: int = 0) -> Iterator[Row | DataError]:
        rows = self._rows if columns is None else self._rows.select_columns(list(columns))
        for first in range(start, len(rows), _BATCH):
            yield from rows[first : first + _BATCH].to_pylist()


class DatasetDocuments(StreamedDocuments):
    def digest(self) -> str:
        """A digest of the columns that are read."""
        rows = (row for _, row in self._numbered(0) if not isinstance(row, DataError))
        return _digest(tuple(row.values()) for row in rows)


# -- content ---------------------------------------------------------------------------------------


def _digest(rows: Iterable[Sequence[Any]]) -> str:
    """16 hex digits over values of any kind of data; equal texts and pixels give equal digests."""
    digest = hashlib.sha256()
    for row in rows:
        for value in row:
            kind, content = _content(value)
            digest.update(f"{kind} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()[:16]


def _content(value: Any) -> tuple[str, bytes]:
    if isinstance(value, str):
        return "text", value.encode("utf-8", "surrogatepass")
    if isinstance(value, bytes):
        return "bytes", value
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}", value.tobytes()
    if hasattr(value, "getbands"):  # a PIL image
        return f"{value.mode} {value.size}", value.tobytes()
    if isinstance(value, dict):
        return "fields", b"\n".join(
            b"%s %s" % (key.encode(), _content(part)[1]) for key, part in value.items()
        )
    return type(value).__name__, repr(value).encode("utf-8", "surrogatepass")
