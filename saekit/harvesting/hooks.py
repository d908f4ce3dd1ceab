"""Where in a model hidden states are read, and reading them.

A hook is named in one of two ways, both with an optional `:in` for the module's input instead of its output:

- an alias, the same on every model: `blocks.9` (the residual stream after block 9, counted from 0), `blocks.9.attn` and
  `blocks.9.mlp` (what attention and MLP add to it, before the residual sum);
- a module path of the loaded model (`model.layers.9.mlp.down_proj`).

`resolve_hook` turns either into the canonical module path, which is what a store keeps. Blocks are found by structure: the list
of equal modules whose length is the model's number of layers. `attn` and `mlp` come from the table below. Three facts of it:

- BERT and kin add the residual and normalise inside `attention` and `output`; the aliases mean the dense layers before that.
- Some modules (Bloom) take the residual as an argument and return the sum; the aliases mean their last linear layer.
- DINOv2 and v3 scale what attention and MLP return before adding it; the aliases mean the unscaled outputs.

In a model with an image and a text tower (CLIP, SigLIP) `blocks` are those of the image tower; the other has its module paths.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from saekit.errors import DataError, did_you_mean

INPUT_SUFFIX = ":in"

# Candidates in order; the first that a block has wins. Paths are relative to the block.
_PARTS: dict[str, tuple[str, ...]] = {
    "attn": (
        "attention.output.dense",  # BERT, RoBERTa, ELECTRA: pre-residual output
        "self_attn", "attn", "self_attention", "attention", "layer.0.SelfAttention", "self_attn_layer",
    ),
    "mlp": ("mlp", "ffn", "feed_forward", "block_sparse_moe", "layer.1.DenseReluDense", "output.dense", "fc2"),
}  # fmt: skip
_LAST_LINEAR = ("dense", "dense_4h_to_h", "out_proj", "o_proj", "down_proj", "c_proj")


class HookRow(NamedTuple):
    alias: str
    path: str


def split_input(hook: str) -> tuple[str, bool]:
    """('blocks.9', True) of 'blocks.9:in'."""
    return hook.removesuffix(INPUT_SUFFIX), hook.endswith(INPUT_SUFFIX)


# --- structure ------------------------------------------------------------------------------------------------------------------


def tower_path(module: nn.Module) -> str:
    """The part of `module` whose blocks `blocks.N` means: the image tower of a dual model, the encoder of an
    encoder-decoder, else '' (the whole)."""
    children = dict(module.named_children())
    if "vision_model" in children and "text_model" in children:
        return "vision_model"
    if "encoder" in children and "decoder" in children:
        return "encoder"
    for name in ("language_model", "model.language_model"):  # a language model that also sees
        if _has(module, name):
            return name
    return ""


def block_list(module: nn.Module) -> str | None:
    """Path of the list of blocks, None when the module has none.

    It is the outermost list of modules of one class whose length is the config's num_hidden_layers; without such a config, or
    without a match (a truncated model), the longest one. A list of a single block is enough when the config says one.
    """
    tower = tower_path(module)
    root = module.get_submodule(tower)
    lists = [(name, list(each)) for name, each in root.named_modules() if isinstance(each, nn.ModuleList | nn.Sequential)]
    lists = [(name, each) for name, each in lists if each and len({type(block) for block in each}) == 1 and _deep(each[0])]
    expected = _layers_in_config(module, root)
    matching = [entry for entry in lists if len(entry[1]) == expected]
    if not matching:
        longest = max((len(blocks) for _, blocks in lists), default=0)
        matching = [entry for entry in lists if len(entry[1]) == longest]
    if not matching:
        return None
    path = min(matching, key=lambda entry: entry[0].count("."))[0]
    return ".".join(part for part in (tower, path) if part)


def block_count(module: nn.Module) -> int:
    path = block_list(module)
    return len(list(module.get_submodule(path).children())) if path else 0


def part_path(block: nn.Module, part: str) -> str | None:
    """Path inside `block` of its 'attn' or 'mlp' output before the residual sum; None when it has none."""
    for path in _PARTS[part]:
        if not _has(block, path):
            continue
        found = block.get_submodule(path)
        if "residual" not in inspect.signature(found.forward).parameters:
            return path
        last = next((name for name in _LAST_LINEAR if _has(found, name)), None)
        if last:
            return f"{path}.{last}"
    return None


def _deep(module: nn.Module) -> bool:
    """A block has parts; a plain Linear or Dropout in a list is none."""
    return next(module.children(), None) is not None


def _layers_in_config(module: nn.Module, tower: nn.Module) -> int | None:
    for owner in (tower, module):
        config = getattr(owner, "config", None)
        for nested in (getattr(config, "text_config", None) if owner is module else None, config):
            layers = getattr(nested, "num_hidden_layers", None) or getattr(nested, "num_layers", None)
            if isinstance(layers, int):
                return layers
    return None


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


# --- names ----------------------------------------------------------------------------------------------------------------------


def resolve_hook(module: nn.Module, hook: str, name: str | None = None) -> str:
    """The canonical path of `hook` ('model.layers.9', with ':in' where asked). `name` is the model's name in messages.

    Paths of the bare model (`h.9`, as AutoModel has them) are understood on the model with a head (`transformer.h.9`), and the
    other way round. Raises DataError, with the range of blocks, when there is no such module.
    """
    path, at_input = split_input(hook)
    found = _alias_path(module, path) if re.match(r"blocks\.\d+(\.|$)", path) and not _has(module, path) else None
    found = found or next((each for each in _spellings(module, path) if each and _has(module, each)), None)
    if found is None:
        raise _unknown(module, path, name or model_name(module))
    return found + INPUT_SUFFIX * at_input


def list_hooks(module: nn.Module) -> list[HookRow]:
    """Every alias with its canonical path, block by block (:in may follow any of them)."""
    rows = []
    for index in range(block_count(module)):
        for alias in (f"blocks.{index}", f"blocks.{index}.attn", f"blocks.{index}.mlp"):
            if path := _alias_path(module, alias):
                rows.append(HookRow(alias, path))
    return rows


def model_name(module: nn.Module) -> str:
    return getattr(module, "name_or_path", "") or type(module).__name__


def _alias_path(module: nn.Module, alias: str) -> str | None:
    """'blocks.N[.attn|.mlp|.path inside the block]' -> module path, None when there is none."""
    _, index, *rest = alias.split(".")
    blocks = block_list(module)
    if blocks is None or int(index) >= block_count(module):
        return None
    block_path = f"{blocks}.{int(index)}"
    if not rest:
        return block_path
    inside = ".".join(rest)
    if inside in _PARTS:
        inside = part_path(module.get_submodule(block_path), inside)
    return f"{block_path}.{inside}" if inside and _has(module, f"{block_path}.{inside}") else None


def _spellings(module: nn.Module, path: str) -> tuple[str, ...]:
    prefix = getattr(module, "base_model_prefix", "")
    return (path, f"{prefix}.{path}", path.removeprefix(f"{prefix}.")) if prefix else (path,)


def _unknown(module: nn.Module, path: str, name: str) -> DataError:
    listing = f"saekit harvest {name} --list-hooks"
    blocks, count = block_list(module), block_count(module)
    if blocks is None:
        near = did_you_mean(path, [each for each, _ in module.named_modules() if each])
        return DataError(f"{path} is not a module of {name} ({type(module).__name__}, no list of blocks found)", near + listing)
    match = re.match(r"(.+)\.(\d+)(\.|$)", path)
    stem = match[1] if match and _is_block_stem(module, match[1], blocks) else "blocks"
    span = f"{count} blocks, {stem}.0 to {stem}.{count - 1}"
    wanted = min(int(match[2]), count - 1) if match else count - 1
    return DataError(f"{path} is not a module of {name} ({span})", f"--hook {stem}.{wanted}, or {listing}")


def _is_block_stem(module: nn.Module, stem: str, blocks: str) -> bool:
    return blocks in _spellings(module, stem)


# --- reading --------------------------------------------------------------------------------------------------------------------


class _Stop(BaseException):
    """Ends a forward pass whose hooks have all fired. Not an Exception: models that retry on errors must not catch it."""


@contextmanager
def capture(model: Any, hooks: Sequence[str] | str, stop: bool = False) -> Iterator[dict[str, torch.Tensor]]:
    """Hidden states of the last forward pass run inside: a mapping from each name in `hooks`, as given, to a tensor (B,T,D).

    `model` is a module or a LiveModel. Tensors are the model's own (on its device, in its dtype, attached to the graph if
    there is one); a module that returns a tuple gives its first entry; a module called twice in one pass gives its last call.

    stop=True ends the pass, and with it the `with` body, as soon as every hook has fired, so that nothing past the last hooked
    block is run: make the forward call the last statement of the body.

        with torch.inference_mode(), capture(model, ["blocks.9"], stop=True) as states:
            model(**inputs)
        x_BTD = states["blocks.9"]

    Raises DataError for an unknown hook, for an output that is no tensor (B,T,D), and with stop=True when a hook never fired.
    """
    module = model if isinstance(model, nn.Module) else model.module
    names = [hooks] if isinstance(hooks, str) else list(hooks)
    wanted = {name: resolve_hook(module, name) for name in names}
    states: dict[str, torch.Tensor] = {}
    ended = _Stop()

    def store(name: str, value: Any) -> None:
        states[name] = _hidden_state(value, wanted[name])
        if stop and len(states) == len(wanted):
            raise ended

    handles = [module.register_forward_pre_hook(lambda *_: states.clear())]
    try:
        handles += [_attach(module, path, name, store) for name, path in wanted.items()]
        try:
            yield states
        except _Stop as raised:
            if raised is not ended:
                raise
    finally:
        for handle in handles:
            handle.remove()
    if stop and (silent := [name for name in names if name not in states]):
        raise DataError(
            f"{', '.join(silent)} did not run in this forward pass",
            "choose a module that every input passes through, such as a block (blocks.N)",
        )


def _attach(module: nn.Module, path: str, name: str, store: Any) -> torch.utils.hooks.RemovableHandle:
    target, at_input = split_input(path)
    hooked = module.get_submodule(target)
    if not at_input:
        return hooked.register_forward_hook(lambda _module, _args, output: store(name, output))

    def before(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        store(name, args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), None)))

    return hooked.register_forward_pre_hook(before, with_kwargs=True)


def _hidden_state(value: Any, path: str) -> torch.Tensor:
    if isinstance(value, tuple | list) and value:
        value = value[0]
    if isinstance(value, torch.Tensor) and value.ndim == 3 and value.is_floating_point():
        return value
    what = f"a tensor {tuple(value.shape)} of {value.dtype}" if isinstance(value, torch.Tensor) else type(value).__name__
    raise DataError(
        f"{path} gives {what}, not hidden states of shape (batch, tokens, width)",
        "hook a block (blocks.N), or a module whose output has one vector a token",
    )
