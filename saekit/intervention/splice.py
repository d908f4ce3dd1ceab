"""Run a model with the hidden state at a hook replaced by a function of it.

The counterpart of `saekit.harvesting.hooks.capture`, with the same hook names: `capture` reads what
`splice` writes. Gradients reach what the function uses through the part of the model after the
hook; the part before it has nothing to differentiate and records no graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from saekit.errors import DataError
from saekit.harvesting.anatomy import anatomy_of
from saekit.harvesting.hooks import block_hint, check_runs_once, proof, resolve_hook
from saekit.harvesting.uncompiled import uncompiled
from saekit.harvesting.views import attach
from saekit.types import Output

Change = Callable[[torch.Tensor], torch.Tensor | Output]


@contextmanager
def splice(
    model: Any,
    hook: str | Mapping[str, Change],
    change: Change | None = None,
    mask_BT: torch.Tensor | None = None,
) -> Iterator[None]:
    """Within the body, every forward pass of `model` uses changed states at a hook, or at several.

    Parameters
        model: any transformers module, or a LiveModel.
        hook: the hook that `change` applies to, named as for `capture` (`blocks.9` is the residual
            stream after block 9); or a mapping of hooks to changes.
        change: a function of the rows x (N,D) of the chosen positions, in order, that returns their
            replacements (N,D) in any float dtype; or an autoencoder such as `saekit.load` returns,
            which replaces them with its reconstruction. A module gets x in its own dtype.
        mask_BT: bool, the positions that are changed; all others keep their bits. None: all
            positions, of inputs of any length.

    Gradients flow through the changed states to x and to what `change` uses. What `torch.compile`
    has compiled runs uncompiled.

        sae = saekit.load("runs/sae")
        with torch.inference_mode(), saekit.splice(model, "blocks.9", sae):
            loss = model(**inputs, labels=inputs["input_ids"]).loss  # from the reconstruction
        with saekit.splice(model, {"blocks.3": lambda x: 0 * x, "blocks.9": sae}):
            ...

    Raises DataError for a hook that is unknown, an alias that does not apply to this model, a hook
    that has no states (B,T,D), runs several times in a pass or did not run, and for a change that
    returns another shape.
    """
    if isinstance(hook, str) and change is not None:
        changes = {hook: change}
    elif isinstance(hook, Mapping) and change is None:
        changes = hook
    else:
        raise TypeError("splice takes a hook and a change, or a mapping of hooks to changes")
    with ExitStack() as stack:
        stack.enter_context(uncompiled())
        for name, at_hook in changes.items():
            stack.enter_context(_splice_one(model, name, at_hook, mask_BT))
        yield


@contextmanager
def _splice_one(
    model: Any, hook: str, change: Change, mask_BT: torch.Tensor | None
) -> Iterator[None]:
    module = model if isinstance(model, nn.Module) else model.module
    canonical = resolve_hook(module, hook)
    check_runs_once(module, canonical)
    ran, hint = False, block_hint(module)

    def changed(value: Any) -> torch.Tensor:
        nonlocal ran
        ran = True
        if not isinstance(value, torch.Tensor) or value.ndim != 3 or not value.is_floating_point():
            raise DataError(
                f"{hook} does not give hidden states of shape (batch, tokens, width)", hint
            )
        return _replaced(value, change, mask_BT)

    handles = attach(module, canonical, anatomy_of(module).views.get(canonical), changed)
    try:
        # it sees the changed states, so that their sums still hold
        with proof(module, {hook: canonical}) as proving:
            yield
            if ran:
                proving.read.add(canonical)
    finally:
        for handle in handles:
            handle.remove()
    if not ran:
        raise DataError(f"{hook} did not run", hint)


def _replaced(
    state_BTD: torch.Tensor, change: Change, mask_BT: torch.Tensor | None
) -> torch.Tensor:
    if mask_BT is None:
        return _changed(state_BTD.flatten(0, 1), change).view_as(state_BTD)
    rows = _changed(state_BTD[mask_BT], change)
    state_BTD = state_BTD.clone()  # the residual stream may use the model's own tensor elsewhere
    state_BTD[mask_BT] = rows
    return state_BTD


def _changed(x_ND: torch.Tensor, change: Change) -> torch.Tensor:
    """The replacement of x, in its dtype."""
    weight = next(change.parameters(), None) if isinstance(change, nn.Module) else None
    changed = change(x_ND if weight is None else x_ND.to(weight.dtype))
    rows = changed.x_hat if isinstance(changed, Output) else changed
    if rows.shape != x_ND.shape:
        raise DataError(
            f"the change returned {tuple(rows.shape)} for rows of shape {tuple(x_ND.shape)}",
            "return a row for each row",
        )
    return rows.to(x_ND.dtype)
