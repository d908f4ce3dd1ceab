"""Data that can only be streamed, in its own order: tables (jsonl, csv, parquet, saved datasets)
and hub datasets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekit.embedded.digests import SAMPLED_ABOVE, is_sampled
from saekit.errors import DataError, MissingError, did_you_mean, opt, unreadable
from saekit.harvesting.documents import (
    Document,
    Documents,
    Modality,
    digest_of,
    need_images,
    refuse_pointer,
)
from saekit.harvesting.pictures import read_picture
from saekit.harvesting.tables import PEEK, ArrowTable, CsvTable, JsonTable, Row, Table

if TYPE_CHECKING:
    from PIL.Image import Image

TABLES = {
    ".jsonl": JsonTable,
    ".ndjson": JsonTable,
    ".json": JsonTable,
    ".csv": CsvTable,
    ".tsv": CsvTable,
    ".parquet": ArrowTable,
}
LABEL = "label"
_SAMPLE = 20  # rows whose texts are measured to choose among several columns


class StreamedDocuments(Documents):
    """Rows of a table, in file order."""

    def __init__(
        self,
        name: str,
        modality: Modality,
        table: Table,
        column: str | None,
        skip_broken: bool = False,
    ) -> None:
        self.name, self.modality, self.skip_broken = name, modality, skip_broken
        self._table = table
        kinds = table.columns()
        if not kinds:
            raise DataError(f"{name} has no rows", "check the file or the split")
        self.column = _pick_column(name, table, kinds, modality, column)
        if column is None:
            self.notes += (f"the {modality}s of {name} are read from its column {self.column}",)
        if sampled := [file.name for file in table.files if is_sampled(file)]:
            note = (
                f"{', '.join(sampled)}: above {SAMPLED_ABOVE >> 30} GiB changes are detected only"
                " by size, time and samples"
            )
            self.notes += (note,)
        self._columns = [self.column, *([LABEL] if LABEL in kinds and self.column != LABEL else [])]

    def documents(self, start: int = 0) -> Iterator[Document]:
        if self.skip_broken:
            return islice(self._unbroken(), start, None)
        return (self._document(index, row) for index, row in self._numbered(start))

    def _unbroken(self) -> Iterator[Document]:
        self.skipped = skipped = []
        for index, row in self._numbered(0):
            try:
                document = self._document(index, row)
            except DataError:
                skipped.append(f"row {index}")
                continue
            yield document

    def _document(self, index: int, row: Row | DataError) -> Document:
        if isinstance(row, DataError):
            raise DataError(
                f"row {index} of {self.name} cannot be read: {row.cause}", row.remedy
            ) from row
        label = self._label(row.get(LABEL)) if self.column != LABEL else None
        value = row.get(self._columns[0])
        if self.modality == "text":
            return Document(index, str(index), self._text(index, value), None, label)
        return Document(index, str(index), None, self._image(index, value), label)

    def _text(self, index: int, value: Any) -> str:
        """A null is an empty text, which has no rows."""
        if value is None:
            return ""
        hint = f"repair or remove it, or skip broken rows with {opt('skip_broken', True)}"
        if isinstance(value, (list, dict, bytes)):
            raise DataError(
                f"row {index} of {self.name} holds a {type(value).__name__} in column"
                f" {self.column}, not text",
                hint,
            )
        text = str(value)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"row {index} of {self.name} holds half of a character (a lone surrogate)", hint
            ) from error
        return text

    def _image(self, index: int, value: Any) -> Image:
        where = f"row {index} of {self.name}"
        data, path = (
            (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        )
        if isinstance(data, bytes):
            return read_picture(data, where)
        if path and "://" not in path:
            folder = self._table.files[0].parent if self._table.files else Path()
            return read_picture(
                folder / path, f"{where} ({path})" if (folder / path).is_file() else None
            )
        if path:
            return read_picture(_downloaded(path, where), where)
        raise DataError(
            f"{where} cannot be read as an image: it is null",
            f"remove the row, or skip it with {opt('skip_broken', True)}",
        )

    def _label(self, value: Any) -> str | None:
        """-1 means no label: datasets write it in test splits."""
        classes = self._table.classes
        if value is None or not classes or not isinstance(value, int) or isinstance(value, bool):
            return None if value is None else str(value)
        if value == -1:
            return None
        return classes[value] if 0 <= value < len(classes) else str(value)

    def digest(self) -> str | None:
        return self._table.digest()

    def image(self, ref: str) -> Image:
        need_images(self)
        for index, row in self._numbered(int(ref)):
            document = self._document(index, row)
            assert document.image is not None, "an image document has an image"
            return document.image
        raise MissingError(
            f"{self.name} has no image {ref}", "the data has changed since it was harvested"
        )

    def _numbered(self, start: int) -> Iterator[tuple[int, Row | DataError]]:
        return enumerate(self._table.rows(self._columns, start), start)


def open_table(
    files: list[Path], name: str, modality: Modality, column: str | None, skip_broken: bool = False
) -> Documents:
    """`files` of one kind as one table, one after the other."""
    kind = TABLES[files[0].suffix.lower()]
    with unreadable(f"{name} cannot be read as {kind.kind}", "check the file"):
        try:
            for file in files:
                refuse_pointer(file)
                _refuse_utf16(file)
            return StreamedDocuments(name, modality, kind(files), column, skip_broken)
        except OSError as error:
            if error.filename:
                raise DataError(
                    f"{error.filename} cannot be read: {error.strerror}", "make it readable"
                ) from error
            raise


def _refuse_utf16(file: Path) -> None:
    with file.open("rb") as opened:
        if opened.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            hint = f"`iconv -f UTF-16 -t UTF-8 {file.name} > utf8{file.suffix}` converts it"
            raise DataError(f"{file} is not UTF-8 text (it looks like UTF-16)", hint)


# -- saved datasets --------------------------------------------------------------------------------


def is_saved(path: Path) -> bool:
    """Whether `save_to_disk` of the datasets library wrote this folder."""
    return (path / "dataset_dict.json").is_file() or (
        (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    )


def open_saved(
    path: Path, split: str | None, modality: Modality, column: str | None, skip_broken: bool = False
) -> Documents:
    """A folder of `Dataset.save_to_disk`, or one split of a DatasetDict's (default train)."""
    name, folder = str(path.absolute()), path
    with unreadable(
        f"{path} cannot be read as a saved dataset", "write it again with save_to_disk"
    ):
        if (path / "dataset_dict.json").is_file():
            splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
            chosen = split or ("train" if "train" in splits or len(splits) > 1 else splits[0])
            if chosen not in splits:
                raise DataError(
                    f"{path} has no split {chosen}; its splits are {', '.join(splits)}",
                    f"give DATA as {path}:{splits[0]}",
                )
            folder, name = path / Path(chosen).name, f"{name}:{chosen}"
        elif split:
            raise DataError(f"{path} is one saved dataset, without splits", f"give DATA as {path}")
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        files = [folder / Path(entry["filename"]).name for entry in state["_data_files"]]
        if not files:
            raise DataError(f"{path} has no rows", "save other data")
        return StreamedDocuments(name, modality, ArrowTable(files, "arrow"), column, skip_broken)


# -- the hub ---------------------------------------------------------------------------------------


class HubTable(Table):
    """A streaming dataset of the hub; images stay undecoded, for our own reader."""

    kind = "hub"

    def __init__(self, rows: Any, sources: Sequence[str]) -> None:
        super().__init__([])
        self._rows, self._sources = rows, sources
        features = getattr(rows, "features", None) or {}
        self.classes = getattr(features.get(LABEL), "names", None)

    def rows(self, columns: Sequence[str] | None, start: int = 0) -> Iterator[Row | DataError]:
        rows = self._rows if columns is None else self._rows.select_columns(list(columns))
        stream = iter(rows.skip(start) if start else rows)
        while True:
            try:
                row = next(stream, None)
            except OSError as error:
                raise MissingError(
                    f"the dataset cannot be read any further: {error}",
                    f"continue with {opt('resume', True)}",
                ) from error
            except Exception as error:  # the reader of any format may raise it
                raise DataError(
                    f"the dataset cannot be read any further: {_first_line(error)}",
                    "check the data",
                ) from error
            if row is None:
                return
            yield row

    def digest(self) -> str | None:
        """A digest of the files' URLs, if these include a commit; the contents are on the hub."""
        pinned = all(re.search(r"@[0-9a-f]{40}/", source) for source in self._sources)
        return digest_of(sorted(self._sources)) if self._sources and pinned else None


def open_hub(
    repo: str, split: str, modality: Modality, column: str | None, skip_broken: bool = False
) -> Documents:
    """`split` may begin with a configuration: `name:config:split`. A local folder with the layout
    of a hub dataset is read from its files. Raises DataError and MissingError."""
    from datasets import load_dataset_builder

    from saekit.harvesting.models import not_found

    config, _, split = split.rpartition(":")
    name = f"{repo}:{config}:{split}" if config else f"{repo}:{split}"
    try:
        # Local files, or a stream from the hub.
        builder: Any = load_dataset_builder(repo, config or None)
        sources = [str(file) for file in (builder.config.data_files or {}).get(split, ())]
        local = [Path(source) for source in sources]
        if (
            Path(repo).is_dir()
            and local
            and all(file.is_file() and file.suffix.lower() in TABLES for file in local)
        ):
            return open_table(local, name, modality, column, skip_broken)
        if hasattr(builder.config, "keep_default_na"):
            builder.config.keep_default_na = False  # csv: "NA" is a text
        rows = builder.as_streaming_dataset(split=split).decode(False)
        return StreamedDocuments(name, modality, HubTable(rows, sources), column, skip_broken)
    except (DataError, MissingError):
        raise
    except ValueError as error:  # unknown split or configuration; the message lists them
        raise DataError(
            f"{name}: {error}", "give DATA as name:split or name:config:split"
        ) from error
    except (OSError, RuntimeError) as error:
        raise not_found("dataset", repo, error) from error
    except Exception as error:
        raise DataError(
            f"{name} cannot be read: {_first_line(error)}",
            "check the data, or load and save it with save_to_disk",
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _downloaded(path: str, where: str) -> bytes:
    """A picture that a hub dataset refers to by its URL."""
    from datasets.utils.file_utils import xopen

    try:
        with xopen(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise MissingError(
            f"{where} cannot be read: {error}", f"continue with {opt('resume', True)}"
        ) from error


# -- columns ---------------------------------------------------------------------------------------


def _pick_column(
    name: str, table: Table, kinds: dict[str, str | None], modality: Modality, column: str | None
) -> str:
    """The requested column; else `text` or `image`; else the only possible one. Raises DataError,
    with a proposal, when there are several or none."""
    candidates = [key for key, kind in kinds.items() if kind == modality]
    possible = [key for key in candidates if key != LABEL] or candidates
    guess = modality if modality in candidates else _longest(table, possible)
    # A requested column must have the right kind.
    if column is not None and column in kinds:
        if kinds[column] in (modality, None) or (modality == "text" and kinds[column] == "number"):
            return column
        hint = opt("column", guess) if guess else "choose other data"
        raise DataError(f"column {column} of {name} holds {kinds[column]}, not {modality}", hint)
    # Otherwise there must be exactly one.
    if column is None and guess and (modality in candidates or len(possible) == 1):
        return guess
    if column is None and possible:
        raise DataError(
            f"{name} has several columns with {modality}: {', '.join(possible)}",
            opt("column", guess),
        )
    if column is None and modality == "text" and kinds.get("text") == "number":
        return "text"  # of a csv file, where all values are text
    # None.
    only_nulls = [key for key, kind in kinds.items() if kind is None]
    problem = f"has no column {column}" if column else f"has no column with {modality}"
    if only_nulls and column is None:
        raise DataError(
            f"{name} {problem}: {', '.join(only_nulls)} holds only nulls in the first {PEEK:,}"
            " rows",
            f"{opt('column', only_nulls[0])} uses it anyway",
        )
    hint = (
        f"{did_you_mean(column, kinds) if column else ''}{opt('column', guess)}"
        if guess
        else "choose other data"
    )
    raise DataError(f"{name} {problem}; its columns are {', '.join(kinds)}", hint)


def _longest(table: Table, candidates: Sequence[str]) -> str | None:
    """The candidate with the longest values."""
    if len(candidates) < 2:
        return next(iter(candidates), None)
    rows = [
        row for row in islice(table.rows(candidates), _SAMPLE) if not isinstance(row, DataError)
    ]
    return max(
        candidates,
        key=lambda key: sum(
            len(row[key]) for row in rows if isinstance(row.get(key), (str, bytes))
        ),
    )
