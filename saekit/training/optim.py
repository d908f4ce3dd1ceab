"""Optimizer, learning-rate schedule, precision of dense products."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from saekit.models.sae import SAE

if TYPE_CHECKING:
    from saekit.models.autoencoder import Autoencoder
    from saekit.training.config import TrainConfig


# The factor on the peak rate by the remaining share of the decay: 1 when it starts.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda remaining: 1.0,
    "linear": lambda remaining: remaining,
    # Loshchilov and Hutter 2017, arXiv 1608.03983, eq. 5
    "cosine": lambda remaining: 0.5 - 0.5 * math.cos(math.pi * remaining),
}


def schedule(
    step: int,
    total: int,
    decay: float,
    shape: str,
    warmup: float,
) -> float:
    """Factor on the peak rate: linear rise over the first `warmup` of the steps, constant, decay
    over the last `decay` of them. The last step still has a rate: that of one step before the
    end."""
    rise, decline = max(round(warmup * total), 1), max(round(decay * total), 1)
    return min(1.0, (step + 1) / rise, SCHEDULES[shape](min((total - step) / decline, 1.0)))


def decay_share(config: TrainConfig, model: Autoencoder) -> float:
    """The share of the steps over which the rate decays: the user's; else for a cosine all steps
    after the warm-up, since it has no corner that could come later, and for a line the model's own,
    as far as the warm-up leaves room."""
    if config.decay is not None:
        return config.decay
    if config.schedule == "constant":
        return 0.0
    after_warmup = 1.0 - config.warmup
    if config.schedule == "cosine":
        return after_warmup
    return min(model.decay_share, after_warmup)


class _Widened(TorchFunctionMode):
    """Converts results in bf16 to fp32 at once."""

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        # recurrent cells return all states and the last
        if isinstance(result, tuple) and type(result) is tuple:
            return tuple(_wide(part) for part in result)
        return _wide(result)


def _wide(value: Any) -> Any:
    return (
        value.float()
        if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16
        else value
    )


@contextmanager
def products_in_bfloat16(device: torch.device) -> Iterator[None]:
    """Matrix products, convolutions and recurrent cells in bf16, by torch.autocast, with results in
    fp32; everything else, above all losses, stays in fp32. Autocast by itself keeps results in
    bf16, and the means, exponentials and penalties after them in eight bits.

    Not for code with its own gradients (saekit_kernels), whose bounds and backward passes need
    fp32.
    """
    # Without the cache: it would give a copy made under no_grad to a later product, and the
    # gradient would be lost.
    with torch.autocast(device.type, torch.bfloat16, cache_enabled=False), _Widened():
        yield


def make_adam(
    model: torch.nn.Module, lr: float, weight_decay: float = 0.0, beta2: float = 0.999
) -> torch.optim.Adam:
    """Adam with betas 0.9 and `beta2`; with a weight decay AdamW (Loshchilov and Hutter 2019, arXiv
    1711.05101). Fused: one pass over the parameters, 4 to 8 times as fast as the loop on a CPU."""
    return adam_of(model.named_parameters(), lr, (0.9, beta2), weight_decay)


def adam_of(
    named: Iterable[tuple[str, torch.nn.Parameter]],
    lr: float,
    betas: tuple[float, float],
    weight_decay: float = 0.0,
) -> torch.optim.Adam:
    """The same for some parameters, with their names."""
    if weight_decay:
        return torch.optim.AdamW(named, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
    return torch.optim.Adam(named, lr=lr, betas=betas, fused=True)


def adam_tensors(optimizer: torch.optim.Adam, names: list[str]) -> dict[str, torch.Tensor]:
    """Moments and step counts by the names that they have in a file; empty before the first
    step."""
    parameters = optimizer.param_groups[0]["params"]
    return {
        f"adam.{key}.{name}": value
        for name, parameter in zip(names, parameters)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def moments(
    model: torch.nn.Module, optimizer: torch.optim.Adam
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """First and second moments by parameter name; zeros are created before the first step."""
    moments = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = (
                torch.zeros_like(parameter),
                torch.zeros_like(parameter),
            )
        moments[name] = (state["exp_avg"], state["exp_avg_sq"])
    return moments


def count_step(optimizer: torch.optim.Adam) -> None:
    """Tell the optimizer about a step that was taken outside it."""
    for state in optimizer.state.values():
        state["step"] += 1


def restore_adam(
    optimizer: torch.optim.Adam, names: list[str], tensors: dict[str, torch.Tensor]
) -> None:
    """Undoes `adam_tensors`. Raises ValueError for tensors of other shapes or types."""
    for name, parameter in zip(names, optimizer.param_groups[0]["params"]):
        state = {
            key: tensors[f"adam.{key}.{name}"]
            for key in ("step", "exp_avg", "exp_avg_sq")
            if f"adam.{key}.{name}" in tensors
        }
        if state:
            need_like(
                state,
                {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter},
                f"adam.{name}.",
            )
            # Fused Adam keeps its step count on the parameter's device too.
            optimizer.state[parameter] = {
                key: value.to(parameter.device) for key, value in state.items()
            }


def need_like(
    tensors: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], prefix: str = ""
) -> None:
    """Raise ValueError unless every tensor of `wanted` is in `tensors` with the same shape and
    dtype: copying would broadcast and convert."""
    for name, value in wanted.items():
        if name not in tensors:
            raise ValueError(f"{prefix}{name} is missing")
        if tensors[name].shape != value.shape or tensors[name].dtype != value.dtype:
            raise ValueError(
                f"{prefix}{name} is {tensors[name].dtype} {list(tensors[name].shape)}, not"
                f" {value.dtype} {list(value.shape)}"
            )


def reset_moments(
    optimizer: torch.optim.Adam,
    latents: torch.Tensor,
    count: int,
    by_output: Collection[str] = SAE.by_output,
) -> None:
    """Zero the moments of the given latents in every parameter with one row per latent, of which
    there are `count`. Parameters with one row per dimension of the output are excluded by name:
    their number may be the same."""
    group = optimizer.param_groups[0]
    for name, parameter in zip(group["param_names"], group["params"]):
        if name not in by_output and parameter.shape[0] == count and parameter in optimizer.state:
            for key in ("exp_avg", "exp_avg_sq"):
                optimizer.state[parameter][key][latents] = 0.0
