"""NumPy arrays, DataFrames and stores as the input of a model, next to tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import nn

from saekit.errors import DataError


def takes_arrays(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a model whose first argument is a tensor: also takes whatever NumPy can read, as
    a tensor on the model's device. Nothing is differentiated then, so that the result goes back
    to NumPy with `numpy()`."""

    name = list(signature(method).parameters)[1]

    @wraps(method)
    def called(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else kwargs.get(name)
        if isinstance(x, torch.Tensor) or not hasattr(x, "__array__"):
            return method(model, *args, **kwargs)
        with torch.no_grad():
            if args:
                return method(model, _tensor(x, model), *args[1:], **kwargs)
            return method(model, **kwargs | {name: _tensor(x, model)})

    return called


def _tensor(x: Any, model: nn.Module) -> torch.Tensor:
    array = np.asarray(x)
    if array.dtype.kind not in "fiub":
        raise DataError(
            f"x is {type(x).__name__} of {array.dtype}, not of numbers",
            "leave out what is not a number, such as columns of texts",
        )
    if array.dtype not in (np.float16, np.float32, np.float64):
        array = array.astype(np.float32)
    weight = next(iter(model.state_dict().values()))
    # a copy: NumPy's own memory may be read-only, of another byte order, or columns first
    copied = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(copied).to(weight.device)
