"""What a shard file must contain, and the checks that it does. No number of a header is trusted, so
that none can point outside the file.

Sizes in the tables below: rows and examples of the shard, d_in of the store; None for any size.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from saekit.store.manifest import Shard
from saekit.typed import MisfitError, as_type
from saekit.types import ActivationSpec

LARGEST_HEADER = 1 << 24  # bytes; ours have about 2 kB
ITEM_BYTES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8, "I64": 8, "I32": 4, "U8": 1}
X_DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
# one value per row
COLUMNS = {"doc_id": "I64", "example_id": "I64", "position": "I32", "norm": "F32"}
OF_DIMENSIONS = {"sum": "F64", "sum_of_squares": "F64"}
OF_EXAMPLES = {f"examples.{name}": "I64" for name in ("id", "doc_id", "first_row", "rows")}
# One stretch per example; the pointers say where it begins.
RAGGED = {"examples.tokens": "I32", "examples.refs": "U8", "examples.labels": "U8"}
POINTERS = {
    "examples.tokens": "examples.token_ptr",
    "examples.refs": "examples.ref_ptr",
    "examples.labels": "examples.label_ptr",
}


class Entry(NamedTuple):
    """A tensor of a safetensors header: dtype by the format's name, shape, and its bytes [start,
    stop) after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def is_own_file(path: Path) -> bool:
    """Whether it is a regular file in the folder itself: a link points outside, and opening a
    device or FIFO may never return."""
    return path.is_file() and not path.is_symlink()


def checked_header(
    header: Any, data_bytes: int, shard: Shard, spec: ActivationSpec | None
) -> dict[str, Entry]:
    """The tensors of a shard by its parsed header. Raises MisfitError unless it is a shard with the
    counts of `shard`."""
    header = as_type(header, dict[str, Any], "header")
    entries = {
        name: entry_of(name, value, data_bytes)
        for name, value in header.items()
        if name != "__metadata__"
    }
    # name -> (dtype, shape), None for any
    width = spec.d_in if spec is not None else None
    expected: dict[str, tuple[str | None, tuple[int | None, ...]]] = {
        "x": (X_DTYPES[spec.dtype] if spec is not None else None, (shard.rows, width)),
        **{name: (dtype, (shard.rows,)) for name, dtype in COLUMNS.items()},
        **{name: (dtype, (width,)) for name, dtype in OF_DIMENSIONS.items()},
        **{name: (dtype, (shard.examples,)) for name, dtype in OF_EXAMPLES.items()},
        **{name: (dtype, (None,)) for name, dtype in RAGGED.items()},
        **{name: ("I64", (shard.examples + 1,)) for name in POINTERS.values()},
    }
    for name, (dtype, shape) in expected.items():
        if name not in entries:
            raise MisfitError(f"it has no tensor {name}")
        entry = entries[name]
        if entry.dtype != (dtype or entry.dtype) or len(entry.shape) != len(shape):
            raise MisfitError(
                f"{name} is {entry.dtype} {list(entry.shape)}, not {dtype} with {len(shape)}"
                " dimensions"
            )
        if any(size not in (None, actual) for size, actual in zip(shape, entry.shape)):
            raise MisfitError(
                f"{name} has shape {list(entry.shape)} for {shard.rows} rows of"
                f" {shard.examples} examples"
            )
    return entries


def entry_of(name: str, value: Any, data_bytes: int) -> Entry:
    """A tensor of a parsed header. Raises MisfitError unless it lies inside the file."""
    value = as_type(value, dict[str, Any], name)
    dtype = as_type(value.get("dtype"), str, f"{name}.dtype")
    shape = tuple(as_type(value.get("shape"), list[int], f"{name}.shape"))
    start, stop = as_type(value.get("data_offsets"), tuple[int, int], f"{name}.data_offsets")
    if dtype not in ITEM_BYTES:
        raise MisfitError(f"{name}.dtype is {dtype!r}, which shards do not have")
    if min(shape, default=0) < 0 or not 0 <= start <= stop <= data_bytes:
        raise MisfitError(f"{name} is outside the file")
    if math.prod(shape) * ITEM_BYTES[dtype] != stop - start:
        raise MisfitError(
            f"{name} has {stop - start} bytes, which does not match its shape {list(shape)}"
        )
    return Entry(dtype, shape, start, stop)


def check_examples(
    arrays: dict[str, np.ndarray], shard: Shard, spec: ActivationSpec | None
) -> None:
    """Raise MisfitError unless the examples divide the shard's rows, tokens and texts in order."""
    for name, pointer in POINTERS.items():
        ends = arrays[pointer]
        if ends[0] != 0 or ends[-1] != len(arrays[name]) or (ends[1:] < ends[:-1]).any():
            raise MisfitError(f"{pointer} does not divide {name}")
    first, count = arrays["examples.first_row"], arrays["examples.rows"]
    if len(first) and (
        count.min() < 0
        or count.max() > shard.rows
        or first[0] != 0
        or (first[1:] != first[:-1] + count[:-1]).any()
    ):
        raise MisfitError("examples.first_row and examples.rows do not match")
    # A caller may write rows without examples.
    if len(count) and int(count.sum()) != shard.rows:
        raise MisfitError(f"its examples have {int(count.sum())} rows, but the shard {shard.rows}")
    if (
        spec is not None
        and spec.layout == "grid"
        and not np.isin(count, (0, math.prod(spec.grid or (0,)))).all()
    ):
        raise MisfitError(f"an example is not a grid of {spec.grid}")
    for name in ("examples.refs", "examples.labels"):
        try:
            arrays[name].tobytes().decode()
        except UnicodeDecodeError as error:
            raise MisfitError(f"{name} is not UTF-8: {error.reason}") from None


def header_bytes(file: Any, path: Path) -> bytes:
    """The header of an opened safetensors file. Raises MisfitError when the file is shorter."""
    length = int.from_bytes(file.read(8), "little")
    if length > min(os.path.getsize(path) - 8, LARGEST_HEADER):
        raise MisfitError(f"it claims a header of {length:,} bytes")
    return file.read(length)
