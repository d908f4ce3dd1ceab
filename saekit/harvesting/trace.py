"""The blocks of a model and their parts: from one forward pass, not from names.

Blocks are the elements of a list of modules that run one after the other, each once, where the
output of one element is the input of the next. A `Trace` watches a pass and returns an `Anatomy`;
`saekit.harvesting.anatomy` runs that pass and caches the result.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from saekit.harvesting.blocks import Anatomy, deep_lists, layers_in_config
from saekit.harvesting.parts import Call, Part, Record, Value, inside, located, version_of
from saekit.harvesting.places import located_places
from saekit.harvesting.views import View, stream_input, stream_output


@dataclass
class _Element:
    """One element of a list of modules."""

    runs: int = 0
    given_shape: tuple[int, ...] | None = None
    gave_shape: tuple[int, ...] | None = None
    follows: bool = False  # its input is the output of the element before it


class Trace:
    """Watches one forward pass through `module`: attach it, run the pass, then call `anatomy`.

    The parts of the blocks in `blocks` (a path in the tower) are recorded only while their block
    runs, so that the memory is that of one block.
    """

    def __init__(
        self, module: nn.Module, tower: str, blocks: str | None, inputs: tuple[int, ...] = ()
    ) -> None:
        """`inputs`: the shape that hidden states must begin with, (contexts, tokens) or
        (images,)."""
        self.module, self.tower, self.blocks, self.inputs = module, tower, blocks, inputs
        self.root = module.get_submodule(tower)
        self.lists = dict(deep_lists(self.root))
        self._elements = {
            path: [_Element() for _ in elements] for path, elements in self.lists.items()
        }
        # list -> the element that ran last, and its output
        self._last: dict[str, tuple[int, torch.Tensor]] = {}
        self._outputs: list[tuple[str, torch.Tensor, int]] = []
        self._record: Record | None = None
        self._running = -1  # the block of the record: a module may be shared by several
        self._runs: Counter[str] = Counter()
        # shapes of the modules' outputs, in the order in which the modules ended
        self._shapes: dict[str, tuple[int, ...] | None] = {}
        self._parts: dict[int, dict[str, Part]] = {}
        self._places: dict[int, dict[str, Part]] = {}
        self._views: dict[str, View] = {}
        self._written_later: set[str] = set()

    def attach(self) -> list[torch.utils.hooks.RemovableHandle]:
        handles = []
        for path, module in self.root.named_modules(remove_duplicate=False):
            handles.append(
                module.register_forward_pre_hook(lambda *_, path=path: self._runs.update([path]))
            )
            handles.append(
                module.register_forward_hook(
                    lambda _m, _a, output, path=path: self._ended(path, output)
                )
            )
        for path, elements in self.lists.items():
            for index, element in enumerate(elements):
                handles += self._around(
                    element, self._enter_element, self._leave_element, path, index
                )
        return handles + self.attach_parts(range(len(self._blocks())))

    def _blocks(self) -> list[nn.Module]:
        return [] if self.blocks is None else self.lists.get(self.blocks, [])

    def attach_parts(self, indices: Iterable[int]) -> list[torch.utils.hooks.RemovableHandle]:
        """Watch only the parts of these blocks."""
        handles = []
        for index in indices:
            block = self._blocks()[index]
            handles += self._around(block, self._enter_block, self._leave_block, block, index)
            for path, part in block.named_modules():
                if path:
                    handles += self._around(part, self._enter_part, self._leave_part, path, index)
        return handles

    @staticmethod
    def _around(
        module: nn.Module, enter: Callable, leave: Callable, *name: Any
    ) -> list[torch.utils.hooks.RemovableHandle]:
        def before(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            enter(*name, stream_input(args, kwargs))

        def after(_module: nn.Module, _args: tuple, output: Any) -> None:
            leave(*name, stream_output(output))

        return [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after),
        ]

    def _ended(self, path: str, output: Any) -> None:
        self._shapes.pop(path, None)
        self._shapes[path] = _shape(stream_output(output))

    # -- chains ------------------------------------------------------------------------------------

    def _enter_element(self, path: str, index: int, given: Any) -> None:
        element = self._elements[path][index]
        element.runs += 1
        element.given_shape = _shape(given)
        before, gave = self._last.get(path, (None, None))
        element.follows = (
            before == index - 1
            and gave is not None
            and _shape(gave) == _shape(given) is not None
            and torch.equal(gave, given)
        )

    def _leave_element(self, path: str, index: int, gave: Any) -> None:
        self._elements[path][index].gave_shape = _shape(gave)
        if _shape(gave) is not None:
            self._outputs.append((f"{path}.{index}", gave, version_of(gave)))
            self._last[path] = index, gave.detach().clone()

    # -- parts -------------------------------------------------------------------------------------

    def _enter_block(self, block: nn.Module, index: int, given: Any) -> None:
        shape = _shape(given)
        entering = Value.of(given, shape[0] * shape[1], shape[2]) if shape else None
        self._record, self._running = (Record(entering) if entering else None), index

    def _leave_block(self, block: nn.Module, index: int, gave: Any) -> None:
        record, self._record = self._record, None
        if record is None:
            return
        record.leaving = Value.of(gave, *record.entering.rows.shape)
        if record.leaving is not None:
            with torch.no_grad():
                self._parts[index] = parts = located(block, record)
                self._places[index], views = located_places(block, record, parts)
            block_path = f"{self.blocks}.{index}"
            self._views |= {inside(block_path, path): view for path, view in views.items()}
        self._written_later |= {
            f"{self.blocks}.{index}.{c.path}"
            for c in record.calls
            if c.gave and c.gave.written_later
        }

    def _enter_part(self, path: str, index: int, given: Any) -> None:
        if self._record is not None and index == self._running:
            value = Value.of(given, *self._record.entering.rows.shape)
            self._record.calls.append(Call(path, value, given_BTE=given if _shape(given) else None))

    def _leave_part(self, path: str, index: int, gave: Any) -> None:
        if self._record is not None and index == self._running:
            call = next(call for call in reversed(self._record.calls) if call.path == path)
            call.gave = Value.of(gave, *self._record.entering.rows.shape)
            call.gave_BTE = gave if _shape(gave) else None

    def parts_of(self, index: int) -> dict[str, Part]:
        return self._parts.get(index, {})

    # -- the result --------------------------------------------------------------------------------

    def anatomy(self) -> Anatomy:
        """The anatomy, after the pass."""
        # How often modules ran, and which outputs were written later.
        anatomy = Anatomy(self.tower, proven=True)
        anatomy.runs = Counter({self._whole(path): count for path, count in self._runs.items()})
        for path, _ in self.root.named_modules(remove_duplicate=False):
            anatomy.runs.setdefault(self._whole(path), 0)
        written = self._written_later | {
            path for path, tensor, version in self._outputs if version_of(tensor) != version
        }
        anatomy.written_later = {self._whole(path) for path in written}
        # The blocks.
        chains = {
            path: elements for path, elements in self._elements.items() if _is_chain(elements)
        }
        anatomy.near = self._readable()
        if not chains:
            anatomy.why = self._no_chain()
            return anatomy
        path = self._likeliest(chains)
        anatomy.why = self._objection(path, chains)
        if anatomy.why:
            return anatomy
        anatomy.blocks, anatomy.count = self._whole(path), len(chains[path])
        anatomy.bad_blocks = dict(_faults(chains[path]))
        if path == self.blocks:
            anatomy.parts, anatomy.places = self._parts, self._places
            anatomy.views = {self._whole(path): view for path, view in self._views.items()}
        return anatomy

    def _likeliest(self, chains: dict[str, list[_Element]]) -> str:
        """The chain with the config's number of layers, else the outermost, else the longest."""
        layers = layers_in_config(self.module, self.root)
        return min(
            chains,
            key=lambda path: (len(chains[path]) != layers, path.count("."), -len(chains[path])),
        )

    def _objection(self, path: str, chains: dict[str, list[_Element]]) -> str:
        """Why this chain cannot be the blocks; '' if it can."""
        if len(chains[path]) == 1 and any(
            _parent(other) == _parent(path) for other in chains if other != path
        ):
            # XLM of a single layer
            return "it has several lists of one module, and any of them may be its blocks"
        similar = [other for other in chains if _pattern(other) == _pattern(path)]
        if len(similar) > 1:
            return (
                f"its blocks lie in {len(similar)} lists"
                f" ({', '.join(similar[:3])}{', ...' if len(similar) > 3 else ''})"
            )
        shape = next(element.gave_shape for element in chains[path] if element.runs)
        assert shape is not None  # since it is a chain
        if shape[: len(self.inputs)] != self.inputs:  # XLNet: (tokens, contexts, width)
            return (
                f"its hidden states are of shape {shape} for inputs {self.inputs}, not (inputs,"
                " tokens, width)"
            )
        return ""

    def _whole(self, path: str) -> str:
        return ".".join(part for part in (self.tower, path) if part)

    def _no_chain(self) -> str:
        for path, elements in self._elements.items():
            if (
                elements[0].runs > 1
                and elements[0].given_shape == elements[0].gave_shape is not None
            ):
                return f"{self._whole(path)}.0 runs {elements[0].runs} times in a forward pass"
        if not self._elements and not any(
            isinstance(module, nn.ModuleList) for module in self.root.modules()
        ):
            return "no list of blocks found"
        return (
            "no list of modules in which each takes the output of the previous one, all of one"
            " shape"
        )

    def _readable(self) -> str | None:
        """The last module that ran once and returned hidden states of a text."""
        if len(self.inputs) < 2:
            return None
        shapes = {
            path: shape
            for path, shape in self._shapes.items()
            if path and self._runs[path] == 1 and shape
        }
        good = [path for path, shape in shapes.items() if shape[: len(self.inputs)] == self.inputs]
        return self._whole(good[-1]) if good else None


def _is_chain(elements: list[_Element]) -> bool:
    """Whether elements ran, each once, without a change of shape, most of them on the output of the
    previous one."""
    ran = [element for element in elements if element.runs]
    if not ran or any(element.runs > 1 for element in ran):
        return False
    shapes = {shape for element in ran for shape in (element.given_shape, element.gave_shape)}
    if len(shapes) != 1 or None in shapes:
        return False
    links = [element.follows for element in ran[1:]]
    return sum(links) * 2 >= len(links)


def _faults(elements: list[_Element]) -> Iterator[tuple[int, str]]:
    for index, element in enumerate(elements):
        after = elements[index + 1] if index + 1 < len(elements) else None
        if not element.runs:
            yield index, "it did not run in a forward pass"
        elif after and after.runs and not after.follows:
            yield index, f"its output is not the input of block {index + 1}"


def _shape(value: Any) -> tuple[int, ...] | None:
    """(B,T,D) of a floating-point tensor of three axes, else None."""
    if isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim == 3:
        return tuple(value.shape)
    return None


def _pattern(path: str) -> str:
    return re.sub(r"\d+", "*", path)


def _parent(path: str) -> str:
    return path.rpartition(".")[0]
