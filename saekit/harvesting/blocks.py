"""The blocks of a model and their parts: the result of the pass that showed them
(`saekit.harvesting.trace`), and a guess by structure before any pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from saekit.harvesting.parts import Part, has_module
from saekit.harvesting.views import View


@dataclass
class Anatomy:
    """What a pass has shown. Paths are relative to the whole module."""

    tower: str
    blocks: str | None = None  # path of the list of blocks
    proven: bool = False  # False: nothing has run yet, and `blocks` is a guess from structure
    why: str = ""  # why there are no blocks, or nothing could be run
    near: str | None = None  # a module that returned hidden states, when there are no blocks
    count: int = 0
    bad_blocks: dict[int, str] = field(default_factory=dict)  # block -> why it is not one
    parts: dict[int, dict[str, Part]] = field(default_factory=dict)
    # block -> what else it has under a name (saekit.harvesting.places)
    places: dict[int, dict[str, Part]] = field(default_factory=dict)
    # hooks that are a function of a module's call, not its input or output
    views: dict[str, View] = field(default_factory=dict)
    # module of the tower -> how often it ran
    runs: Counter[str] = field(default_factory=Counter)
    # modules whose output the model changes in place
    written_later: set[str] = field(default_factory=set)

    def block_path(self, index: int) -> str:
        return f"{self.blocks}.{index}"

    def good_blocks(self) -> list[int]:
        return [index for index in range(self.count) if index not in self.bad_blocks]


def tower_path(module: nn.Module) -> str:
    """The part of `module` that `blocks.N` refers to: the image tower of a dual model, the encoder
    of an encoder-decoder, else '' (the whole)."""
    children = dict(module.named_children())
    if "vision_model" in children and "text_model" in children:
        return "vision_model"
    if "encoder" in children and "decoder" in children:
        return "encoder"
    for name in ("language_model", "model.language_model"):  # a language model that also sees
        if has_module(module, name):
            return name
    return ""


def guessed_blocks(module: nn.Module, root: nn.Module) -> str | None:
    """Path in `root` of the likely list of blocks: the outermost list of modules of one class whose
    length is the config's number of layers, else the longest. A correct guess saves a second pass;
    before a module has run, there is nothing better."""
    lists = [
        (path, blocks)
        for path, blocks in deep_lists(root)
        if len({type(block) for block in blocks}) == 1
    ]
    lists = lists or list(deep_lists(root))
    expected = layers_in_config(module, root)
    matching = [entry for entry in lists if len(entry[1]) == expected]
    if not matching:
        longest = max((len(blocks) for _, blocks in lists), default=0)
        matching = [entry for entry in lists if len(entry[1]) == longest]
    return min(matching, key=lambda entry: entry[0].count("."))[0] if matching else None


def deep_lists(root: nn.Module) -> Iterator[tuple[str, list[nn.Module]]]:
    """Lists of modules that have submodules: a plain Linear or Dropout in a list is not a block."""
    for path, module in root.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            elements = list(module)
            if elements and all(next(element.children(), None) is not None for element in elements):
                yield path, elements


def layers_in_config(module: nn.Module, tower: nn.Module) -> int | None:
    for owner in (tower, module):
        config = getattr(owner, "config", None)
        for nested in (getattr(config, "text_config", None) if owner is module else None, config):
            layers = getattr(nested, "num_hidden_layers", None) or getattr(
                nested, "num_layers", None
            )
            if isinstance(layers, int):
                return layers
    return None
