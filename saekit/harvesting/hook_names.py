"""The names of hooks: where in a model hidden states are read.

A hook has one of two kinds of names, both with an optional `:in` for the module's input instead of
its output:

- an alias, the same on every model: `blocks.9` (the residual stream after block 9, counted from 0),
  `blocks.9.attn` and `blocks.9.mlp` (what attention and MLP add to it, before the residual sum;
  with `:in`, their input);
- a module path of the loaded model (`model.layers.9.mlp.down_proj`).

`resolve_hook` turns either into the canonical module path, which a store records. Aliases do not
rely on module names: a tiny forward pass proves that every block takes the output of the previous
one, and that block input + attn + mlp = block output (`saekit.harvesting.trace`,
`saekit.harvesting.parts`). An alias that cannot be proven is refused, with the reason and a module
path to use instead. We cannot run a module that does not say what input it takes: then the first
pass inside `capture` is the proof (`saekit.harvesting.hooks`).

In a model with an image and a text tower (CLIP, SigLIP) `blocks` are those of the image tower; the
text tower can be read by module paths.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from torch import nn

from saekit.errors import DataError, did_you_mean, opt
from saekit.harvesting.anatomy import anatomy_of, plain
from saekit.harvesting.blocks import Anatomy
from saekit.harvesting.parts import NAMES, Part, guessed_part, has_module

INPUT_SUFFIX = ":in"
_ALIAS = re.compile(r"blocks\.(\d+)(?:\.(.+))?$")


class HookRow(NamedTuple):
    alias: str
    path: str


def split_input(hook: str) -> tuple[str, bool]:
    """('blocks.9', True) of 'blocks.9:in'."""
    return hook.removesuffix(INPUT_SUFFIX), hook.endswith(INPUT_SUFFIX)


def block_list(module: nn.Module) -> str | None:
    """Path of the list of blocks, None when the module has none."""
    return anatomy_of(module).blocks


def block_count(module: nn.Module) -> int:
    return anatomy_of(module).count


def resolve_hook(module: nn.Module, hook: str, name: str | None = None) -> str:
    """The canonical path of `hook` ('model.layers.9', with ':in' if `hook` has it). `name` is the
    model's name in messages.

    Paths of the bare model (`h.9`, as in AutoModel) are understood on the model with a head
    (`transformer.h.9`), and vice versa. Raises DataError, with the range of blocks, when there is
    no such module, and with the reason when an alias does not hold on this model.
    """
    module = plain(module)
    name = name or model_name(module)
    path, at_input = split_input(hook)
    if is_alias(module, path):
        canonical = _alias_path(module, path, name, at_input)
    else:
        spellings = (spelling for spelling in _spellings(module, path) if spelling)
        canonical = next((path for path in spellings if has_module(module, path)), None)
    if canonical is None:
        raise _unknown(module, path, name)
    return canonical + INPUT_SUFFIX * at_input


def is_alias(module: nn.Module, path: str) -> bool:
    """blocks.N..., unless it is the name of a module of the model. In a model whose list of blocks
    is called `blocks`, .attn and .mlp are still aliases: they mean what is added, which need not be
    the output of a module of that name."""
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
        rows.append(HookRow(f"blocks.{index}", anatomy.block_path(index)))
        for part in NAMES:
            proven = anatomy.parts.get(index, {}).get(part)
            if proven and proven.path:
                path = f"{anatomy.block_path(index)}.{proven.path}"
                rows.append(HookRow(f"blocks.{index}.{part}", path))
    if not rows:
        why = anatomy.why or "none of its blocks takes the output of the previous one"
        raise DataError(f"{model_name(module)} has no hooks to list: {why}", _another(anatomy))
    return rows


def model_name(module: nn.Module) -> str:
    return getattr(module, "name_or_path", "") or type(module).__name__


def _alias_path(module: nn.Module, alias: str, name: str, at_input: bool) -> str | None:
    """'blocks.N[.attn|.mlp|.path inside the block]' -> module path, None when there is none. Raises
    DataError for an alias that does not hold."""
    match = _ALIAS.match(alias)
    assert match is not None
    index, inside = int(match[1]), match[2]
    anatomy = anatomy_of(module)
    if anatomy.blocks is None:
        raise DataError(
            f"{alias} is not a module of {name} ({type(module).__name__}: {anatomy.why})",
            _another(anatomy),
        )
    if index >= anatomy.count:
        return None
    # The block itself.
    block = module.get_submodule(anatomy.block_path(index))
    if inside is None:
        if index in anatomy.bad_blocks and not at_input:
            why, path = anatomy.bad_blocks[index], anatomy.block_path(index)
            raise DataError(
                f"{alias} is not the residual stream of {name}: {why}",
                f"{opt('hook', path)} takes that module's output as it is",
            )
        return anatomy.block_path(index)
    # A module inside it, or what attention or MLP add.
    if inside not in NAMES:
        return f"{anatomy.block_path(index)}.{inside}" if has_module(block, inside) else None
    if not anatomy.proven:
        guess = guessed_part(block, inside)
        return f"{anatomy.block_path(index)}.{guess}" if guess else None
    part = anatomy.parts.get(index, {}).get(inside)
    if part is None:
        reason = (
            f"block {index} ({type(block).__name__}) has no module of that name that adds to the"
            " residual stream"
        )
        part = Part(None, reason=reason)
    if part.path is None:
        raise _refused(module, alias, index, part, name)
    return f"{anatomy.block_path(index)}.{part.reads if at_input else part.path}"


def _refused(module: nn.Module, alias: str, index: int, part: Part, name: str) -> DataError:
    anatomy = anatomy_of(module)
    block = anatomy.block_path(index)
    if part.near and not is_alias(module, f"{block}.{part.near}"):
        hint = (
            f"{opt('hook', f'{block}.{part.near}')} takes the output of that module as it is,"
            " before that change"
        )
    else:
        kind = alias.rsplit(".", 1)[1]
        others = [
            other for other, parts in anatomy.parts.items() if kind in parts and parts[kind].path
        ]
        nearest = min(others, key=lambda other: abs(other - index), default=None)
        other = f"blocks.{index}" if nearest is None else f"blocks.{nearest}.{kind}"
        hint = f"{opt('hook', other)}, or saekit harvest {name} --list-hooks"
    return DataError(f"{alias} is not available on {name}: {part.reason}", hint)


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
