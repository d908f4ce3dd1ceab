"""An array as an ActivationSource: what the trainer needs of a store, without a folder. All rows are training rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from saekit.types import ActivationBatch, ActivationSpec, Split


class ArraySource:
    """Rows (N,D) in memory. `shape` is that of one row as an image, (H,W,C), where it is one; `target` (N,E) what to reconstruct."""

    def __init__(
        self, x: np.ndarray | torch.Tensor, *, shape: tuple[int, int, int] | None = None, target: np.ndarray | torch.Tensor | None = None
    ) -> None:
        self.x = torch.as_tensor(x)
        self.target = None if target is None else torch.as_tensor(target)
        self.path = "the array"
        self.spec = ActivationSpec(
            model="raw:array",
            revision=None,
            hook="array",
            modality="array",
            d_in=self.x.shape[1],
            dtype=str(self.x.dtype).removeprefix("torch."),
            layout="flat",
            scope="content",
            grid=None if shape is None else shape[:2],
            dataset="array",
            context=None,
            seed=0,
        )

    @property
    def has_target(self) -> bool:
        return self.target is not None

    def __len__(self) -> int:
        return len(self.x)

    def split(self, split: Split) -> range:
        return range(0 if split == "holdout" else len(self.x))

    def batches(
        self, batch_size: int, seed: int | None = None, start: int = 0, split: Split = "all", examples: bool = False
    ) -> Iterator[ActivationBatch]:
        """As `Store.batches`: in order once, or shuffled for ever, every batch full; `start` counts rows."""
        assert split != "holdout" and not examples
        n = len(self.x)
        if seed is None:
            for first in range(start, n, batch_size):
                yield self._take(torch.arange(first, min(first + batch_size, n)))
            return
        epoch, skip = divmod(start, n)
        held = self._order(seed, epoch)[skip:]
        while True:
            while len(held) < batch_size:
                epoch += 1
                held = torch.cat([held, self._order(seed, epoch)])
            yield self._take(held[:batch_size])
            held = held[batch_size:]

    def _order(self, seed: int, epoch: int) -> torch.Tensor:
        return torch.from_numpy(np.random.Generator(np.random.PCG64([seed, epoch])).permutation(len(self.x)))

    def _take(self, index: torch.Tensor) -> ActivationBatch:
        target = None if self.target is None else self.target[index]
        return ActivationBatch(self.x[index], index, index, torch.zeros(len(index), dtype=torch.int32), rows=index, target=target)

    def locate(self, row: int) -> str:
        return f"row {row}"
