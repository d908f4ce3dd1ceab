"""Reading the hidden states at a model's hooks.

`saekit.harvesting.hook_names` explains the names of hooks; its functions are also exported here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from saekit.errors import DataError, opt
from saekit.harvesting.anatomy import anatomy_of, keep, plain
from saekit.harvesting.blocks import tower_path
from saekit.harvesting.hook_names import (
    HookRow,
    block_count,
    block_hint,
    block_list,
    is_alias,
    list_hooks,
    model_name,
    resolve_hook,
    stream_hooks,
)
from saekit.harvesting.parts import has_module
from saekit.harvesting.trace import Trace
from saekit.harvesting.uncompiled import uncompiled
from saekit.harvesting.views import attach, split_hook

__all__ = [
    "HookRow",
    "block_count",
    "block_hint",
    "block_list",
    "capture",
    "check_runs_once",
    "is_alias",
    "list_hooks",
    "model_name",
    "proof",
    "resolve_hook",
    "stream_hooks",
]


class _Stop(BaseException):
    """Ends a forward pass whose hooks have all fired. Not an Exception: models that retry on errors
    must not catch it."""


@contextmanager
def capture(
    model: Any, hooks: Sequence[str] | str, stop: bool = False
) -> Iterator[dict[str, torch.Tensor]]:
    """Hidden states of the last forward pass run inside: a mapping from each name in `hooks`, as
    given, to a tensor (B,T,D).

    model: any transformers module, or a LiveModel; also your own module, whose first pass inside
        proves the aliases.
    hooks: one or several. `blocks.9` is the residual stream after block 9, counted from 0; also
        `blocks.9.mlp`, `blocks.9.attn`, `blocks.9.attn.q|k|v|z`, `:in` for an input, a module path
        such as `model.layers.9`, or TransformerLens' name (`blocks.9.hook_resid_mid`).
    stop: True ends the pass, and with it the `with` body, as soon as every hook has fired, so that
        nothing after the last hooked block is run: make the forward call the last statement of the
        body.

    Tensors are on the model's device and in its dtype. They are copies, so that later in-place
    writes of the model do not change them; with gradients they are the model's own tensors,
    attached to the graph. For a module that returns a tuple, its first entry is captured.

        model = AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M")
        with torch.inference_mode(), saekit.capture(model, ["blocks.9"], stop=True) as states:
            model(**inputs)
        x_BTD = states["blocks.9"]

    Raises DataError for an unknown hook or an alias that does not hold on this model, for an output
    that is not a tensor (B,T,D), for a module that runs several times in one pass, and with
    stop=True when a hook never fired.
    """
    module = model if isinstance(model, nn.Module) else model.module
    names = [hooks] if isinstance(hooks, str) else list(hooks)
    paths = {name: resolve_hook(module, name) for name in names}
    for path in paths.values():
        check_runs_once(module, path)
    anatomy = anatomy_of(module)
    # torch.compile traces the hooks, so they must not reference the module.
    written_later, hint = anatomy.written_later, block_hint(module)
    states: dict[str, torch.Tensor] = {}
    ended = _Stop()

    with ExitStack() as stack:
        stack.enter_context(uncompiled())
        finished = (lambda: _raise(ended)) if stop else (lambda: None)
        proving = stack.enter_context(proof(module, paths, finished))
        passes = stack.enter_context(_passes(module, states.clear))

        def store(name: str, value: Any) -> None:
            if passes.inside and name in states:
                raise _repeated(paths[name], hint)
            states[name] = _hidden_state(
                value, paths[name], hint, copy=split_hook(paths[name])[0] in written_later
            )
            if proving.pending:
                proving.read.add(paths[name])
            if stop and not proving.pending and len(states) == len(paths):
                raise ended

        for name, path in paths.items():
            for handle in attach(module, path, anatomy.views.get(path), partial(store, name)):
                stack.callback(handle.remove)
        try:
            yield states
        except _Stop as raised:
            if raised is not ended:
                raise
    if stop and (silent := [name for name in names if name not in states]):
        raise DataError(f"{', '.join(silent)} did not run in this forward pass", hint)


def check_runs_once(module: nn.Module, path: str) -> None:
    """Raise DataError when the tiny pass ran the module of a canonical path several times, so that
    its states are ambiguous."""
    anatomy = anatomy_of(module)
    runs = anatomy.runs[split_hook(path)[0]]
    if runs > 1:
        raise _repeated(path, block_hint(module), f"{runs} times")


def _repeated(path: str, hint: str, times: str = "more than once") -> DataError:
    return DataError(f"{path} runs {times} in one forward pass, so its states are ambiguous", hint)


def _raise(error: BaseException) -> None:
    raise error


class _Passes:
    """`inside` > 0: a forward pass of the whole model is running."""

    inside = 0


@contextmanager
def _passes(module: nn.Module, begin: Callable[[], None]) -> Iterator[_Passes]:
    """`begin` is called when a pass starts, by a call of the model, the bare model or the tower."""
    passes = _Passes()

    def enter(*_: Any) -> None:
        if not passes.inside:
            begin()
        passes.inside += 1

    def leave(*_: Any) -> None:
        passes.inside -= 1

    roots = [module]
    if plain(module) is module:
        base = getattr(module, "base_model_prefix", "") or ""
        for path in (tower_path(module), base):
            if path and has_module(module, path) and module.get_submodule(path) not in roots:
                roots.append(module.get_submodule(path))
    handles = []
    try:
        for root in roots:
            handles.append(root.register_forward_pre_hook(enter))
            handles.append(root.register_forward_hook(leave, always_call=True))
        yield passes
    finally:
        for handle in handles:
            handle.remove()


# -- proof by the owner's pass ---------------------------------------------------------------------


class _Proving:
    """`pending`: the pass that is running has yet to prove the aliases."""

    def __init__(self, pending: bool) -> None:
        self.pending = pending
        self.read: set[str] = set()  # canonical paths


@contextmanager
def proof(
    module: nn.Module, paths: dict[str, str], finished: Callable[[], None] = lambda: None
) -> Iterator[_Proving]:
    """If the module could not be run before, the first pass inside proves the aliases in `paths`
    (name -> canonical path).

    Raises DataError at the end of that pass for an alias that does not hold; else calls `finished`.
    """
    module = plain(module)
    anatomy = anatomy_of(module)
    aliases = {name: path for name, path in paths.items() if is_alias(module, name)}
    proving = _Proving(pending=not anatomy.proven and bool(aliases))
    if not proving.pending:
        yield proving
        return
    # Watch the pass.
    tower, blocks = anatomy.tower, anatomy.blocks
    trace = Trace(module, tower, blocks.removeprefix(f"{tower}.") if blocks and tower else blocks)
    handles: list[Any] = []

    def leave(*_: Any) -> None:
        """At its end, compare the aliases with what it showed."""
        for handle in handles:
            handle.remove()
        shown = trace.anatomy()
        # The guess was wrong: the next pass shows the parts of the actual blocks.
        if shown.blocks and shown.blocks != anatomy.blocks:
            shown.proven = False
        keep(module, shown)
        proving.pending = False
        for name, path in aliases.items():
            shown_path = resolve_hook(module, name)
            if shown_path != path:
                raise DataError(
                    f"{name} is {shown_path}, as the first pass showed, not {path}",
                    "run it again; the module is known now",
                )
            check_runs_once(module, path)
        finished()

    try:
        handles += [*trace.attach(), module.get_submodule(tower).register_forward_hook(leave)]
        yield proving
    finally:
        for handle in handles:
            handle.remove()
    if proving.pending and (
        unproven := [path for path in aliases.values() if path in proving.read]
    ):
        raise DataError(
            f"{', '.join(aliases)} could not be proven: the model itself was not run from beginning"
            " to end",
            f"{opt('hook', unproven[0])} takes that module's output as it is",
        )


def _hidden_state(value: Any, path: str, hint: str, copy: bool) -> torch.Tensor:
    """`copy`: also when the tensor requires a gradient, which flows through the copy."""
    if isinstance(value, torch.Tensor) and value.ndim == 3 and value.is_floating_point():
        return value.clone() if copy or not value.requires_grad else value
    kind = (
        f"a tensor {tuple(value.shape)} of {value.dtype}"
        if isinstance(value, torch.Tensor)
        else type(value).__name__
    )
    raise DataError(f"{path} gives {kind}, not hidden states of shape (batch, tokens, width)", hint)
