"""The anatomy of a module, from one tiny forward pass that leaves no trace in it.

A transformers model says in its config what it takes; of any other module nothing is known before
its owner runs it, and then the first pass inside `capture` or `splice` is the proof (see
`saekit.harvesting.hooks`).
"""

from __future__ import annotations

import inspect
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from saekit.embedded.silence import quiet_transformers
from saekit.harvesting.blocks import Anatomy, guessed_blocks, tower_path
from saekit.harvesting.trace import Trace

CONTEXTS, TOKENS = 2, 5  # of the tiny pass: enough to tell contexts, tokens and width apart
IMAGE_SIDE = 224  # pixels, for a vision model that names no size
# numbers; a larger buffer holds weights (quantized models), which a pass does not write
SMALL_BUFFER = 1 << 20
_HOOK_TABLES = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs",
"_forward_hooks_always_called",
                "_forward_pre_hooks_with_kwargs")  # fmt: skip

_known: WeakKeyDictionary[nn.Module, tuple[tuple, Anatomy]] = WeakKeyDictionary()
_lock = threading.RLock()


def plain(module: nn.Module) -> nn.Module:
    """The module behind torch.compile's wrapper."""
    return getattr(module, "_orig_mod", module)


def anatomy_of(module: nn.Module) -> Anatomy:
    """From the cache, which holds for as long as no submodule is replaced; else from a tiny
    pass."""
    module = plain(module)
    with _lock:
        before, anatomy = _known.get(module, (None, None))
        if anatomy is None or before != structure(module):
            anatomy = _probed(module)
            keep(module, anatomy)
        return anatomy


def keep(module: nn.Module, anatomy: Anatomy) -> None:
    with _lock:
        _known[plain(module)] = structure(plain(module)), anatomy


def structure(module: nn.Module) -> tuple:
    return tuple((path, type(each)) for path, each in module.named_modules())


def _probed(module: nn.Module) -> Anatomy:
    tower = tower_path(module)
    root = module.get_submodule(tower)
    try:
        inputs = tiny_inputs(root)
        if inputs is None:
            return _guessed(module, "it does not say what it takes as input")
        shape = (
            tuple(inputs["input_ids"].shape)
            if "input_ids" in inputs
            else (len(inputs["pixel_values"]),)
        )
        return _shown_by(module, lambda: root(**inputs), shape)
    except Exception as error:  # whatever a model raises: its owner's own pass is then the proof
        return _guessed(
            module,
            f"a small forward pass failed: {type(error).__name__}: {str(error).split(chr(10))[0]}",
        )


def prove(module: nn.Module, forward: Callable[[], Any], shape: tuple[int, ...]) -> None:
    """By `forward`, on inputs of `shape` (contexts, tokens) or (images,), where the module could
    not be run without knowing more of it."""
    if not anatomy_of(module).proven:
        keep(module, _shown_by(plain(module), forward, shape))


def _shown_by(module: nn.Module, forward: Callable[[], Any], shape: tuple[int, ...]) -> Anatomy:
    tower = tower_path(module)
    blocks = guessed_blocks(module, module.get_submodule(tower))
    for _ in range(2):  # a second time where the guess was wrong, for the parts
        anatomy = _traced(module, Trace(module, tower, blocks, shape), forward)
        if anatomy.blocks is None or anatomy.parts:
            break
        blocks = anatomy.blocks.removeprefix(f"{tower}.") if tower else anatomy.blocks
    return anatomy


def _guessed(module: nn.Module, why: str) -> Anatomy:
    tower = tower_path(module)
    root = module.get_submodule(tower)
    guess = guessed_blocks(module, root)
    if guess is None:
        return Anatomy(tower, why="no list of blocks found")
    whole = ".".join(part for part in (tower, guess) if part)
    return Anatomy(
        tower, blocks=whole, count=len(list(root.get_submodule(guess).children())), why=why
    )


def _traced(module: nn.Module, trace: Trace, forward: Callable[[], Any]) -> Anatomy:
    with untouched(module), quiet_transformers():
        handles = trace.attach()
        try:
            forward()
            return trace.anatomy()
        finally:
            for handle in handles:
                handle.remove()


def tiny_inputs(root: nn.Module) -> dict[str, Any] | None:
    """Something to run `root` on, from its signature and config; None where they do not say."""
    takes = inspect.signature(root.forward).parameters
    config, weight = getattr(root, "config", None), next(root.parameters(), None)
    if config is None or weight is None:
        return None
    generator = torch.Generator().manual_seed(0)
    if "input_ids" in takes:
        ids = torch.randint(0, vocabulary(root), (CONTEXTS, TOKENS), generator=generator)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        inputs = {name: value.to(weight.device) for name, value in inputs.items() if name in takes}
        return inputs | ({"use_cache": False} if "use_cache" in takes else {})
    if "pixel_values" not in takes:
        return None
    size = getattr(config, "image_size", None) or IMAGE_SIDE
    if isinstance(size, dict):
        size = size.get("height"), size.get("width")
    height, width = (size, size) if isinstance(size, int) else size
    pixels = torch.rand(1, getattr(config, "num_channels", 3), height, width, generator=generator)
    dtype = weight.dtype if weight.is_floating_point() else torch.float32
    return {"pixel_values": pixels.to(weight.device, dtype)}


def vocabulary(root: nn.Module) -> int:
    """Tokens that the embedding knows: the config may say more."""
    embedding = root.get_input_embeddings() if hasattr(root, "get_input_embeddings") else None
    rows = getattr(getattr(embedding, "weight", None), "shape", (None,))[0]
    return rows or getattr(root.config, "vocab_size", None) or 2


# --- a pass that changes nothing
# ------------------------------------------------------------------------------------------------


@contextmanager
def untouched(module: nn.Module, hooks: bool = True) -> Iterator[None]:
    """Passes inside run in eval mode, without gradients and uncompiled, and leave nothing behind:
    modes, random state, buffers, submodules and plain attributes are put back, and with `hooks` the
    module's own hooks are not called."""
    devices = sorted(
        {
            parameter.device.index or 0
            for parameter in module.parameters()
            if parameter.device.type == "cuda"
        }
    )
    modes = {each: each.training for each in module.modules()}
    state = [(each, dict(each._modules), _plain_attributes(each)) for each in modes]
    buffers = [(each, name, buffer,
    buffer.detach().clone() if buffer.numel() <= SMALL_BUFFER else None)
               for each in modes for name,
               buffer in each._buffers.items() if buffer is not None]  # fmt: skip
    with torch.random.fork_rng(devices), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        tables = _hooks_taken(module) if hooks else []
        for each in modes:
            each.training = False
        try:
            yield
        finally:
            for each, modules, attributes in state:
                # BigBird takes another attention where an input is short, for good
                if each._modules != modules:
                    each._modules.clear()
                    each._modules.update(modules)
                vars(each).update(attributes)
            for each, training in modes.items():
                each.training = training
            for each, name, table in tables:
                # hooks that the model has put on itself meanwhile
                table.update(getattr(each, name))
                setattr(each, name, table)
            for each, name, buffer, before in buffers:
                each._buffers[name] = buffer
                if before is not None and not torch.equal(buffer, before):
                    buffer.copy_(before)


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    """But not what transformers notes down about hooks that it has put on a model."""
    values = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str | None)
    }
    return {name: value for name, value in values.items() if "hooks" not in name}


def _hooks_taken(module: nn.Module) -> list[tuple[nn.Module, str, OrderedDict]]:
    tables = []
    for each in module.modules():
        for name in _HOOK_TABLES:
            table = getattr(each, name, None)
            if table is not None:
                tables.append((each, name, table))
                setattr(each, name, OrderedDict())
    return tables
