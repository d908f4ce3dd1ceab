"""The blocks of a model, and what is in them: read from one forward pass, not believed from names.

Blocks are the elements of a list of modules that run one after the other, each once, where what an
element gives is what the next one is given. A `Trace` watches a pass and answers with an `Anatomy`;
`saekit.harvesting.anatomy` runs that pass and keeps the answer.
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
from saekit.harvesting.parts import Call, Part, Record, Value, located, version_of


def stream_input(args: tuple, kwargs: dict[str, Any]) -> Any:
    """What `:in` of a module means: its first argument, or hidden_states where it is called by
    keyword."""
    return args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), None))


def stream_output(output: Any) -> Any:
    return output[0] if isinstance(output, tuple | list) and output else output


@dataclass
class _Element:
    """What is known of an element of a list of modules."""

    runs: int = 0
    given_shape: tuple[int, ...] | None = None
    gave_shape: tuple[int, ...] | None = None
    follows: bool | None = None  # it was given what the element before it gave


class Trace:
    """Watches one forward pass through `module`. Attach it, run the pass, ask for the anatomy.

    The parts of the blocks in `blocks` (a path in the tower) are recorded as each block runs, and
    no longer, so that the memory it takes is that of one block.
    """

    def __init__(
        self, module: nn.Module, tower: str, blocks: str | None, inputs: tuple[int, ...] = ()
    ) -> None:
        """`inputs`: the shape of what is run, (contexts, tokens) or (images,), as far as hidden
        states must begin with it."""
        self.module, self.tower, self.blocks, self.inputs = module, tower, blocks, inputs
        self.root = module.get_submodule(tower)
        self.lists = dict(deep_lists(self.root))
        self._elements = {
            path: [_Element() for _ in elements] for path, elements in self.lists.items()
        }
        # list -> the element that ran last, and what it gave
        self._last: dict[str, tuple[int, torch.Tensor]] = {}
        self._outputs: list[tuple[str, torch.Tensor, int]] = []
        self._record: Record | None = None
        self._running = -1  # the block that the record is of: a module may be shared by several
        self._runs: Counter[str] = Counter()
        # of what each module gave, in the order in which they ended
        self._shapes: dict[str, tuple[int, ...] | None] = {}
        self._parts: dict[int, dict[str, Part]] = {}
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
        return handles + self.attach_parts(range(len(self.lists.get(self.blocks, ()))))

    def attach_parts(self, indices: Iterable[int]) -> list[torch.utils.hooks.RemovableHandle]:
        """Only what is in these blocks."""
        handles = []
        for index in indices:
            block = self.lists[self.blocks][index]
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

    # -- chains
    # ----------------------------------------------------------------------------------------------

    def _enter_element(self, path: str, index: int, given: Any) -> None:
        element = self._elements[path][index]
        element.runs += 1
        element.given_shape = _shape(given)
        before, gave = self._last.get(path, (None, None))
        element.follows = (
            before == index - 1
            and _shape(gave) == _shape(given) is not None
            and torch.equal(gave, given)
        )

    def _leave_element(self, path: str, index: int, gave: Any) -> None:
        self._elements[path][index].gave_shape = _shape(gave)
        if _shape(gave) is not None:
            self._outputs.append((f"{path}.{index}", gave, version_of(gave)))
            self._last[path] = index, gave.detach().clone()

    # -- parts
    # ----------------------------------------------------------------------------------------------

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
                self._parts[index] = located(block, record)
        self._written_later |= {
            f"{self.blocks}.{index}.{c.path}"
            for c in record.calls
            if c.gave and c.gave.written_later
        }

    def _enter_part(self, path: str, index: int, given: Any) -> None:
        if self._record is not None and index == self._running:
            self._record.calls.append(
                Call(path, Value.of(given, *self._record.entering.rows.shape))
            )

    def _leave_part(self, path: str, index: int, gave: Any) -> None:
        if self._record is not None and index == self._running:
            call = next(call for call in reversed(self._record.calls) if call.path == path)
            call.gave = Value.of(gave, *self._record.entering.rows.shape)

    def parts_of(self, index: int) -> dict[str, Part]:
        return self._parts.get(index, {})

    # -- the answer
    # ----------------------------------------------------------------------------------------------

    def anatomy(self) -> Anatomy:
        """Of the pass that has ended."""
        anatomy = Anatomy(self.tower, proven=True)
        anatomy.runs = Counter({self._whole(path): count for path, count in self._runs.items()})
        for path, _ in self.root.named_modules(remove_duplicate=False):
            anatomy.runs.setdefault(self._whole(path), 0)
        written = self._written_later | {
            path for path, tensor, version in self._outputs if version_of(tensor) != version
        }
        anatomy.written_later = {self._whole(path) for path in written}
        chains = {
            path: elements for path, elements in self._elements.items() if _is_chain(elements)
        }
        anatomy.near = self._readable()
        if not chains:
            anatomy.why = self._no_chain()
            return anatomy
        expected = layers_in_config(self.module, self.root)
        path = min(
            chains,
            key=lambda each: (len(chains[each]) != expected, each.count("."), -len(chains[each])),
        )
        alike = [each for each in chains if _pattern(each) == _pattern(path)]
        if len(chains[path]) == 1 and any(
            _parent(each) == _parent(path) for each in chains if each != path
        ):
            # XLM of a single layer
            anatomy.why = "of several lists of one module none can be told to be its blocks"
            return anatomy
        if len(alike) > 1:
            anatomy.why = (
                f"its blocks lie in {len(alike)} lists"
                f" ({', '.join(alike[:3])}{', ...' if len(alike) > 3 else ''})"
            )
            return anatomy
        shape = next(element.gave_shape for element in chains[path] if element.runs)
        if shape[: len(self.inputs)] != self.inputs:  # XLNet: (tokens, contexts, width)
            anatomy.why = (
                f"its hidden states are of shape {shape} for inputs {self.inputs}, not (inputs,"
                " tokens, width)"
            )
            return anatomy
        anatomy.blocks, anatomy.count = self._whole(path), len(chains[path])
        anatomy.bad_blocks = dict(_faults(chains[path]))
        if path == self.blocks:
            anatomy.parts = self._parts
        return anatomy

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
            "no list of modules of which each is given what the one before it gave, all of one"
            " shape"
        )

    def _readable(self) -> str | None:
        """The last module that ran once and gave hidden states of a text."""
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
    """Elements that ran, each once, without a change of shape; most of them given what the one
    before gave."""
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
            yield index, f"what it gives is not what block {index + 1} is given"


def _shape(value: Any) -> tuple[int, ...] | None:
    """(B,T,D) of a floating tensor of three axes, else None."""
    if isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim == 3:
        return tuple(value.shape)
    return None


def _pattern(path: str) -> str:
    return re.sub(r"\d+", "*", path)


def _parent(path: str) -> str:
    return path.rpartition(".")[0]
