"""Tables on disk, read row by row: jsonl and json, csv and tsv, parquet and Arrow.

Only the requested columns are read, so that others may have any type and differ between files.
Values are taken literally: no word means "missing". Readers yield a row, or a DataError for a
broken one, and continue after it; a file that is broken as a whole raises. JSON is read with
Python's parser: pyarrow's kills the process on deeply nested input.
"""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from saekit.embedded.digests import file_digest
from saekit.errors import DataError, opt, unreadable
from saekit.harvesting.documents import digest_of

Row = dict[str, Any]
PEEK = 1000  # rows from which columns and their types are determined
_LONGEST_FIELD = 64 << 20  # characters of one csv field; a longer one lacks a closing quote
_BATCH = 64  # rows of a parquet file per read
_FIX = f"repair or remove it, or skip broken rows with {opt('skip_broken', True)}"


class Table(ABC):
    """`classes`: the names of integer labels, if the data has them."""

    kind: str
    classes: Sequence[str] | None = None

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    @abstractmethod
    def rows(self, columns: Sequence[str] | None, start: int = 0) -> Iterator[Row | DataError]:
        """From the start-th row on; None: all columns."""

    def columns(self) -> dict[str, str | None]:
        """name -> text | image | another type's name; None if there were only nulls. Raises
        DataError when no row can be read."""
        kinds: dict[str, str | None] = {}
        broken, empty = None, True
        for row in islice(self.rows(None), PEEK):
            if isinstance(row, DataError):
                broken = broken or row
                continue
            empty = False
            for name, value in row.items():
                kind = self._kind(value)
                # A text column may begin with a number.
                if kinds.get(name) is None or kind == "text":
                    kinds[name] = kind
        if empty and broken:
            raise broken
        return kinds

    def _kind(self, value: Any) -> str | None:
        if isinstance(value, dict) and "bytes" in value:
            return "image"
        return (
            None
            if value is None
            else {"str": "text"}.get(type(value).__name__, type(value).__name__)
        )

    def digest(self) -> str | None:
        return digest_of([file_digest(file) for file in self.files])


class JsonTable(Table):
    """One row per line; a .json file may also be one list of rows. Blank lines are skipped."""

    kind = "json"

    def rows(self, columns: Sequence[str] | None, start: int = 0) -> Iterator[Row | DataError]:
        return islice(self._all(), start, None)

    def _all(self) -> Iterator[Row | DataError]:
        for file in self.files:
            with open(file, "rb") as lines:
                opening = lines.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
                if file.suffix.lower() == ".json" and opening.startswith(b"["):
                    yield from self._listed(file)
                    continue
                lines.seek(0)
                for number, line in enumerate(lines, 1):
                    line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                    if line.strip():
                        yield _json_row(line, file, number)

    def _listed(self, file: Path) -> Iterator[Row | DataError]:
        with unreadable(f"{file} cannot be read as json", "check the file"):
            values = json.loads(file.read_bytes().decode("utf-8-sig"))
        for number, value in enumerate(values, 1):
            yield (
                value
                if isinstance(value, dict)
                else DataError(f"{file} entry {number} is not an object with columns", _FIX)
            )


def _json_row(line: bytes, file: Path, number: int) -> Row | DataError:
    where = f"{file} cannot be read as json: line {number}"
    try:
        value = json.loads(line.decode())
    except RecursionError:
        return DataError(f"{where} is nested too deeply", _FIX)
    except UnicodeDecodeError as error:
        return DataError(f"{where} is not UTF-8 text (byte {error.start})", _FIX)
    except ValueError as error:
        return DataError(f"{where}: {error}", f"write one object per line; {_FIX}")
    if isinstance(value, dict):
        return value
    return DataError(
        f"{where} is not an object with columns but a {type(value).__name__}",
        f"write one object per line; {_FIX}",
    )


class CsvTable(Table):
    """The first line names the columns. Every value is text, taken literally."""

    kind = "csv"

    def rows(self, columns: Sequence[str] | None, start: int = 0) -> Iterator[Row | DataError]:
        return islice(self._all(), start, None)

    def _kind(self, value: Any) -> str | None:
        if not value:
            return None
        try:
            float(value)
        except ValueError:
            return "text"
        return "number"

    def columns(self) -> dict[str, str | None]:
        """A column is text as soon as one of its values is not a number: a text may begin with
        "007" or "NA"."""
        kinds: dict[str, str | None] = {}
        for row in islice(self.rows(None), PEEK):
            if not isinstance(row, DataError):
                for name, value in row.items():
                    kinds[name] = (
                        "text"
                        if kinds.get(name) == "text"
                        else self._kind(value) or kinds.get(name)
                    )
        return kinds or super().columns()

    def _all(self) -> Iterator[Row | DataError]:
        for file in self.files:
            delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
            with open(file, encoding="utf-8-sig", newline="") as lines:
                yield from _csv_rows(lines, file, delimiter)


def _csv_rows(lines: Any, file: Path, delimiter: str) -> Iterator[Row | DataError]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        # The next line of values.
        before, limit = reader.line_num + 1, csv.field_size_limit(_LONGEST_FIELD)
        try:
            values = next(reader, None)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{file} is not UTF-8 text (after line {before})",
                "convert it to UTF-8 first, such as with iconv",
            ) from error
        except csv.Error as error:
            yield DataError(f"{file} cannot be read as csv: line {before}: {error}", _FIX)
            if header is None:
                return
            continue
        finally:
            csv.field_size_limit(limit)  # a global setting, which other code relies on
        if values is None:
            return
        if not values:
            continue
        # A row, or the header.
        if any("\0" in value for value in values):
            row: Row | DataError = DataError(
                f"{file} line {before} holds NUL bytes: it is not text", f"is it UTF-16? {_FIX}"
            )
            if header is None:
                raise row
            yield row
        elif header is None:
            header = values
            _check_header(header, file, delimiter)
        elif len(values) > len(header):
            yield DataError(
                f"{file} line {before} has {len(values)} values for {len(header)} columns",
                f"is a quote missing? {_FIX}",
            )
        else:
            yield dict(zip(header, values)) | dict.fromkeys(header[len(values) :])


def _check_header(header: list[str], file: Path, delimiter: str) -> None:
    if len(header) == 1 and any(separator in header[0] for separator in ";|\t"):
        raise DataError(
            f"{file} has the one column {header[0]!r}: its values are not separated by"
            f" {'tabs' if delimiter != ',' else 'commas'}",
            "save it with commas, or with tabs as .tsv",
        )
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise DataError(
            f"{file} has two columns {twice!r}",
            "give every column a different name in the first line",
        )


class ArrowTable(Table):
    """Parquet, or the Arrow files that `save_to_disk` writes. Types come from the schema, ignoring
    files where a column holds only nulls."""

    kind = "parquet"

    def __init__(self, files: list[Path], kind: str = "parquet") -> None:
        super().__init__(files)
        self.kind = kind
        self.classes = self._classes()

    def columns(self) -> dict[str, str | None]:
        kinds: dict[str, str | None] = {}
        for file in self.files:
            for field in self._schema(file):
                if kinds.get(field.name) is None:
                    kinds[field.name] = arrow_kind(field.type)
        return kinds

    def rows(self, columns: Sequence[str] | None, start: int = 0) -> Iterator[Row | DataError]:
        for file in self.files:
            batches = self._batches(file, columns, start)
            while True:
                with self._readable(file):
                    skipped, batch = next(batches)
                    values = [] if batch is None else batch.slice(skipped).to_pylist()
                start -= skipped
                if batch is None:
                    break
                yield from values

    def _batches(
        self, file: Path, columns: Sequence[str] | None, start: int
    ) -> Iterator[tuple[int, Any]]:
        """(rows to skip, batch); at the end (rows skipped in whole row groups, None)."""
        import pyarrow as pa
        import pyarrow.parquet as parquet

        passed = 0
        with pa.memory_map(str(file)) as source:
            names = [
                field.name
                for field in self._schema(file)
                if columns is None or field.name in columns
            ]
            # Batches from the row group of `start` on.
            if self.kind == "parquet":
                reader = parquet.ParquetFile(source)
                counts = [
                    reader.metadata.row_group(group).num_rows
                    for group in range(reader.num_row_groups)
                ]
                while counts and start >= passed + counts[0]:
                    passed += counts.pop(0)
                groups = list(range(reader.num_row_groups - len(counts), reader.num_row_groups))
                batches: Any = (
                    reader.iter_batches(batch_size=_BATCH, row_groups=groups, columns=names)
                    if groups
                    else ()
                )
            else:
                batches = (
                    part
                    for batch in pa.ipc.open_stream(source)
                    for part in _pieces(batch.select(names))
                )
            start -= passed
            for batch in batches:
                batch.validate(full=True)
                skip = min(start, len(batch))
                start -= skip
                yield skip, batch
        yield passed, None

    def _readable(self, file: Path):
        return unreadable(
            f"{file} cannot be read as {self.kind}", "write or download the file again"
        )

    def _schema(self, file: Path) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as parquet

        with self._readable(file), pa.memory_map(str(file)) as source:
            return (
                parquet.read_schema(source)
                if self.kind == "parquet"
                else pa.ipc.open_stream(source).schema
            )

    def _classes(self) -> list[str] | None:
        """datasets keeps the names of a ClassLabel in the schema's metadata."""
        metadata = self._schema(self.files[0]).metadata or {}
        try:
            names = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
        except (KeyError, TypeError, ValueError):
            return None
        return (
            names
            if isinstance(names, list) and all(isinstance(name, str) for name in names)
            else None
        )


def _pieces(batch: Any) -> Iterator[Any]:
    for start in range(0, len(batch), _BATCH):
        yield batch.slice(start, _BATCH)


def arrow_kind(kind: Any) -> str | None:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_null(kind):
        return None
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "text"
    is_bytes = types.is_binary(kind) or types.is_large_binary(kind)
    if is_bytes or (
        types.is_struct(kind) and any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    ):
        return "image"
    return str(kind)
