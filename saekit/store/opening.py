"""Anything that holds rows -> Rows: a path, a Store, a tensor, an array, or blocks of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeGuard

import numpy as np
import torch

from saekit.errors import DataError, UsageError
from saekit.rows import Rows
from saekit.store.memory import ArraySource
from saekit.store.reader import Store
from saekit.store.split import HOLDOUT_SHARE
from saekit.store.stack import StackedStore

RowsLike = str | Path | Rows | torch.Tensor | np.ndarray | Iterable
# rows or sequences; a single held-out row has no variance, so fvu would be undefined
LEAST, LEAST_HELD_OUT = 4, 2
KEPT = (torch.float32, torch.float16, torch.bfloat16)  # other dtypes become float32
SHAPES = "(N, D), (N, T, D) or (N, H, W, D)"


def open_rows(rows: RowsLike) -> Rows:
    """Rows that training and evaluation can read.

    - a path of a store, or an open Store; a list of row-aligned ones is read side by side (a
      crosscoder);
    - a tensor, NumPy array or DataFrame of rows (N,D), sequences (N,T,D) or grids (N,H,W,D);
    - an iterable of such blocks, equal in all but N. It is read once and kept in memory, since
      training needs more than one pass, statistics and held-out rows: data larger than memory
      belongs in a store;
    - an object with the members of saekit.rows.Rows, returned as it is.

    Rows in memory are not copied, unless they are on another device (they move to the CPU) or not
    float32, float16 or bfloat16 (they become float32). 5 % of them, and at least two, are held out,
    in whole sequences.

    Raises UsageError for objects that cannot be rows, DataError for wrong shapes, and like Store.
    """
    if is_rows(rows):
        return rows
    if isinstance(rows, (str, Path)):
        return Store(Path(rows))
    if isinstance(rows, torch.Tensor) or hasattr(rows, "__array__"):
        return _in_memory(_tensor(rows, "the rows"))
    if not isinstance(rows, Iterable) or isinstance(rows, Mapping):
        raise UsageError(
            f"cannot read rows from {type(rows).__name__}",
            f"give a path, a Store, a tensor or array {SHAPES}, or an iterable of these",
        )
    blocks = list(rows)
    if blocks and all(isinstance(block, (str, Path, Store)) for block in blocks):
        stores = [block if isinstance(block, Store) else Store(Path(block)) for block in blocks]
        return stores[0] if len(stores) == 1 else StackedStore(stores)
    return _in_memory(_joined(blocks))


def open_stores(rows: RowsLike) -> Store | StackedStore:
    """The same when the origin of the rows (token or patch) must be known: one store, or several
    side by side. Raises UsageError for rows in memory."""
    opened = open_rows(rows)
    if not isinstance(opened, (Store, StackedStore)):
        cause = "rows in memory do not say which token or patch they come from"
        raise UsageError(cause, "give the path of a store, or an open store")
    return opened


def is_rows(value: object) -> TypeGuard[Rows]:
    """Whether `value` is a Rows. isinstance would compute every property of the protocol."""
    return hasattr(value, "batches") and hasattr(value, "locate")


def _joined(blocks: list) -> torch.Tensor:
    tensors = [_tensor(block, f"block {number}") for number, block in enumerate(blocks)]
    if not tensors:
        raise UsageError(
            "there are no rows: the iterable is empty", "a generator can be read only once"
        )
    for number, tensor in enumerate(tensors):
        if tensor.shape[1:] != tensors[0].shape[1:]:
            cause = (
                f"block {number} has shape {tuple(tensor.shape)}, block 0 {tuple(tensors[0].shape)}"
            )
            raise DataError(cause, "blocks may differ only in their number of rows")
    return torch.cat(tensors)


def _tensor(block: object, name: str) -> torch.Tensor:
    """`block` on the CPU, detached, in a dtype of stores. Raises UsageError, DataError."""
    if not isinstance(block, torch.Tensor) and hasattr(block, "__array__"):
        block = _from_numpy(np.asarray(block), name)
    if not isinstance(block, torch.Tensor):
        raise UsageError(
            f"{name} is of type {type(block).__name__}", f"give tensors or arrays {SHAPES}"
        )
    if not 2 <= block.dim() <= 4 or 0 in block.shape[1:]:
        raise DataError(f"{name} of shape {tuple(block.shape)} cannot be rows", f"give {SHAPES}")
    if block.is_complex():
        raise DataError(f"{name} holds complex numbers")
    return block.detach().to("cpu", block.dtype if block.dtype in KEPT else torch.float32)


def _from_numpy(array: np.ndarray, name: str) -> torch.Tensor:
    if array.dtype.kind not in "fiub":
        raise DataError(f"{name} is an array of {array.dtype}", "give an array of numbers")
    if array.dtype not in (np.float32, np.float16):  # also numbers of another byte order
        array = array.astype(np.float32)
    with warnings.catch_warnings():
        # the tensor is only read
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(array))


def _in_memory(x: torch.Tensor) -> ArraySource:
    if len(x) < LEAST:
        raise DataError(
            f"{len(x)} rows or sequences are too few to train on some and hold out others",
            f"give at least {LEAST}",
        )
    return ArraySource(x, holdout=max(HOLDOUT_SHARE, LEAST_HELD_OUT / len(x)))
