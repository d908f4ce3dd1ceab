"""The names of hooks: where in a model hidden states are read.

A hook has one of these names, the first two with an optional `:in` for the module's input instead
of its output:

- an alias, the same on every model: `blocks.9` (the residual stream after block 9, counted from 0),
  `blocks.9.attn` and `blocks.9.mlp` (what attention and MLP add to it, before the residual sum;
  with `:in`, their input), `blocks.9.attn.q|k|v|z` (queries, keys, values; the input of the output
  projection);
- a module path of the loaded model (`model.layers.9.mlp.down_proj`);
- a name of TransformerLens, dictionary_learning or nnsight (saekit.interop.hook_spellings).

`resolve_hook` turns any of them into the canonical hook, which a store records: a module path,
`:in`, or a view of a module (saekit.harvesting.views). Aliases do not rely on module names: a tiny
forward pass proves that every block takes the output of the previous one, and that block input +
attn + mlp = block output (`saekit.harvesting.trace`, `saekit.harvesting.parts`); the states inside
are from the same pass (`saekit.harvesting.places`). An alias that cannot be proven is refused, with
the reason and a hook to use instead. We cannot run a module that does not say what input it takes:
then the first pass inside `capture` is the proof (`saekit.harvesting.hooks`).

In a model with an image and a text tower (CLIP, SigLIP) `blocks` are those of the image tower; the
text tower can be read by module paths.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from saekit.errors import DataError, did_you_mean, opt
from saekit.harvesting.anatomy import anatomy_of, plain
from saekit.harvesting.blocks import Anatomy
from saekit.harvesting.parts import NAMES, Part, guessed_part, has_module, inside
from saekit.harvesting.places import AMBIGUOUS
from saekit.harvesting.views import split_hook
from saekit.interop.hook_spellings import (
    LISTED,
    PLACES,
    POST,
    TRANSFORMER_LENS,
    lens_names,
    translated,
    without_call,
)

_ALIAS = re.compile(r"blocks\.(\d+)(?:\.(.+))?$")
_STREAM = re.compile(r"blocks\.\d+(?:\.(?:attn|mlp|hook_resid_mid))?")


class HookRow(NamedTuple):
    alias: str
    path: str
    transformer_lens: str
    """Its name there; '' where it has none."""


def block_list(module: nn.Module) -> str | None:
    """Path of the list of blocks, None when the module has none."""
    return anatomy_of(module).blocks


def block_count(module: nn.Module) -> int:
    return anatomy_of(module).count


def resolve_hook(module: nn.Module, hook: str, name: str | None = None) -> str:
    """The canonical hook of `hook`: 'model.layers.9', 'model.layers.9:in', or a view such as
    'transformer.h.9.attn.c_attn:q'. `name` is the model's name in messages.

    Paths of the bare model (`h.9`, as in AutoModel) are understood on the model with a head
    (`transformer.h.9`), and vice versa. Raises DataError, with the range of blocks, when there is
    no such module, and with the reason when an alias does not hold on this model.
    """
    module = plain(module)
    name = name or model_name(module)
    path, suffix = split_hook(translated(hook))
    if is_alias(module, path):
        canonical = _alias_path(module, path, name, suffix)
    else:
        canonical = _module_path(module, path)
        if canonical is None and without_call(path)[0] != path:
            path, at_input = without_call(path)
            return resolve_hook(module, f"{path}:in" if at_input else path, name)
        canonical = canonical and f"{canonical}:{suffix}".removesuffix(":")
    if canonical is None:
        raise _unknown(module, path, name)
    if split_hook(canonical)[1] not in ("", "in") and canonical not in anatomy_of(module).views:
        raise DataError(
            f"{hook} is not a state that a forward pass of {name} has shown",
            f"saekit harvest {name} --list-hooks",
        )
    return canonical


def is_alias(module: nn.Module, hook: str) -> bool:
    """blocks.N..., in our words or TransformerLens', unless it is the name of a module of the
    model. In a model whose list of blocks is called `blocks`, .attn and .mlp are still aliases:
    they mean what is added, which need not be the output of a module of that name."""
    path, _ = split_hook(translated(hook))
    match = _ALIAS.match(path)
    if not match:
        return False
    return not has_module(module, path) or (
        match[2] in NAMES and anatomy_of(module).blocks == "blocks"
    )


def list_hooks(module: nn.Module) -> list[HookRow]:
    """Every alias that a forward pass has proven, with its canonical path, block by block (:in may
    follow any of them).

    Raises DataError, with the reason, for a model that has none.
    """
    module = plain(module)
    anatomy = anatomy_of(module)
    rows = []
    for index in anatomy.good_blocks() if anatomy.proven else ():
        block, hooks = f"blocks.{index}", dict(_proven(anatomy, index))
        for ending, path in hooks.items():
            theirs = f"{block}.{TRANSFORMER_LENS.get(ending, ending.removeprefix('.'))}"
            if not ending and "post_norm" in anatomy.places.get(index, {}):
                theirs = ""
            rows.append(HookRow(f"{block}{ending}", path, theirs))
    if not rows:
        why = anatomy.why or "none of its blocks takes the output of the previous one"
        raise DataError(f"{model_name(module)} has no hooks to list: {why}", _another(anatomy))
    return rows


def _proven(anatomy: Anatomy, index: int) -> Iterator[tuple[str, str]]:
    """What follows blocks.N in an alias -> the canonical hook, for all that one block has."""
    block, parts, places = (
        anatomy.block_path(index),
        anatomy.parts.get(index, {}),
        anatomy.places.get(index, {}),
    )
    yield "", block
    for name in NAMES:
        if (part := parts.get(name)) and part.path:
            yield f".{name}", f"{block}.{part.path}"
    for name in LISTED:
        if (place := places.get(PLACES[name])) and place.path:
            yield f".{name}", inside(block, place.path)


def stream_hooks(module: nn.Module) -> set[str]:
    """The canonical hooks of the residual stream and of what is added to it."""
    return {row.path for row in list_hooks(module) if _STREAM.fullmatch(row.alias)}


def names_of(module: nn.Module, hook: str) -> list[str]:
    """Every alias, ours and TransformerLens', of a canonical hook of a proven anatomy."""
    anatomy = anatomy_of(module)
    names = []
    for index in anatomy.good_blocks() if anatomy.proven else ():
        block, parts = anatomy.block_path(index), anatomy.parts.get(index, {})
        hooks = {"": block, ":in": f"{block}:in"}
        for name, part in parts.items():
            if part.path:
                hooks |= {
                    f".{name}": f"{block}.{part.path}",
                    f".{name}:in": f"{block}.{part.reads}:in",
                }
        for name, place in PLACES.items():
            if (part := anatomy.places.get(index, {}).get(place)) and part.path:
                hooks[f".{name}"] = inside(block, part.path)
        names += [f"blocks.{index}{ending}" for ending, path in hooks.items() if path == hook]
    return names


def model_name(module: nn.Module) -> str:
    return getattr(module, "name_or_path", "") or type(module).__name__


def _alias_path(module: nn.Module, alias: str, name: str, suffix: str) -> str | None:
    """'blocks.N[.attn|.mlp|.another name|.path inside the block]' -> canonical hook, None when
    there is none. Raises DataError for an alias that does not hold."""
    match = _ALIAS.match(alias)
    assert match is not None
    index, path = int(match[1]), match[2]
    anatomy = anatomy_of(module)
    if anatomy.blocks is None:
        raise DataError(
            f"{alias} is not a module of {name} ({type(module).__name__}: {anatomy.why})",
            _another(anatomy),
        )
    if index >= anatomy.count:
        return None
    block = anatomy.block_path(index)
    # The block itself.
    if path == POST:
        _check_post(module, alias, index, name)
    if path in (None, POST):
        if index in anatomy.bad_blocks and suffix != "in":
            raise DataError(
                f"{alias} is not the residual stream of {name}: {anatomy.bad_blocks[index]}",
                f"{opt('hook', block)} takes that module's output as it is",
            )
        return f"{block}:{suffix}".removesuffix(":")
    # What attention or MLP add, or another name.
    if path in NAMES:
        return _part_path(module, alias, index, name, suffix)
    if path in PLACES:
        return _place_path(module, alias, index, name, suffix)
    if path.rpartition(".")[2].startswith("hook_"):
        raise DataError(
            f"{alias} is not a hook that saekit knows",
            f"{did_you_mean(path, lens_names())}saekit harvest {name} --list-hooks lists them",
        )
    # A module inside it.
    canonical = f"{block}.{path}:{suffix}".removesuffix(":")
    return canonical if has_module(module.get_submodule(block), path) else None


def _part_path(module: nn.Module, alias: str, index: int, name: str, suffix: str) -> str | None:
    anatomy = anatomy_of(module)
    block, kind = anatomy.block_path(index), alias.rpartition(".")[2]
    if not anatomy.proven:
        guess = guessed_part(module.get_submodule(block), kind)
        return f"{block}.{guess}:{suffix}".removesuffix(":") if guess else None
    part = anatomy.parts.get(index, {}).get(kind)
    if part is None:
        reason = (
            f"block {index} ({type(module.get_submodule(block)).__name__}) has no module of that"
            " name that adds to the residual stream"
        )
        part = Part(None, reason=reason)
    if part.path is None:
        raise _refused(module, alias, index, part, name)
    return f"{block}.{part.reads}:in" if suffix == "in" else f"{block}.{part.path}"


def _place_path(module: nn.Module, alias: str, index: int, name: str, suffix: str) -> str:
    anatomy = anatomy_of(module)
    if suffix:
        raise DataError(f"{alias} has no :{suffix}", opt("hook", alias))
    if not anatomy.proven:
        raise DataError(
            f"{alias} cannot be found before {name} has run: {anatomy.why}",
            f"{opt('hook', f'blocks.{index}')}, or the path of a module",
        )
    ending = alias.removeprefix(f"blocks.{index}.")
    place = anatomy.places.get(index, {}).get(PLACES[ending]) or Part(
        None, reason=f"nothing was seen inside block {index}"
    )
    if place.path is None:
        raise _refused(module, alias, index, place, name)
    return inside(anatomy.block_path(index), place.path)


def _check_post(module: nn.Module, alias: str, index: int, name: str) -> None:
    """Raise DataError for hook_resid_post of a post-norm block: TransformerLens' HookedEncoder has
    the sum before the last norm there, its bridge the block's output."""
    anatomy = anatomy_of(module)
    before = anatomy.places.get(index, {}).get("post_norm")
    if before and before.path:
        block = anatomy.block_path(index)
        raise DataError(
            f"{alias} is not available on {name}: block {index} ends with a norm, and {AMBIGUOUS}",
            f"{opt('hook', block)} is after it, {opt('hook', inside(block, before.path))} before",
        )


def _refused(module: nn.Module, alias: str, index: int, part: Part, name: str) -> DataError:
    anatomy = anatomy_of(module)
    block = anatomy.block_path(index)
    if part.near and not is_alias(module, f"{block}.{part.near}"):
        hint = (
            f"{opt('hook', f'{block}.{part.near}')} takes the output of that module as it is,"
            " before that change"
        )
    else:
        kind = alias.removeprefix(f"blocks.{index}.")
        known = [anatomy.parts, anatomy.places][kind in PLACES]
        key = PLACES.get(kind, kind)
        others = [other for other, parts in known.items() if key in parts and parts[key].path]
        nearest = min(others, key=lambda other: abs(other - index), default=None)
        other = f"blocks.{index}" if nearest is None else f"blocks.{nearest}.{kind}"
        hint = f"{opt('hook', other)}, or saekit harvest {name} --list-hooks"
    return DataError(f"{alias} is not available on {name}: {part.reason}", hint)


def _module_path(module: nn.Module, path: str) -> str | None:
    """The module's path as this model spells it; None when there is no such module."""
    spelling = next((p for p in _spellings(module, path) if p and has_module(module, p)), None)
    # model.layers.9 of a language model that also sees: its blocks are model.language_model.layers
    match = re.fullmatch(r"(?:.+\.)?(\w+)\.(\d+)((?:\..+)?)", path)
    if spelling or not match:
        return spelling
    blocks = anatomy_of(module).blocks or ""
    path = f"{blocks}.{match[2]}{match[3]}"
    return path if blocks.rpartition(".")[2] == match[1] and has_module(module, path) else None


def _spellings(module: nn.Module, path: str) -> tuple[str, ...]:
    prefix = getattr(module, "base_model_prefix", "")
    return (path, f"{prefix}.{path}", path.removeprefix(f"{prefix}.")) if prefix else (path,)


def _unknown(module: nn.Module, path: str, name: str) -> DataError:
    listing = f"saekit harvest {name} --list-hooks"
    anatomy = anatomy_of(module)
    blocks, count = anatomy.blocks, anatomy.count
    if blocks is None:
        guess = did_you_mean(path, [name for name, _ in module.named_modules() if name])
        return DataError(
            f"{path} is not a module of {name} ({type(module).__name__}: {anatomy.why})",
            guess + _another(anatomy),
        )
    match = re.match(r"(.+)\.(\d+)(\.|$)", path)
    stem = match[1] if match and blocks in _spellings(module, match[1]) else "blocks"
    span = f"{count} blocks, {stem}.0 to {stem}.{count - 1}"
    nearest = min(int(match[2]), count - 1) if match else count - 1
    return DataError(
        f"{path} is not a module of {name} ({span})",
        f"{opt('hook', f'{stem}.{nearest}')}, or {listing}",
    )


def _another(anatomy: Anatomy) -> str:
    """What to try on a model without proven blocks."""
    return (
        f"{opt('hook', anatomy.near)}, or the path of another module"
        if anatomy.near
        else "choose another model"
    )


def block_hint(module: nn.Module) -> str:
    """The hook nearest to the output that can be read."""
    anatomy = anatomy_of(module)
    good = anatomy.good_blocks()
    return opt("hook", f"blocks.{good[-1]}") if good else _another(anatomy)
