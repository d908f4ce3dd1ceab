"""A store for NumPy, for pandas and at a prompt: its rows as an array or a DataFrame, its shape,
its line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from saekit.display import brief, html_table, pandas
from saekit.types import ActivationBatch, ActivationSpec, Split

if TYPE_CHECKING:
    from saekit.store.split import RowRanges

_ORIGIN = ("doc_id", "example_id", "position")


class AsArrays:
    """The base of Store, which has these members."""

    path: Path

    if TYPE_CHECKING:

        @property
        def spec(self) -> ActivationSpec: ...
        def __len__(self) -> int: ...
        def split(self, split: Split) -> RowRanges: ...
        def take(self, index: np.ndarray) -> ActivationBatch: ...
        def labels(self, split: Split = "all") -> list[str | None]: ...

    @property
    def shape(self) -> tuple[int, int]:
        """(N,D): rows, and their width."""
        return len(self), self.spec.d_in

    def numpy(self, split: Split = "all") -> np.ndarray:
        """The rows (N,D) of one side of the held-out split, in store order, all in memory: float16
        or float32 as they are stored, and bfloat16, which NumPy does not have, as float32."""
        x_ND = self.take(self.split(split).numbers()).x
        return (x_ND.float() if x_ND.dtype == torch.bfloat16 else x_ND).numpy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """np.asarray(store): all rows."""
        if copy is False:
            raise ValueError("the rows of a store are read from disk, which always makes a copy")
        x_ND = self.numpy()
        return x_ND if dtype is None else x_ND.astype(dtype, copy=False)

    def to_pandas(self, split: Split = "all") -> Any:
        """A DataFrame of the rows of one side, all in memory: doc_id, example_id, position, label
        where the data has labels, then the D values as columns 0 to D - 1, float32. Raises
        MissingError without pandas."""
        batch = self.take(self.split(split).numbers())
        origin: dict[str, Any] = {name: getattr(batch, name).numpy() for name in _ORIGIN}
        labels = self.labels(split)
        if any(label is not None for label in labels):
            origin["label"] = labels
        frames = pandas()
        values = frames.DataFrame(batch.x.float().numpy())
        return frames.concat([frames.DataFrame(origin), values], axis=1)

    def __repr__(self) -> str:
        return brief(self, self._figures(), repr(str(self.path)))

    def _repr_html_(self) -> str:
        return html_table([{"path": str(self.path), **self._figures()}], "Store")

    def _figures(self) -> dict[str, Any]:
        spec = self.spec
        names = ("dtype", "layout", "model", "hook", "dataset")
        return {"shape": self.shape, **{name: getattr(spec, name) for name in names}}
