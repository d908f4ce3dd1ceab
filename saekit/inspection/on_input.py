"""Which latents a text or an image activates, and what one of them does all along it: the input
through the model, and its hidden states through the dictionary."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from saekit.errors import DataError, opt
from saekit.harvesting.models import FromFolder
from saekit.harvesting.named_pictures import named_picture
from saekit.harvesting.sources import Document
from saekit.inspection.inputs import InputRows, input_models, input_rows, larger, no_rows
from saekit.inspection.opening import InspectedModel
from saekit.inspection.search import Ranking, descending
from saekit.inspection.tokens import TokenTexts
from saekit.models.autoencoder import Autoencoder
from saekit.models.codes import fires
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
    context: int = 0
    """The number of its context in the input: short ones are read first."""

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
    followed: list[float] | None = None
    """The value on each row of the one latent that was to be followed."""

    def at(self, latent: int, texts: TokenTexts | None) -> str:
        """Where a latent's largest value is; where it is active nowhere, the first row."""
        return self.places[int(self.place[latent])].text(texts)

    def along(self, texts: TokenTexts | None) -> list[Any] | None:
        """What the followed latent does, in reading order. Of a text [{"token", "value"}], of an
        image its patches, H lists of W values; None for one whose rows are not patches."""
        assert self.followed is not None, "a latent was followed"
        if texts is None:
            return _on_grid(self.places, self.followed)
        in_order = lambda b: (self.places[b].context, self.places[b].position)
        order = sorted(range(len(self.places)), key=in_order)
        written: dict[int, list[str]] = {}
        line = []
        for b in order:
            at = self.places[b]
            if at.context not in written:
                written[at.context] = texts(at.token_ids)
            token = written[at.context][at.position] or texts.alone(at.token_ids[at.position])
            line.append({"token": token, "value": self.followed[b]})
        return line


def _on_grid(places: list[Place], values: list[float]) -> list[list[float]] | None:
    grid = places[0].grid
    if grid is None or all(at.position < 0 for at in places):
        return None
    values_HW = np.zeros(grid)
    for at, value in zip(places, values):
        if at.position >= 0:
            values_HW[divmod(at.position, grid[1])] = value
    return values_HW.tolist()


@torch.no_grad()
def on_input(
    inspected: InspectedModel,
    text: str | None,
    image: str | Path | None,
    live: nn.Module | None,
    processor: Any,
    follow: int | None = None,
) -> OnInput:
    """What the latents do on a text or an image as `named_picture` takes it, `follow` on each of
    its rows. Raises DataError for an input without rows, MissingError."""
    stores = stores_of(inspected.store)
    for store in stores:
        if store.spec.is_raw:
            raise DataError(
                f"{store.path} holds raw data: there is no model to read an input with",
                f"{opt('index')} with the number of a latent",
            )
    remedy = "repair the file or give another"
    picture = None if image is None else named_picture(image, remedy)
    document = Document(0, "input", text, picture)

    specs = [store.spec for store in stores]
    if inspected.store.spec.modality == "text":
        processor = FromFolder(str(Path(inspected.store.path) / "tokenizer"))
    models = input_models(specs, live, processor)

    return over_rows(inspected.model, input_rows(document, specs, models), follow)


@torch.no_grad()
def over_rows(
    dictionary: Autoencoder, rows: Iterable[InputRows], follow: int | None = None
) -> OnInput:
    """What the latents do on an input whose rows are given, `follow` on each of them. Raises
    DataError for an input without rows."""
    latents = dictionary.latents
    device = next(iter(dictionary.state_dict().values())).device
    # of every latent the value of largest size, with its sign, and the mean
    largest_F, place_F = torch.zeros(latents), torch.zeros(latents, dtype=torch.int64)
    sum_F = torch.zeros(latents, dtype=torch.float64)
    places: list[Place] = []
    followed: list[float] = []
    for given in rows:
        code_BF = dictionary.encode(given.x_BD.to(device)).to_dense().cpu()
        sum_F += code_BF.sum(0, dtype=torch.float64)
        before_F, largest_F = largest_F, larger(largest_F, code_BF)
        if len(code_BF):
            row_F = (code_BF == largest_F).byte().argmax(0)
            place_F = torch.where(largest_F != before_F, len(places) + row_F, place_F)
        if follow is not None:
            followed += code_BF[:, follow].tolist()
        places += [Place(at, given.token_ids, given.grid, given.number) for at in given.positions]
    if not places:
        raise no_rows()
    return OnInput(
        largest_F,
        place_F,
        (sum_F / len(places)).float(),
        places,
        followed if follow is not None else None,
    )


def of_input(first: OnInput, second: OnInput | None, by: str, above: float) -> Ranking:
    """Latents that an input activates above `above`, by the size of their largest or mean value
    (`by` max, mean); with a second input, those that the first activates more, by how much more."""
    largest = first.largest.numpy()
    active = fires(first.largest, above).numpy()
    size = _sizes(first, by)
    if second is None:
        figures = {"mean": first.mean.numpy()} if by == "mean" else {}
        return Ranking(descending(size, active), largest, figures)
    other = _sizes(second, by)
    figures = {"difference": size - other, "versus": other}
    return Ranking(descending(size - other, active & (size > other)), largest, figures)


def _sizes(found: OnInput, by: str) -> np.ndarray:
    return (found.largest if by == "max" else found.mean).abs().double().numpy()
