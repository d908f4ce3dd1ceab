"""safetensors files that are larger than memory: written piece by piece, read through a memory map.

All tensors have one dimension. What is written is whole or absent (saekit.store.files).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from saekit.store.files import replacing
from saekit.store.shard_layout import entry_of, header_bytes
from saekit.typed import MisfitError, as_type

NAMES = {
    "int64": "I64", "float64": "F64", "int32": "I32", "float32": "F32", "float16": "F16",
    "uint8": "U8",
}  # fmt: skip
DTYPES = {name: np.dtype(dtype) for dtype, name in NAMES.items()}
Shapes = Mapping[str, tuple[str, int | None]]
"""name -> (dtype of NumPy, number of values; None: any)."""
ALIGNED = 8  # bytes: numbers of eight bytes come first in the file, at a multiple of this


class TensorWriter:
    """A file in the making. `append` puts values after those that a tensor has."""

    def __init__(self, descriptor: int, shapes: Mapping[str, tuple[str, int]]) -> None:
        self._descriptor, self._dtypes = descriptor, {}
        sizes = {name: count * np.dtype(dtype).itemsize for name, (dtype, count) in shapes.items()}
        # the widest numbers first, so that each lies at a multiple of its size
        order = sorted(shapes, key=lambda name: -np.dtype(shapes[name][0]).itemsize)
        header, at = {}, 0
        for name in order:
            dtype, count = shapes[name]
            span = [at, at + sizes[name]]
            header[name] = {"dtype": NAMES[dtype], "shape": [count], "data_offsets": span}
            self._dtypes[name], at = np.dtype(dtype), at + sizes[name]
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % ALIGNED)
        begin = 8 + len(text)
        os.pwrite(descriptor, len(text).to_bytes(8, "little") + text, 0)
        self._next = {name: begin + header[name]["data_offsets"][0] for name in order}
        self._end = {name: begin + header[name]["data_offsets"][1] for name in order}

    def append(self, name: str, values: np.ndarray) -> None:
        data = memoryview(np.ascontiguousarray(values, self._dtypes[name]).view(np.uint8).data)
        assert self._next[name] + len(data) <= self._end[name], f"{name} has more values than said"
        while len(data):
            written = os.pwrite(self._descriptor, data, self._next[name])
            self._next[name], data = self._next[name] + written, data[written:]

    def check_full(self) -> None:
        assert self._next == self._end, "a tensor has fewer values than said"


@contextmanager
def writing_tensors(path: Path, shapes: Mapping[str, tuple[str, int]]) -> Iterator[TensorWriter]:
    """A writer of the file at `path`, which is there when the body ends. `shapes`: name -> (dtype
    of NumPy, number of values)."""
    with replacing(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            writer = TensorWriter(descriptor, shapes)
            yield writer
            writer.check_full()
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def mapped_tensors(path: Path, shapes: Shapes) -> dict[str, np.ndarray]:
    """name -> memory-mapped array (N,). Raises MisfitError unless the file has the tensors of
    `shapes` (None: of any length), in these types."""
    with open(path, "rb") as file:
        header = header_bytes(file, path)
    data = np.asarray(np.memmap(path, np.uint8, "r"))[8 + len(header) :]
    entries = as_type(json.loads(header), dict, "header")
    arrays = {}
    for name, (dtype, count) in shapes.items():
        if name not in entries:
            raise MisfitError(f"it has no tensor {name}")
        entry = entry_of(name, entries[name], len(data))
        expected = (entry.shape[0] if entry.shape and count is None else count,)
        if entry.dtype != NAMES[dtype] or entry.shape != expected:
            raise MisfitError(
                f"{name} is {entry.dtype} {list(entry.shape)}, not {NAMES[dtype]} {list(expected)}"
            )
        arrays[name] = data[entry.start : entry.stop].view(DTYPES[entry.dtype])
    return arrays
