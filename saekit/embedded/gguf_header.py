"""The header of a GGUF file, checked before it is read.

The gguf package believes the counts that a file states, and may fill the memory on a file of a few
bytes. Here every count is measured against the bytes that are there. Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from saekit.errors import DataError

# bytes of each scalar type
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS, _NESTED = 4, 4
_LEAST_TENSOR_BYTES, _LEAST_ENTRY_BYTES = 24, 13  # an empty name, its length, counts and types
_ALIGNMENT = "general.alignment"


class _Reader:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file, self.size = path, file, path.stat().st_size

    def fail(self, why: str) -> DataError:
        return DataError(
            f"{self.path} cannot be read as a language model: {why}",
            "download or convert the file again",
        )

    def room(self, count: int, each: int, what: str) -> None:
        left = self.size - self.file.tell()
        if count * each > left:
            raise self.fail(f"it states {count:,} {what}, and {left:,} bytes are left")

    def number(self, form: str) -> int:
        size = struct.calcsize(form)
        self.room(1, size, "more values")
        return struct.unpack("<" + form, self.file.read(size))[0]

    def string(self) -> bytes:
        length = self.number("Q")
        self.room(length, 1, "characters")
        return self.file.read(length)

    def value(self, kind: int, nested: int = 0) -> None:
        if kind in _SIZES:
            self.room(1, _SIZES[kind], "more values")
            self.file.seek(_SIZES[kind], 1)
        elif kind == _STRING:
            length = self.number("Q")
            self.room(length, 1, "characters")
            self.file.seek(length, 1)
        elif kind == _ARRAY and nested < _NESTED:
            each, length = self.number("I"), self.number("Q")
            self.room(length, _SIZES.get(each, 8), "entries of a list")
            if each in _SIZES:
                self.file.seek(length * _SIZES[each], 1)
            else:
                for _ in range(length):
                    self.value(each, nested + 1)
        else:
            raise self.fail(f"type {kind} of a value is unknown")


def check_gguf(path: Path) -> None:
    """Raise DataError, with the path and what is wrong, unless all that the header states lies
    within the file."""
    with path.open("rb") as file:
        reader = _Reader(path, file)
        if file.read(4) != b"GGUF":
            raise reader.fail("it does not begin with GGUF")
        version = reader.number("I")
        if version not in (2, 3):
            raise reader.fail(f"version {version} of the format is not 2 or 3")
        tensors, entries = reader.number("Q"), reader.number("Q")
        reader.room(tensors, _LEAST_TENSOR_BYTES, "tensors")
        reader.room(entries, _LEAST_ENTRY_BYTES, "settings")
        keys: set[bytes] = set()
        alignment = 32
        for _ in range(entries):
            key, kind = reader.string(), reader.number("I")
            if key in keys:
                raise reader.fail(f"it has two settings {key.decode(errors='replace')}")
            keys.add(key)
            if key.decode(errors="replace") == _ALIGNMENT and kind == 4:
                alignment = reader.number("I")
                if alignment == 0 or alignment & (alignment - 1):
                    raise reader.fail(f"its alignment {alignment} is not a power of two")
            else:
                reader.value(kind)
        names, starts = set(), []
        for _ in range(tensors):
            name = reader.string()
            dimensions = reader.number("I")
            if dimensions > _MOST_DIMENSIONS:
                raise reader.fail(f"a tensor has {dimensions} dimensions")
            shape = [reader.number("Q") for _ in range(dimensions)]
            reader.number("I")
            starts.append(reader.number("Q"))
            values = 1
            for length in shape:
                values *= length
            # The smallest type packs a value into 1.5 bits or a little more.
            if name in names or values > 8 * reader.size:
                what = "is there twice" if name in names else f"states {values:,} values"
                raise reader.fail(f"tensor {name.decode(errors='replace')} {what}")
            names.add(name)
        data = -(-file.tell() // alignment) * alignment
        if starts and data + max(starts) >= reader.size:
            raise reader.fail(
                f"it is cut off: a tensor begins at byte {data + max(starts):,} of {reader.size:,}"
            )
