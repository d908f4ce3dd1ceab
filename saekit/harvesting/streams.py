"""Data that can only be streamed: tables (jsonl, csv, parquet) and hub datasets, in their own order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekit.embedded.dequantise import file_digest
from saekit.errors import DataError, MissingError, did_you_mean
from saekit.harvesting.documents import Document, Documents, Modality, digest_of, need_images
from saekit.harvesting.models import not_found

if TYPE_CHECKING:
    from PIL.Image import Image

TABLES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}  # suffix -> builder of datasets


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
        need_images(self)
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


def open_table(files: list[Path], name: str, modality: Modality, column: str | None) -> Documents:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    builder = TABLES[files[0].suffix]
    try:
        rows = load_dataset(builder, data_files=[str(file) for file in files], split="train", streaming=True)
        return StreamedDocuments(name, modality, rows, column, lambda: digest_of([file_digest(file) for file in files]))
    except (ValueError, DatasetGenerationError) as error:  # ArrowInvalid and JSON errors are ValueErrors
        raise DataError(f"{name} cannot be read as {builder}: {error}", "check the file") from error


def open_hub(repo: str, split: str, modality: Modality, column: str | None) -> Documents:
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
