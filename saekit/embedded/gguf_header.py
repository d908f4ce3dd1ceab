"""The header of a GGUF file, checked before it is read.

The gguf package trusts the counts in a file, and may fill the memory for a file of a few bytes.
Here every count is checked against the size of the file. Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import BinaryIO

from saekit.errors import DataError

# scalar type -> bytes
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS, _NESTED = 4, 4
_LEAST_TENSOR_BYTES, _LEAST_ENTRY_BYTES = 24, 13  # an empty name, its length, counts and types
_ALIGNMENT = "general.alignment"


class _Reader:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file, self.size = path, file, path.stat().st_size

    def error(self, problem: str) -> DataError:
        return DataError(
            f"{self.path} cannot be read as a language model: {problem}",
            "download or convert the file again",
        )

    def need(self, count: int, item_bytes: int, items: str) -> None:
        """Raise DataError unless the rest of the file has room for `count` items."""
        remaining = self.size - self.file.tell()
        if count * item_bytes > remaining:
            raise self.error(f"it states {count:,} {items}, and {remaining:,} bytes are left")

    def number(self, form: str) -> int:
        size = struct.calcsize(form)
        self.need(1, size, "more values")
        return struct.unpack("<" + form, self.file.read(size))[0]

    def string(self) -> bytes:
        length = self.number("Q")
        self.need(length, 1, "characters")
        return self.file.read(length)

    def value(self, kind: int, nested: int = 0) -> None:
        """Skip one value."""
        if kind in _SIZES:
            self.need(1, _SIZES[kind], "more values")
            self.file.seek(_SIZES[kind], 1)
        elif kind == _STRING:
            length = self.number("Q")
            self.need(length, 1, "characters")
            self.file.seek(length, 1)
        elif kind == _ARRAY and nested < _NESTED:
            item_kind, length = self.number("I"), self.number("Q")
            self.need(length, _SIZES.get(item_kind, 8), "entries of a list")
            if item_kind in _SIZES:
                self.file.seek(length * _SIZES[item_kind], 1)
            else:
                for _ in range(length):
                    self.value(item_kind, nested + 1)
        else:
            raise self.error(f"type {kind} of a value is unknown")


def check_gguf(path: Path) -> None:
    """Raise DataError, with the path and the problem, unless everything that the header declares is
    within the file."""
    with path.open("rb") as file:
        reader = _Reader(path, file)
        if file.read(4) != b"GGUF":
            raise reader.error("it does not begin with GGUF")
        version = reader.number("I")
        if version not in (2, 3):
            raise reader.error(f"version {version} of the format is not 2 or 3")
        tensors, entries = reader.number("Q"), reader.number("Q")
        reader.need(tensors, _LEAST_TENSOR_BYTES, "tensors")
        reader.need(entries, _LEAST_ENTRY_BYTES, "settings")
        alignment = _check_settings(reader, entries)
        starts = _check_tensors(reader, tensors)
        data = -(-file.tell() // alignment) * alignment
        if starts and data + max(starts) >= reader.size:
            raise reader.error(
                f"it is cut off: a tensor begins at byte {data + max(starts):,} of {reader.size:,}"
            )


def _check_settings(reader: _Reader, count: int) -> int:
    """Skip the settings; returns the alignment of the data."""
    keys: set[bytes] = set()
    alignment = 32
    for _ in range(count):
        key, kind = reader.string(), reader.number("I")
        if key in keys:
            raise reader.error(f"it has two settings {key.decode(errors='replace')}")
        keys.add(key)
        if key.decode(errors="replace") == _ALIGNMENT and kind == 4:
            alignment = reader.number("I")
            if alignment == 0 or alignment & (alignment - 1):
                raise reader.error(f"its alignment {alignment} is not a power of two")
        else:
            reader.value(kind)
    return alignment


def _check_tensors(reader: _Reader, count: int) -> list[int]:
    """Where the tensors begin, counted from the beginning of the data."""
    names: set[bytes] = set()
    starts = []
    for _ in range(count):
        name = reader.string()
        dimensions = reader.number("I")
        if dimensions > _MOST_DIMENSIONS:
            raise reader.error(f"a tensor has {dimensions} dimensions")
        shape = [reader.number("Q") for _ in range(dimensions)]
        reader.number("I")  # the type
        starts.append(reader.number("Q"))
        values = math.prod(shape)
        # The smallest type packs a value into 1.5 bits or a little more.
        if name in names or values > 8 * reader.size:
            problem = "is there twice" if name in names else f"states {values:,} values"
            raise reader.error(f"tensor {name.decode(errors='replace')} {problem}")
        names.add(name)
    return starts
