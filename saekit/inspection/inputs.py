"""A text or an image that a user gives, as the rows of the hooks that a dictionary reads: what
`features` ranks latents by, and what the local server shows token by token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from saekit.errors import DataError, opt
from saekit.harvesting.hooks import capture
from saekit.harvesting.inputs import batches
from saekit.harvesting.memory_models import load_model_of
from saekit.harvesting.models import LiveModel
from saekit.harvesting.sources import Document, Documents
from saekit.types import ActivationSpec

if TYPE_CHECKING:
    from PIL.Image import Image

CONTEXT = 128  # tokens, where nothing says how many


@dataclass(frozen=True)
class InputRows:
    """The rows of one context of the input, or of its image, that are in the scope of the specs."""

    number: int
    """Of the context in the input: short ones come first."""
    x_BD: torch.Tensor
    """fp32, on the CPU: the rows of all hooks side by side."""
    positions: list[int]
    """Of each row: its index in `token_ids`, or the row-major number of its patch (below 0: class
    token and registers)."""
    token_ids: list[int]
    """Of the context, special tokens included; [] for an image."""
    grid: tuple[int, int] | None
    """Patches (H,W) of an image."""


def input_models(
    specs: Sequence[ActivationSpec], live: nn.Module | None = None, processor: Any = None
) -> dict[str, LiveModel]:
    """Name -> model of each model that the specs name, with `live` and `processor` as
    `load_model_of` takes them. Raises its errors."""
    firsts = {spec.model: spec for spec in reversed(specs)}
    return {
        name: load_model_of(spec, given=live, processor=processor) for name, spec in firsts.items()
    }


def input_rows(
    document: Document, specs: Sequence[ActivationSpec], models: Mapping[str, LiveModel]
) -> Iterator[InputRows]:
    """One for each context of the document: a forward pass per model, whatever the number of its
    hooks. Contexts are cut, and rows left out, as the specs say."""
    of_model: dict[str, list[ActivationSpec]] = {}
    for spec in specs:
        of_model.setdefault(spec.model, []).append(spec)
    passes = (_passes(document, hooks, models[name]) for name, hooks in of_model.items())
    for together in zip(*passes):
        by_model = dict(zip(of_model, together))
        x_BD = torch.cat([by_model[spec.model].states[spec.hook] for spec in specs], 1)
        first = together[0]
        yield InputRows(first.number, x_BD, first.positions, first.token_ids, first.grid)


def larger(largest_F: torch.Tensor, code_BF: torch.Tensor) -> torch.Tensor:
    """(F,): of each latent the value of largest size, with its sign, among `largest_F` and rows."""
    for end_F in (code_BF.amax(0), code_BF.amin(0)) if len(code_BF) else ():
        largest_F = torch.where(end_F.abs() > largest_F.abs(), end_F, largest_F)
    return largest_F


def no_rows() -> DataError:
    """The error for an input without a row in the scope."""
    return DataError(
        "the input holds no token in this store's scope", f"give a longer {opt('text')}"
    )


@dataclass(frozen=True)
class _Pass:
    number: int
    states: dict[str, torch.Tensor]
    """Hook -> its rows (B,D)."""
    positions: list[int]
    token_ids: list[int]
    grid: tuple[int, int] | None


def _passes(
    document: Document, specs: Sequence[ActivationSpec], model: LiveModel
) -> Iterator[_Pass]:
    """Of the hooks of one model."""
    hooks = list(dict.fromkeys(spec.hook for spec in specs))
    for batch in batches(model, _Typed(document), ctx=specs[0].context or CONTEXT, batch=1):
        with capture(model, hooks, stop=True) as states:
            model.forward(batch.inputs)
        chosen_BT = batch.rows_for_scope(specs[0].scope)
        yield _Pass(
            int(batch.example_id[0]),
            {hook: states[hook][chosen_BT].float().cpu() for hook in hooks},
            batch.position_BT[chosen_BT].tolist(),
            batch.token_ids[0],
            batch.grid,
        )


class _Typed(Documents):
    """The one document that the user gave."""

    def __init__(self, document: Document) -> None:
        self.modality = "text" if document.image is None else "image"
        self.name, self._document = "input", document

    def documents(self, start: int = 0):
        yield from [self._document][start:]

    def digest(self) -> None:
        return None

    def image(self, ref: str) -> Image:
        assert self._document.image is not None
        return self._document.image
