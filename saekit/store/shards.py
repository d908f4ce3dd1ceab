"""One shard file: the tensors of consecutive rows, written at once, read through a memory map.

Reading bypasses the safetensors reader because rows are gathered directly from the memory map: the
header gives the offsets, numpy maps the file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from saekit.errors import DataError, opt
from saekit.store.files import known_digest
from saekit.store.manifest import Shard
from saekit.store.oserrors import reading
from saekit.store.shard_layout import check_examples, checked_header, header_bytes, is_own_file
from saekit.types import ActivationSpec

# numpy has no bfloat16: 16-bit floats are int16 in numpy and are viewed as floats in torch.
_NUMPY = {
    "F16": np.int16,
    "BF16": np.int16,
    "F32": np.float32,
    "F64": np.float64,
    "I64": np.int64,
    "I32": np.int32,
    "U8": np.uint8,
}
_TORCH = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


@dataclass(frozen=True)
class StoredExample:
    """One model input: its rows in the shard, and its tokens, or a reference to its image."""

    id: int
    doc_id: int
    first_row: int
    rows: int
    tokens: list[int] | None
    ref: str
    label: str | None


def pack_strings(strings: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """(bytes uint8, ptr int64 (N+1,)): strings as two tensors."""
    encoded = [s.encode() for s in strings]
    ptr = np.cumsum([0, *map(len, encoded)])
    data = np.frombuffer(b"".join(encoded), dtype=np.uint8).copy()
    return torch.from_numpy(data), torch.from_numpy(ptr.astype(np.int64))


def example_tensors(examples: Sequence[StoredExample]) -> dict[str, torch.Tensor]:
    refs, ref_ptr = pack_strings([e.ref for e in examples])
    labels, label_ptr = pack_strings([e.label or "" for e in examples])
    tokens = [np.asarray(e.tokens or [], dtype=np.int32) for e in examples]
    token_ptr = np.cumsum([0, *map(len, tokens)]).astype(np.int64)
    columns = {
        name: [getattr(e, name) for e in examples] for name in ("id", "doc_id", "first_row", "rows")
    }
    return {
        **{
            f"examples.{name}": torch.tensor(values, dtype=torch.int64)
            for name, values in columns.items()
        },
        "examples.tokens": torch.from_numpy(
            np.concatenate(tokens) if tokens else np.zeros(0, np.int32)
        ),
        "examples.token_ptr": torch.from_numpy(token_ptr),
        "examples.refs": refs,
        "examples.ref_ptr": ref_ptr,
        "examples.labels": labels,
        "examples.label_ptr": label_ptr,
    }


class ShardFile:
    """A shard opened for reading. Its size is checked at once, its sha256 and content on the first
    read; with `spec`, width and dtype as well. Raises DataError, with a hint to repair it."""

    def __init__(self, folder: Path, shard: Shard, spec: ActivationSpec | None = None) -> None:
        self.path = folder / "shards" / shard.name
        self.shard, self.spec = shard, spec
        with reading(self.path):
            self._check_file()

    def _check_file(self) -> None:
        if not self.path.exists() and not self.path.is_symlink():
            raise self._broken("is missing")
        if not is_own_file(self.path):
            raise DataError(
                f"shard {self.path} is not a regular file",
                "put the file itself there: `cp -rL` copies files instead of links",
            )
        size = self.path.stat().st_size
        if size != self.shard.bytes:
            raise self._broken(f"has {size:,} bytes instead of {self.shard.bytes:,}")

    def verify(self) -> None:
        """Raises DataError when the file's sha256 is not the one in the manifest."""
        digest = known_digest(self.path, self.shard.sha256)
        if digest != self.shard.sha256:
            raise self._broken(
                f"is damaged: its sha256 is {digest[:12]}, not {self.shard.sha256[:12]} as in the"
                " manifest"
            )

    def _broken(self, problem: str) -> DataError:
        hint = (
            f"run the same harvest with {opt('resume', True)}, which writes the store again from"
            " there on, or restore the file from a copy"
        )
        return DataError(f"shard {self.path} {problem}", hint)

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """name -> memory-mapped array (16-bit floats as int16), after the checksum has been
        verified once."""
        try:
            with reading(self.path):
                self.verify()
                return self._mapped()
        # a value that does not fit, or invalid JSON
        except (ValueError, RecursionError) as error:
            hint = (
                f"harvest it again with {opt('overwrite', True)}: its checksum is correct, so it"
                " was written like this"
            )
            raise DataError(f"shard {self.path} is not one of saekit's: {error}", hint) from None

    def _mapped(self) -> dict[str, np.ndarray]:
        with open(self.path, "rb") as file:
            header = header_bytes(file, self.path)
        # as a plain array: slices of a memmap are subclasses, which cost several microseconds each
        data = np.asarray(np.memmap(self.path, dtype=np.uint8, mode="r"))[8 + len(header) :]
        entries = checked_header(json.loads(header), len(data), self.shard, self.spec)
        self.x_dtype = _TORCH[entries["x"].dtype]
        arrays = {
            name: data[e.start : e.stop].view(_NUMPY[e.dtype]).reshape(e.shape)
            for name, e in entries.items()
        }
        check_examples(arrays, self.shard, self.spec)
        return arrays

    def __len__(self) -> int:
        return self.shard.rows

    def example(self, index: int) -> StoredExample:
        """The `index`-th example of this shard."""
        a = self.arrays
        t0, t1 = a["examples.token_ptr"][index : index + 2]
        tokens = a["examples.tokens"][t0:t1].tolist()
        label = self._string("label", index)
        columns = {
            name: int(a[f"examples.{name}"][index])
            for name in ("id", "doc_id", "first_row", "rows")
        }
        return StoredExample(
            **columns, tokens=tokens or None, ref=self._string("ref", index), label=label or None
        )

    def labels(self) -> list[str | None]:
        """The label of every example of this shard, in order."""
        return [
            self._string("label", index) or None
            for index in range(len(self.arrays["examples.rows"]))
        ]

    def _string(self, kind: str, index: int) -> str:
        start, stop = self.arrays[f"examples.{kind}_ptr"][index : index + 2]
        return self.arrays[f"examples.{kind}s"][start:stop].tobytes().decode()
