"""Which latents a text or an image activates: the input through the model, and its hidden states
through the dictionary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from saekit.errors import DataError, opt
from saekit.harvesting.hooks import capture
from saekit.harvesting.inputs import batches
from saekit.harvesting.memory_models import load_model_of
from saekit.harvesting.models import FromFolder
from saekit.harvesting.pictures import read_picture
from saekit.harvesting.sources import Document, Documents
from saekit.inspection.opening import InspectedModel
from saekit.store.stack import stores_of
from saekit.types import ActivationSpec

if TYPE_CHECKING:
    from PIL.Image import Image


class _Typed(Documents):
    """The one document that the user typed in."""

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


@dataclass(frozen=True)
class OnInput:
    """Of each latent (F,) fp32, over the input's tokens or patches in the store's scope: the value
    of largest size, with its sign, and the mean."""

    largest: torch.Tensor
    mean: torch.Tensor


@torch.no_grad()
def on_input(
    inspected: InspectedModel,
    text: str | None,
    image: str | Path | None,
    live: nn.Module | None,
    processor: Any,
) -> OnInput:
    """What the latents do on a text or an image file. Raises DataError for an input without rows,
    MissingError."""
    stores = stores_of(inspected.store)
    for store in stores:
        if store.spec.is_raw:
            raise DataError(
                f"{store.path} holds raw data: there is no model to read an input with",
                f"{opt('index')} with the number of a latent",
            )
    remedy = "repair the file or give another"
    picture = None if image is None else read_picture(Path(image), remedy=remedy)
    document = Document(0, "input", text, picture)

    # one forward pass per context and model, whatever the number of its hooks
    specs = [store.spec for store in stores]
    of_model: dict[str, list[ActivationSpec]] = {}
    for spec in specs:
        of_model.setdefault(spec.model, []).append(spec)
    if inspected.store.spec.modality == "text":
        processor = FromFolder(str(Path(inspected.store.path) / "tokenizer"))
    passes = (_hidden_states(hooks, document, live, processor) for hooks in of_model.values())

    # of every latent the value of largest size, with its sign
    largest_F = torch.zeros(inspected.model.latents)
    sum_F = torch.zeros(inspected.model.latents, dtype=torch.float64)
    rows = 0
    for states in zip(*passes):
        by_model = dict(zip(of_model, states))
        x_BD = torch.cat([by_model[spec.model][spec.hook] for spec in specs], 1)
        rows += len(x_BD)
        code_BF = inspected.model.encode(x_BD).to_dense()
        sum_F += code_BF.sum(0, dtype=torch.float64)
        for end_F in (code_BF.amax(0), code_BF.amin(0)) if len(code_BF) else ():
            largest_F = torch.where(end_F.abs() > largest_F.abs(), end_F, largest_F)
    if rows == 0:
        raise DataError(
            "the input holds no token in this store's scope", f"give a longer {opt('text')}"
        )
    return OnInput(largest_F, (sum_F / rows).float())


def _hidden_states(
    specs: list[ActivationSpec], document: Document, live: nn.Module | None, processor: Any
) -> Iterator[dict[str, torch.Tensor]]:
    """For each context of the document the rows (B,D) of each hook of one model."""
    model = load_model_of(specs[0], given=live, processor=processor)
    hooks = list(dict.fromkeys(spec.hook for spec in specs))
    typed = _Typed(document)
    for batch in batches(model, typed, ctx=specs[0].context or 128, batch=1):
        with capture(model, hooks, stop=True) as states:
            model.forward(batch.inputs)
        chosen = batch.rows_for_scope(specs[0].scope)
        yield {hook: states[hook][chosen].float().cpu() for hook in hooks}
