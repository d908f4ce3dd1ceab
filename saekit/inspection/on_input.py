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
from saekit.store.stack import stores_of


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

    specs = [store.spec for store in stores]
    if inspected.store.spec.modality == "text":
        processor = FromFolder(str(Path(inspected.store.path) / "tokenizer"))
    models = input_models(specs, live, processor)

    # of every latent the value of largest size, with its sign, and the mean
    largest_F = torch.zeros(inspected.model.latents)
    sum_F = torch.zeros(inspected.model.latents, dtype=torch.float64)
    rows = 0
    for given in input_rows(document, specs, models):
        rows += len(given.x_BD)
        code_BF = inspected.model.encode(given.x_BD).to_dense()
        sum_F += code_BF.sum(0, dtype=torch.float64)
        largest_F = larger(largest_F, code_BF)
    if rows == 0:
        raise no_rows()
    return OnInput(largest_F, (sum_F / rows).float())
