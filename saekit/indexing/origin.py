"""Where the rows of an index come from: tokens, positions, contexts or images, documents, labels.
Copied from the store, so that a search opens the index and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from saekit.indexing.tensor_file import mapped_tensors, writing_tensors
from saekit.store.reader import Store
from saekit.store.shards import pack_strings

NONE = -1
ORIGIN_TENSORS: dict[str, tuple[str, int | None]] = {
    "token": ("int32", None),
    "position": ("int32", None),
    "example_first": ("int64", None),
    "example_doc": ("int64", None),
    "example_label": ("int32", None),
    "label_names": ("uint8", None),
    "label_ptr": ("int64", None),
}


@dataclass(frozen=True)
class Origin:
    """For R rows of E examples (contexts, images)."""

    token: np.ndarray
    """(R,) int32: the id of each row's token; empty where the data is not text."""
    position: np.ndarray
    """(R,) int32, as in the store."""
    example_first: np.ndarray
    """(E,) int64: the first row of each example that has rows, ascending."""
    example_doc: np.ndarray
    """(E,) int64: its document."""
    example_label: np.ndarray
    """(E,) int32: the number of its label, -1 for none."""
    label_names: np.ndarray
    label_ptr: np.ndarray

    @cached_property
    def labels(self) -> list[str]:
        """The labels of the data, in alphabetical order."""
        data = self.label_names.tobytes()
        return [data[a:b].decode() for a, b in zip(self.label_ptr, self.label_ptr[1:])]

    @cached_property
    def example(self) -> np.ndarray:
        """(R,) int32: the example of each row."""
        ends = np.append(self.example_first[1:], len(self.position))
        numbers = np.arange(len(self.example_first), dtype=np.int32)
        return np.repeat(numbers, ends - self.example_first)

    def examples_of(self, rows: np.ndarray) -> np.ndarray:
        """(n,) int64: the example of each of these rows, ascending."""
        # whichever has fewer: rows to look up, or examples to place between the rows
        if len(rows) < len(self.example_first):
            return np.searchsorted(self.example_first, rows, side="right") - 1
        begin = np.searchsorted(rows, np.append(self.example_first, len(self.position)))
        return np.repeat(np.arange(len(self.example_first)), np.diff(begin))

    @cached_property
    def follows(self) -> np.ndarray:
        """(R,) bool: whether the row before is the one before it in its example. Rows that were
        dropped leave gaps."""
        follows = np.zeros(len(self.position), bool)
        follows[1:] = np.diff(self.position) == 1
        follows[self.example_first] = False
        return follows


def write_origin(path: Path, store: Store) -> None:
    """Copy the origin of all rows of a store."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ORIGIN_TENSORS}
    names: list[str | None] = []
    is_text = store.spec.modality == "text" and not store.spec.is_raw
    offset = 0
    for shard in store.shards:
        arrays = shard.arrays
        shown = np.flatnonzero(arrays["examples.rows"] > 0)
        first = arrays["examples.first_row"][shown]
        count = arrays["examples.rows"][shown]
        labels = shard.labels()
        names += [labels[example] for example in shown.tolist()]
        parts["example_first"].append(first + offset)
        parts["example_doc"].append(arrays["examples.doc_id"][shown])
        parts["position"].append(arrays["position"])
        if is_text:
            begin = np.repeat(arrays["examples.token_ptr"][shown], count)
            parts["token"].append(arrays["examples.tokens"][begin + arrays["position"]])
        offset += len(shard)
    # labels by number
    known = sorted({name for name in names if name is not None})
    number = {name: at for at, name in enumerate(known)}
    numbers = [NONE if name is None else number[name] for name in names]
    packed, ptr = (tensor.numpy() for tensor in pack_strings(known))
    parts |= {"example_label": [np.array(numbers)], "label_names": [packed], "label_ptr": [ptr]}

    sizes = {name: sum(map(len, arrays)) for name, arrays in parts.items()}
    shapes = {name: (dtype, sizes[name]) for name, (dtype, _) in ORIGIN_TENSORS.items()}
    with writing_tensors(path, shapes) as file:
        for name, arrays in parts.items():
            for array in arrays:
                file.append(name, array)


def read_origin(path: Path) -> Origin:
    """Raises MisfitError."""
    return Origin(**mapped_tensors(path, ORIGIN_TENSORS))
