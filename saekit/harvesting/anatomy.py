"""The anatomy of a module, from one tiny forward pass that does not change it.

The config of a transformers model says what input it takes. Nothing is known about any other module
before its owner runs it; then the first pass inside `capture` or `splice` is the proof (see
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

CONTEXTS, TOKENS = 2, 5  # input of the tiny pass: contexts, tokens and width can be distinguished
IMAGE_SIDE = 224  # pixels, for a vision model whose config has no size
# Elements; a larger buffer holds weights (quantized models), which a pass does not write.
SMALL_BUFFER = 1 << 20
_HOOK_TABLES = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
)

_known: WeakKeyDictionary[nn.Module, tuple[tuple, Anatomy]] = WeakKeyDictionary()
_lock = threading.RLock()


def plain(module: nn.Module) -> nn.Module:
    """The module inside torch.compile's wrapper."""
    return getattr(module, "_orig_mod", module)


def anatomy_of(module: nn.Module) -> Anatomy:
    """From the cache, which is valid until a submodule is replaced; else from a tiny pass."""
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
    return tuple((path, type(submodule)) for path, submodule in module.named_modules())


def _probed(module: nn.Module) -> Anatomy:
    tower = tower_path(module)
    root = module.get_submodule(tower)
    try:
        inputs = tiny_inputs(root)
        if inputs is None:
            return _guessed(module, "it does not say what input it takes")
        shape = (
            tuple(inputs["input_ids"].shape)
            if "input_ids" in inputs
            else (len(inputs["pixel_values"]),)
        )
        return _shown_by(module, lambda: root(**inputs), shape)
    except Exception as error:  # a model may raise anything: then its owner's pass is the proof
        return _guessed(
            module,
            f"a small forward pass failed: {type(error).__name__}: {str(error).split(chr(10))[0]}",
        )


def prove(module: nn.Module, forward: Callable[[], Any], shape: tuple[int, ...]) -> None:
    """Learn the anatomy from `forward`, on inputs of `shape` (contexts, tokens) or (images,), if
    the tiny pass was not possible."""
    if not anatomy_of(module).proven:
        keep(module, _shown_by(plain(module), forward, shape))


def _shown_by(module: nn.Module, forward: Callable[[], Any], shape: tuple[int, ...]) -> Anatomy:
    tower = tower_path(module)
    guess = guessed_blocks(module, module.get_submodule(tower))
    anatomy = _traced(module, Trace(module, tower, guess, shape), forward)
    if anatomy.blocks is not None and not anatomy.parts:
        # The guess was wrong: a second pass, for the parts of the actual blocks.
        blocks = anatomy.blocks.removeprefix(f"{tower}.") if tower else anatomy.blocks
        anatomy = _traced(module, Trace(module, tower, blocks, shape), forward)
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
    """Inputs to run `root` on, from its signature and config; None when these do not say."""
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
    size: Any = getattr(config, "image_size", None) or IMAGE_SIDE
    if isinstance(size, dict):
        size = size.get("height"), size.get("width")
    height, width = (size, size) if isinstance(size, int) else size
    pixels = torch.rand(1, getattr(config, "num_channels", 3), height, width, generator=generator)
    dtype = weight.dtype if weight.is_floating_point() else torch.float32
    return {"pixel_values": pixels.to(weight.device, dtype)}


def vocabulary(root: nn.Module) -> int:
    """The number of tokens in the embedding: the config may say more."""
    model: Any = root
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    rows = getattr(getattr(embedding, "weight", None), "shape", (None,))[0]
    return rows or getattr(model.config, "vocab_size", None) or 2


# -- a pass that changes nothing -------------------------------------------------------------------


@contextmanager
def untouched(module: nn.Module, hooks: bool = True) -> Iterator[None]:
    """Passes inside run in eval mode, without gradients and uncompiled, and change nothing: modes,
    random state, buffers, submodules and plain attributes are restored, and with `hooks` the
    module's own hooks are not called."""
    # Record the state.
    devices = sorted(
        {
            parameter.device.index or 0
            for parameter in module.parameters()
            if parameter.device.type == "cuda"
        }
    )
    modes = {part: part.training for part in module.modules()}
    state = [(part, dict(part._modules), _plain_attributes(part)) for part in modes]
    buffers = [
        (part, name, buffer, buffer.detach().clone() if buffer.numel() <= SMALL_BUFFER else None)
        for part in modes
        for name, buffer in part._buffers.items()
        if buffer is not None
    ]
    with torch.random.fork_rng(devices), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        tables = _hooks_taken(module) if hooks else []
        for part in modes:
            part.training = False
        try:
            yield
        finally:
            # Restore it.
            for part, modules, attributes in state:
                # BigBird switches to another attention for good when an input is short
                if part._modules != modules:
                    part._modules.clear()
                    part._modules.update(modules)
                vars(part).update(attributes)
            for part, training in modes.items():
                part.training = training
            for part, name, table in tables:
                # hooks that the model has registered on itself in the meantime
                table.update(getattr(part, name))
                setattr(part, name, table)
            for part, name, buffer, before in buffers:
                part._buffers[name] = buffer
                if before is not None and not torch.equal(buffer, before):
                    buffer.copy_(before)


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    """Without the attributes in which transformers records hooks that it has put on a model."""
    values = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str | None)
    }
    return {name: value for name, value in values.items() if "hooks" not in name}


def _hooks_taken(module: nn.Module) -> list[tuple[nn.Module, str, OrderedDict]]:
    tables = []
    for part in module.modules():
        for name in _HOOK_TABLES:
            table = getattr(part, name, None)
            if table is not None:
                tables.append((part, name, table))
                setattr(part, name, OrderedDict())
    return tables
