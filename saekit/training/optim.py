"""Optimiser and learning-rate schedule."""

from __future__ import annotations

import torch

WARMUP_SHARE, DECAY_SHARE = 0.05, 0.2


def schedule(step: int, total: int, decay_share: float = DECAY_SHARE) -> float:
    """Factor on the peak rate: linear warm-up over the first 5 % of the steps, constant, linear decay over the last `decay_share`."""
    warmup = max(round(WARMUP_SHARE * total), 1)
    decay = max(round(decay_share * total), 1)
    return min(1.0, (step + 1) / warmup, (total - step) / decay)


def make_adam(model: torch.nn.Module, lr: float, weight_decay: float = 0.0) -> torch.optim.Adam:
    """Adam with betas 0.9 and 0.999; with a weight decay, decoupled (AdamW, Loshchilov and Hutter 2019, arXiv 1711.05101).
    Fused: one pass over the parameters, 4 to 8 times the speed of the loop on a CPU."""
    if weight_decay:
        return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    return torch.optim.Adam(model.parameters(), lr=lr, fused=True)


def adam_tensors(optimizer: torch.optim.Adam, names: list[str]) -> dict[str, torch.Tensor]:
    """The moments and step counts under names fit for a file; empty before the first step."""
    parameters = optimizer.param_groups[0]["params"]
    return {
        f"adam.{key}.{name}": value
        for name, parameter in zip(names, parameters)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def moments(model: torch.nn.Module, optimizer: torch.optim.Adam) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """First and second moments by parameter name, made as zeros before the first step."""
    found = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        found[name] = (state["exp_avg"], state["exp_avg_sq"])
    return found


def count_step(optimizer: torch.optim.Adam) -> None:
    """Tell the optimiser of a step that was taken outside it."""
    for state in optimizer.state.values():
        state["step"] += 1


def restore_adam(optimizer: torch.optim.Adam, names: list[str], tensors: dict[str, torch.Tensor]) -> None:
    for name, parameter in zip(names, optimizer.param_groups[0]["params"]):
        state = {key: tensors[f"adam.{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"adam.{key}.{name}" in tensors}
        if state:
            # Fused Adam keeps its step count on the parameter's device too.
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}


def reset_moments(optimizer: torch.optim.Adam, latents: torch.Tensor, count: int) -> None:
    """Zero the moments of the given latents in every parameter that has a row for each of the `count` latents."""
    for parameter in optimizer.param_groups[0]["params"]:
        if parameter.shape[0] == count and parameter in optimizer.state:
            for key in ("exp_avg", "exp_avg_sq"):
                optimizer.state[parameter][key][latents] = 0.0
