"""Run a model with the hidden state at a hook replaced by a function of it.

The counterpart of `saekit.harvesting.hooks.capture`, with the same hook names: what `capture` reads, `splice` writes. Gradients reach what
the function uses, through the part of the model behind the hook alone: the part before it has nothing to differentiate, and records
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from saekit.errors import DataError
from saekit.harvesting.hooks import block_hint, check_runs_once, proof, resolve_hook, split_input

Change = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def splice(model: Any, hook: str, change: Change, mask_BT: torch.Tensor | None = None) -> Iterator[None]:
    """Within the body, every forward pass of `model` (a module or a LiveModel) runs on with changed states at `hook`.

    `change` is given the rows x (N,D) of the chosen positions, in order, and returns what stands in their place, (N,D), in any float dtype.
    mask_BT (bool) chooses the positions: all others keep their bits. None: all positions, of inputs of any length.

        with splice(live, "blocks.9", lambda x_ND: sae(x_ND).x_hat, mask_BT):
            logits_BTV = live.forward(inputs).logits

    Raises DataError for an unknown hook or an alias that is not what it says on this model, one that gives no states (B,T,D), one that runs
    several times in a pass, and one that did not run.
    """
    module = model if isinstance(model, nn.Module) else model.module
    canonical = resolve_hook(module, hook)
    check_runs_once(module, canonical)
    path, at_input = split_input(canonical)
    ran, hint = False, block_hint(module)

    def changed(value: Any) -> Any:
        nonlocal ran
        ran = True
        if isinstance(value, tuple | list) and value:  # the state comes first: attention weights and the like stay
            return type(value)([changed(value[0]), *value[1:]])
        if not isinstance(value, torch.Tensor) or value.ndim != 3 or not value.is_floating_point():
            raise DataError(f"{hook} gives no hidden states of shape (batch, tokens, width)", hint)
        return _replaced(value, change, mask_BT)

    def before(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if args:
            return (changed(args[0]), *args[1:]), kwargs
        name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
        return args, kwargs | {name: changed(kwargs[name])}

    hooked = module.get_submodule(path)
    if at_input:
        handle = hooked.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = hooked.register_forward_hook(lambda _module, _args, output: changed(output))
    try:
        with proof(module, {hook: canonical}) as proving:  # it sees the states as changed, so that their sums still hold
            yield
            if ran:
                proving.read.add(canonical)
    finally:
        handle.remove()
    if not ran:
        raise DataError(f"{hook} did not run", hint)


def _replaced(state_BTD: torch.Tensor, change: Change, mask_BT: torch.Tensor | None) -> torch.Tensor:
    if mask_BT is None:
        return change(state_BTD.flatten(0, 1)).to(state_BTD.dtype).view_as(state_BTD)
    rows = change(state_BTD[mask_BT]).to(state_BTD.dtype)
    state_BTD = state_BTD.clone()  # the model's own tensor may be in use elsewhere, as the residual
    state_BTD[mask_BT] = rows
    return state_BTD
