"""Which latents a text or an image activates: the input through the model, and its hidden states
through the dictionary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from saekit.errors import DataError, opt
from saekit.harvesting.models import FromFolder
from saekit.harvesting.pictures import read_picture
from saekit.harvesting.sources import Document
from saekit.inspection.inputs import input_models, input_rows, larger, no_rows
from saekit.inspection.opening import InspectedModel
from saekit.inspection.tokens import TokenTexts
from saekit.store.stack import stores_of


@dataclass(frozen=True)
class Place:
    """Where in the input a row is."""

    position: int
    """In `token_ids`, or the row-major number of a patch (below 0: class token and registers)."""
    token_ids: list[int]
    """Of the row's context; [] for an image."""
    grid: tuple[int, int] | None
    """Patches (H,W) of an image."""

    def text(self, texts: TokenTexts | None) -> str:
        """The token, or row and column of the patch as `positions` takes them."""
        if texts is not None:
            return texts(self.token_ids)[self.position] or texts.alone(
                self.token_ids[self.position]
            )
        if self.position < 0 or self.grid is None:
            return ""
        return "{},{}".format(*divmod(self.position, self.grid[1]))


@dataclass(frozen=True)
class OnInput:
    """Of each latent (F,) fp32, over the input's tokens or patches in the store's scope: the value
    of largest size, with its sign, where that is, and the mean."""

    largest: torch.Tensor
    place: torch.Tensor
    """(F,) int64: the first row of the largest value, a number in `places`; 0 where the latent is
    not active."""
    mean: torch.Tensor
    places: list[Place]
    """Of each row of the input."""


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

    specs = [store.spec for store in stores]
    if inspected.store.spec.modality == "text":
        processor = FromFolder(str(Path(inspected.store.path) / "tokenizer"))
    models = input_models(specs, live, processor)

    # of every latent the value of largest size, with its sign, and the mean
    largest_F = torch.zeros(inspected.model.latents)
    sum_F = torch.zeros(inspected.model.latents, dtype=torch.float64)
    place_F = torch.zeros(inspected.model.latents, dtype=torch.int64)
    places: list[Place] = []
    for given in input_rows(document, specs, models):
        code_BF = inspected.model.encode(given.x_BD).to_dense()
        sum_F += code_BF.sum(0, dtype=torch.float64)
        before_F, largest_F = largest_F, larger(largest_F, code_BF)
        if len(code_BF):
            row_F = (code_BF == largest_F).byte().argmax(0)
            place_F = torch.where(largest_F != before_F, len(places) + row_F, place_F)
        places += [Place(at, given.token_ids, given.grid) for at in given.positions]
    if not places:
        raise no_rows()
    return OnInput(largest_F, place_F, (sum_F / len(places)).float(), places)
