"""What a canonical hook reads of a module, and how a changed state is put back: `attach`, which
`capture` and `splice` share.

`path` is the module's output and `path:in` its input. Other suffixes name a state that no module
has as its input or output, a view:

- `:q`, `:k`, `:v`: some columns of a projection that computes all three (`Columns`);
- `:normalized`: the state of a norm before its gain and bias (`Normalized`);
- `:mid`: of a block, the residual stream between attention and MLP (`Middle`).

A forward pass has proven every view that an anatomy has (saekit.harvesting.places).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

_SUFFIX = re.compile(r"(.*):(in|q|k|v|normalized|mid)")
_EPSILON = ("variance_epsilon", "eps", "epsilon", "norm_eps")  # attributes of norms

# takes a state, and returns what replaces it; None: nothing
OnState = Callable[[Any], torch.Tensor | None]


@dataclass(frozen=True)
class Columns:
    """Columns first to stop of every `group` columns of the output, side by side."""

    first: int
    stop: int
    group: int

    def read(self, module: nn.Module, given: torch.Tensor, gave: torch.Tensor) -> torch.Tensor:
        return self._groups(gave)[..., self.first : self.stop].flatten(-2)

    def write(self, module: nn.Module, gave: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        groups = self._groups(gave.clone())
        groups[..., self.first : self.stop] = state.unflatten(-1, (groups.shape[-2], -1))
        return groups.flatten(-2)

    def _groups(self, gave: torch.Tensor) -> torch.Tensor:
        return gave.unflatten(-1, (-1, self.group))


@dataclass(frozen=True)
class Normalized:
    """The input of a norm, normalized and not yet scaled. `centered`: a LayerNorm, else an RMSNorm.
    `offset`: the gain is this plus the weight. Computed in float32 at least, as norms do."""

    centered: bool
    offset: float

    def read(self, module: nn.Module, given: torch.Tensor, gave: torch.Tensor) -> torch.Tensor:
        x = given.to(torch.promote_types(given.dtype, torch.float32))
        if self.centered:
            x = x - x.mean(-1, keepdim=True)
        x = x * (x.square().mean(-1, keepdim=True) + _epsilon(module)).rsqrt()
        return x.to(given.dtype)

    def write(self, module: nn.Module, gave: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        x = state.to(torch.promote_types(state.dtype, torch.float32))
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if weight is not None:
            x = x * (self.offset + weight.to(x.dtype))
        if bias is not None:
            x = x + bias.to(x.dtype)
        return x.to(gave.dtype)


@dataclass(frozen=True)
class Middle:
    """Block input + the output of `attention`, the path of a module in the block."""

    attention: str


View = Columns | Normalized | Middle


def split_hook(hook: str) -> tuple[str, str]:
    """('blocks.9', 'in') of 'blocks.9:in'; the second is '' for a module's output."""
    match = _SUFFIX.fullmatch(hook)
    return (match[1], match[2]) if match else (hook, "")


def stream_input(args: tuple, kwargs: dict[str, Any]) -> Any:
    """The meaning of `:in`: the module's first argument, or its keyword hidden_states."""
    return args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), None))


def stream_output(output: Any) -> Any:
    """The state comes first; attention weights and the like follow it."""
    return output[0] if isinstance(output, tuple | list) and output else output


def attach(
    module: nn.Module, hook: str, view: View | None, on_state: OnState
) -> list[RemovableHandle]:
    """Call `on_state` on every state at a canonical hook. `view`: that of its suffix, if it is one
    of a view."""
    path, suffix = split_hook(hook)
    hooked = module.get_submodule(path)
    if isinstance(view, Middle):
        return _attach_middle(hooked, view, on_state)
    if view is not None:
        return [_attach_view(hooked, view, on_state)]
    if suffix != "in":
        return [
            hooked.register_forward_hook(
                lambda _module, _args, output: _changed_output(
                    output, on_state(stream_output(output))
                )
            )
        ]

    def before(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        state = on_state(stream_input(args, kwargs))
        if state is None:
            return None
        if args:
            return (state, *args[1:]), kwargs
        name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
        return args, kwargs | {name: state}

    return [hooked.register_forward_pre_hook(before, with_kwargs=True)]


def _changed_output(output: Any, state: torch.Tensor | None) -> Any:
    if state is None or not isinstance(output, tuple | list):
        return state
    return type(output)([state, *output[1:]])


def _attach_view(
    hooked: nn.Module, view: Columns | Normalized, on_state: OnState
) -> RemovableHandle:
    def after(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        gave = stream_output(output)
        before = view.read(module, stream_input(args, kwargs), gave)
        state = on_state(before)
        if state is None:
            return None
        return _changed_output(output, _kept(before, state, gave, view.write(module, gave, state)))

    return hooked.register_forward_hook(after, with_kwargs=True)


def _attach_middle(block: nn.Module, view: Middle, on_state: OnState) -> list[RemovableHandle]:
    entering: list[torch.Tensor] = []

    def before(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        entering[:] = [stream_input(args, kwargs)]

    def after(_module: nn.Module, _args: tuple, output: Any) -> Any:
        attention, start = stream_output(output), entering.pop()
        middle = start + attention
        state = on_state(middle)
        if state is None:
            return None
        return _changed_output(output, _kept(middle, state, attention, state - start))

    return [
        block.register_forward_pre_hook(before, with_kwargs=True),
        block.get_submodule(view.attention).register_forward_hook(after),
    ]


def _kept(
    before: torch.Tensor, state: torch.Tensor, gave: torch.Tensor, written: torch.Tensor
) -> torch.Tensor:
    """`written`, with the bits of `gave` for tokens whose state has not changed."""
    return torch.where((before == state).all(-1, keepdim=True), gave, written)


def _epsilon(module: nn.Module) -> float:
    values: list[Any] = [getattr(module, name, None) for name in _EPSILON]
    return next((value for value in values if isinstance(value, float)), 0.0)
