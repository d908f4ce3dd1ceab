"""Rows in memory, for training and evaluation without a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import torch

from saekit.display import brief
from saekit.errors import DataError
from saekit.rows import indices
from saekit.store.split import split_rows
from saekit.types import ActivationBatch, ActivationSpec, Split

HASHED_AT_ONCE = 65_536  # rows, so that the copy of a strided array stays small


class ArraySource:
    """Rows (N,D), whole sequences (N,T,D) or grids (N,H,W,D) in memory; nothing is copied.

    Every row, sequence or grid is a document. `holdout` is the share of rows that is held out, by
    the rule of a store; 0: all rows are training rows. `shape` is (H,W,C) of a flat row that is an
    image. `target`, in the shape of `x`, is what to reconstruct. `labels` are those of the rows.
    """

    path = "the array"
    parts: tuple[int, ...] = ()

    def __init__(
        self,
        x: np.ndarray | torch.Tensor,
        *,
        shape: tuple[int, int, int] | None = None,
        target: np.ndarray | torch.Tensor | None = None,
        holdout: float = 0.0,
        labels: Sequence[str] | None = None,
    ) -> None:
        whole = torch.as_tensor(x)
        self.inner = tuple(whole.shape[1:-1])  # of one example, without D: () | (T,) | (H,W)
        self.x = whole.reshape(-1, whole.shape[-1])
        self.target = None if target is None else ArraySource(target, holdout=holdout)
        self.holdout, self.labels = holdout, labels
        grid = self.inner if len(self.inner) == 2 else None
        self.spec = ActivationSpec(
            model="raw:array",
            revision=None,
            hook="array",
            modality="array",
            d_in=self.x.shape[1],
            dtype=str(self.x.dtype).removeprefix("torch."),
            layout=("flat", "sequence", "grid")[len(self.inner)],
            scope="content",
            grid=grid if shape is None else shape[:2],
            dataset="array",
            context=self.inner[0] if len(self.inner) == 1 else None,
            seed=0,
        )
        self._numbers: dict[tuple[Split, bool], np.ndarray] = {}

    @property
    def size(self) -> int:
        """Rows of one example."""
        return int(np.prod(self.inner))

    @property
    def content(self) -> str:
        """sha256 of shape, dtype and values; computed on first use."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256(
            repr((tuple(self.x.shape), self.inner, self.spec.dtype, self.holdout)).encode()
        )
        for part in self.x.split(HASHED_AT_ONCE):
            digest.update(part.contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.x)

    @property
    def shape(self) -> tuple[int, int]:
        """(N,D): rows, and their width."""
        return len(self), self.spec.d_in

    def __repr__(self) -> str:
        spec = self.spec
        values = {"shape": self.shape, "dtype": spec.dtype, "layout": spec.layout}
        return brief(self, values | {"holdout": self.holdout})

    def count(self, split: Split = "all", examples: bool = False) -> int:
        return len(self._of(split, examples))

    def _of(self, split: Split, examples: bool) -> np.ndarray:
        """Numbers of the rows, or of the examples, of one side, ascending."""
        if (split, examples) not in self._numbers:
            self._numbers[split, examples] = self._split(split, examples)
        return self._numbers[split, examples]

    def _split(self, split: Split, examples: bool) -> np.ndarray:
        whole = np.arange(len(self.x) // self.size)
        if split == "holdout" and not self.holdout:
            return whole[:0]
        if split == "all" or not self.holdout:
            return whole if examples else np.arange(len(self.x))
        if len(whole) < 2:
            raise DataError(
                f"{self.path} has only one example, so none can be held out", "give at least two"
            )
        rows = split_rows(
            whole * self.size, whole, len(self.x), self.spec.seed, split, self.holdout
        ).numbers()
        return rows[:: self.size] // self.size if examples else rows

    def batches(
        self,
        batch_size: int,
        seed: int | None = None,
        start: int = 0,
        split: Split = "all",
        examples: bool = False,
    ) -> Iterator[ActivationBatch]:
        numbers = self._of(split, examples)
        for index in indices(len(numbers), batch_size, seed, start):
            yield self._whole(numbers[index]) if examples else self.take(numbers[index])

    def take(self, index: np.ndarray) -> ActivationBatch:
        rows = torch.from_numpy(index)
        example = rows // self.size
        position = (rows % self.size).int()
        target = None if self.target is None else self.target.x[rows]
        return ActivationBatch(self.x[rows], example, example, position, rows=rows, target=target)

    def _whole(self, numbers: np.ndarray) -> ActivationBatch:
        """Whole examples; their origin is that of their first rows."""
        example = torch.from_numpy(numbers)
        x = self.x.view(-1, *self.inner, self.spec.d_in)[example]
        target = (
            None
            if self.target is None
            else self.target.x.view(-1, *self.inner, self.target.spec.d_in)[example]
        )
        position = torch.zeros(len(example), dtype=torch.int32)
        return ActivationBatch(
            x, example, example, position, rows=example * self.size, target=target
        )

    def locate(self, row: int) -> str:
        return f"{self.path}, row {row}"
