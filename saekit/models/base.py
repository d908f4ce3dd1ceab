"""What several autoencoders share: checks of inputs, initial values, the geometry of decoder
rows."""

from __future__ import annotations

import torch

from saekit.errors import DataError

ROWS_IN_CACHE = 1024  # passes over weights work on pieces whose temporaries stay in cache


def as_rows(x: object, width: int, weight: torch.Tensor, what: str = "x") -> torch.Tensor:
    """x (..., width) in any float dtype as (B,width) in the dtype of `weight`. Raises DataError."""
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        if isinstance(x, torch.Tensor):
            raise DataError(f"{what} is {x.dtype}, not a tensor of floats", f"{what}.float()")
        cause = f"{what} is {type(x).__name__}, not a tensor of floats or an array"
        raise DataError(cause, "torch.tensor(...) or np.array(...) of it")
    if x.ndim == 0 or x.shape[-1] != width:
        cause = f"{what} has the shape {tuple(x.shape)}; its last dimension must be {width}"
        raise DataError(cause, "give rows of the width that the model was trained on")
    if x.device != weight.device:
        raise DataError(
            f"{what} is on {x.device}, the model on {weight.device}",
            f"{what}.to({str(weight.device)!r})",
        )
    return x.reshape(-1, width).to(weight.dtype)


def as_examples(
    x: torch.Tensor, shape: tuple[int | None, ...], weight: torch.Tensor, what: str = "x"
) -> torch.Tensor:
    """x (..., *shape) as (B,*shape), as `as_rows`; None in `shape` is any length of at least 1.
    Raises DataError."""
    assert shape[-1] is not None
    as_rows(x, shape[-1], weight, what)  # checks
    sizes = x.shape[-len(shape) :]
    fits = [size > 0 and size == (wanted or size) for size, wanted in zip(sizes, shape)]
    if len(sizes) < len(shape) or not all(fits):
        wanted = ", ".join("length" if size is None else str(size) for size in shape)
        raise DataError(
            f"{what} has the shape {tuple(x.shape)}; one example is ({wanted})",
            "give whole examples, as the store holds them",
        )
    return x.reshape(-1, *sizes).to(weight.dtype)


def geometric_median(
    x_BD: torch.Tensor, iterations: int = 100, tolerance: float = 1e-6
) -> torch.Tensor:
    """(D,): the point with the smallest sum of distances to the rows, by Weiszfeld's iteration.

    More robust than the mean: a few rows of huge norm (attention sinks) hardly move it.
    """
    point = x_BD.mean(0)
    for _ in range(iterations):
        weight = 1.0 / (x_BD - point).norm(dim=1).clamp_min(1e-12)
        new_point = (x_BD * weight[:, None]).sum(0) / weight.sum()
        step = (new_point - point).norm()
        point = new_point
        if step <= tolerance * point.norm().clamp_min(1e-12):
            break
    return point


def random_unit_rows(rows: int, width: int, generator: torch.Generator | None) -> torch.Tensor:
    """(rows, width): directions drawn uniformly from the sphere."""
    return unit_rows_(torch.randn(rows, width, generator=generator))


def unit_rows_(W_FD: torch.Tensor) -> torch.Tensor:
    """Scale every row to norm 1, in place. Rows without memory stay as they are: their norms would
    make torch import its compiler, for 2 s."""
    if W_FD.is_meta:
        return W_FD
    return torch.nn.functional.normalize(W_FD, dim=1, out=W_FD)


def remove_parallel_(grad_FD: torch.Tensor, W_FD: torch.Tensor) -> None:
    """Remove from each gradient row its component along the unit row of W: it would only change the
    norm, which is reset afterwards. On a CPU in pieces that fit its cache; a device would launch
    each of them."""
    rows = ROWS_IN_CACHE if W_FD.device.type == "cpu" else max(len(W_FD), 1)
    for grad, W in zip(grad_FD.split(rows), W_FD.split(rows)):
        along = (grad * W).sum(1, keepdim=True)
        torch.addcmul(grad, along, W, value=-1, out=grad)
