"""Steer an image classifier by a dictionary's latents, and measure what that does to its classes:
`steer_image`.

The effect of a dose is on a class that is chosen without the image: the one that the largest dose
raises most on an image of the mean color, whose pixels are 0 after the image processor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from saekit.display import brief
from saekit.errors import UsageError, check_choice, opt
from saekit.harvesting.classifiers import class_names, class_number, load_classifier, no_head
from saekit.harvesting.images import ImageTokens, prepared
from saekit.harvesting.models import LiveModel
from saekit.harvesting.named_pictures import named_picture
from saekit.intervention.attach import Hooks, attach
from saekit.intervention.controls import Controls, controls_of
from saekit.intervention.doses import (
    Edit,
    Response,
    check_dose,
    control_added,
    dose_frame,
    edit_of,
    is_monotone,
    model_name_of,
    scope,
    verdict,
)
from saekit.intervention.live import Live
from saekit.intervention.positions import IMAGE_NAMES, Name, Positions
from saekit.intervention.reconstruct import log_probabilities
from saekit.training.checkpoints import ModelLike, path_or_model
from saekit.types import Progress

BATCH = 64  # images, each with another patch edited
_PATCHES = re.compile(r"[0-9]{1,4},[0-9]{1,4}(\+[0-9]{1,4},[0-9]{1,4})*")


@dataclass(frozen=True)
class ClassChange:
    label: str
    clean: float
    """Probability."""
    steered: float


@dataclass(frozen=True)
class ImageDose(Response):
    """A Response. effect: change of the log-probability of the target class."""

    probabilities: list[float]
    """Of all classes, in the order of the result's `classes`."""


@dataclass(frozen=True)
class ImageSteerResult:
    edits: list[str]
    classes: list[ClassChange]
    """All, the most probable first."""
    kl: float
    """KL(clean || steered) over the classes, in nats."""
    patches: list[list[float]]
    """(H,W): the same KL where only this patch is edited."""
    targets: list[str]
    """The class whose probability is the effect of a dose; [] without doses."""
    doses: list[ImageDose]
    targets_are_named: bool = False
    """By the caller; otherwise the largest dose chose the class."""
    report: str | None = None
    """The path of the page, where one was written."""

    def __repr__(self) -> str:
        first = max(self.classes, key=lambda change: change.clean)
        classes = {"clean": first.label, "steered": self.classes[0].label, "kl": self.kl}
        ends = {"verdict": self.verdict or None, "report": self.report}
        return brief(self, {"edits": self.edits, **classes, **ends})

    def to_pandas(self) -> Any:
        """A DataFrame of the doses, one row each. Raises MissingError without pandas."""
        return dose_frame(self.doses)

    @property
    def is_monotone(self) -> bool:
        """Whether a larger dose never has a smaller effect."""
        return is_monotone(self.doses)

    @property
    def verdict(self) -> str:
        """What the doses show, in a sentence; "" without doses."""
        return verdict(self.doses)

    @property
    def scope(self) -> str:
        """What the verdict tests and what it does not; "" without doses."""
        return scope(self.targets, self.targets_are_named)

    def by_dose(self, most: int) -> tuple[list[str], list[list[float]]]:
        """(classes, their probabilities at each dose): the targets and the most probable others, at
        most so many."""
        labels = [change.label for change in self.classes]
        order = sorted(range(len(labels)), key=lambda number: labels[number] not in self.targets)
        shown = order[:most]
        rows = [[dose.probabilities[number] for number in shown] for dose in self.doses]
        return [labels[number] for number in shown], rows


def steer_image(
    checkpoint: ModelLike,
    image: str | Path | torch.Tensor,
    latents: Mapping[int, float],
    *,
    ablate: Sequence[int] = (),
    dose: Sequence[float] = (),
    model: LiveModel | str | None = None,
    hook: Hooks | None = None,
    error: bool = True,
    raw: bool = False,
    maxima: torch.Tensor | None = None,
    positions: Positions | str = "all",
    seed: int = 0,
    targets: Sequence[str | int] = (),
    partial: Callable[[ImageSteerResult], None] = lambda _: None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> ImageSteerResult:
    """Class probabilities of an image with latents of a dictionary added or ablated.

    Parameters
        checkpoint: an autoencoder or transcoder, as `attach` takes it.
        image: a file, or pixel values (C,h,w) or (1,C,h,w) as the model takes them.
        latents, ablate, dose, hook, error, raw, maxima: as for `steer_text`.
        model: the classifier, loaded with its head, or its name; None: the one that the checkpoint
            was trained on.
        positions: "all", "cls", "patches", a mask of the grid (H,W), or patches by row and column,
            such as "2,3+2,4".
        seed: of the controls.
        targets: the class, by name or number, whose probability is the effect of a dose; ():
            the one that the largest dose raises most on an image of the mean color.
        partial: called with the result so far after the classes are known and after each dose.

    Raises UsageError, DataError and MissingError, also for a model without a head.
    """
    # the model, the image, and the edits
    check_dose(dose, latents, ablate)
    if len(targets) > 1:
        raise UsageError(f"{opt('targets')}: an image has one target class", "give one of them")
    source = path_or_model(checkpoint)
    model = model_name_of(source) if model is None else model
    live_model = load_classifier(model) if isinstance(model, str) else model
    picture = SteeredImage(live_model, image, positions, error)
    named = [class_number(label, live_model) for label in targets]

    with torch.inference_mode(), attach(live_model, source, hook, maxima=maxima) as live:
        result = _beside(picture, live, edit_of(latents, ablate, raw))
        partial(result)
        if not dose:
            return result
        # the doses
        (latent,) = latents
        largest = edit_of({latent: max(map(abs, dose))}, (), raw)
        target = named[0] if named else picture.raised_by(live, largest)
        result = replace(result, targets=[picture.names[target]], targets_are_named=bool(named))
        controls = controls_of(live[0], latent, raw, seed)
        for number, strength in enumerate(dose):
            progress(Progress("steer", number, len(dose), unit="doses"))
            edit = edit_of({latent: strength}, (), raw)
            measured = _dose(picture, live, edit, strength, target, controls)
            result = replace(result, doses=[*result.doses, measured])
            partial(result)
        progress(Progress("steer", len(dose), len(dose), unit="doses"))
    return result


class SteeredImage:
    """An image, and what a classifier makes of it. Raises the errors of `steer_image`."""

    def __init__(
        self,
        live_model: LiveModel,
        image: str | Path | torch.Tensor,
        positions: Positions | str,
        error: bool,
    ) -> None:
        layout = live_model.image_tokens
        if layout is None or getattr(live_model.module.config, "id2label", None) is None:
            raise no_head(live_model.name)
        self.live_model, self.layout, self.error = live_model, layout, error
        self.module: Any = live_model.module
        self.names = class_names(live_model)
        self.pixels = _pixels(image, live_model)
        self.positions: Positions = _named_patches(positions, layout)

    def log_p(
        self,
        live: Live,
        edit: Edit | None = None,
        where: Positions | None = None,
        count: int = 1,
        blank: bool = False,
    ) -> torch.Tensor:
        """(count,V): of copies of the image, or of one of the mean color, with an edit at `where`,
        by default at the positions asked for."""
        live.clear()
        live[0].keep_error(self.error or edit is None)
        if edit is not None:
            edit(live, self.positions if where is None else where)
        return self._scored(torch.zeros_like(self.pixels) if blank else self.pixels, count)

    def controlled(self, live: Live, controls: Controls, strength: float) -> list[torch.Tensor]:
        """[(C,V)] of each kind of control."""
        live.clear()
        live[0].keep_error(True)
        scored = []
        for kind in controls.kinds:
            with control_added(self.module, controls, kind, strength, self.positions) as count:
                scored.append(self._scored(self.pixels, count))
        return scored

    def raised_by(self, live: Live, edit: Edit) -> int:
        """The class that an edit of all positions raises most on an image of the mean color."""
        before_V = self.log_p(live, blank=True)[0]
        return int((self.log_p(live, edit, "all", blank=True)[0] - before_V).argmax())

    def patch_by_patch(self, live: Live, edit: Edit, clean_V: torch.Tensor) -> list[list[float]]:
        """(H,W): KL(clean || steered) where only one patch is edited."""
        rows, columns = self.layout.grid
        one_NHW = torch.eye(rows * columns, dtype=torch.bool).view(-1, rows, columns)
        kls = [
            divergences(clean_V, self.log_p(live, edit, masks, len(masks)))
            for masks in one_NHW.split(BATCH)
        ]
        return torch.cat(kls).view(rows, columns).tolist()

    def _scored(self, pixels: torch.Tensor, count: int) -> torch.Tensor:
        output = self.module(pixel_values=pixels.expand(count, -1, -1, -1))
        if "logits" not in output:
            raise no_head(self.live_model.name)
        return log_probabilities(output.logits)


def divergences(clean_V: torch.Tensor, steered_NV: torch.Tensor) -> torch.Tensor:
    """(N,): KL(clean || steered), in nats."""
    return (clean_V.exp() * (clean_V - steered_NV)).sum(1)


def _beside(picture: SteeredImage, live: Live, edit: Edit) -> ImageSteerResult:
    """The classes before and after, and the map of patches."""
    clean_V, steered_V = picture.log_p(live)[0], picture.log_p(live, edit)[0]
    edits = live.edits
    changes = [
        ClassChange(
            picture.names[number], float(clean_V[number].exp()), float(steered_V[number].exp())
        )
        for number in clean_V.argsort(descending=True).tolist()
    ]
    kl = float(divergences(clean_V, steered_V[None])[0])
    patches = picture.patch_by_patch(live, edit, clean_V)
    return ImageSteerResult(edits, changes, kl, patches, targets=[], doses=[])


def _dose(
    picture: SteeredImage,
    live: Live,
    edit: Edit,
    strength: float,
    target: int,
    controls: Controls,
) -> ImageDose:
    clean_V, steered_V = picture.log_p(live)[0], picture.log_p(live, edit)[0]
    directions, latents = (
        (log_p_CV[:, target] - clean_V[target]).tolist()
        for log_p_CV in picture.controlled(live, controls, strength)
    )
    order = clean_V.argsort(descending=True)
    return ImageDose(
        strength,
        float(steered_V[target] - clean_V[target]),
        float(divergences(clean_V, steered_V[None])[0]),
        directions,
        latents,
        steered_V[order].exp().tolist(),
    )


def _named_patches(positions: Positions | str, layout: ImageTokens) -> Positions:
    """A mask (H,W) of patches that are given as "2,3+2,4"; other positions as they are. Raises
    UsageError for other texts, and for a patch outside of the grid."""
    if not isinstance(positions, str):
        return positions
    if not _PATCHES.fullmatch(positions):
        check_choice("positions", positions, [*IMAGE_NAMES, "ROW,COLUMN of a patch"])
        return cast(Name, positions)
    mask = torch.zeros(layout.grid, dtype=torch.bool)
    for patch in positions.split("+"):
        row, column = map(int, patch.split(","))
        if row >= layout.grid[0] or column >= layout.grid[1]:
            rows, columns = layout.grid
            raise UsageError(
                f"{opt('positions', positions)}: there are {rows} rows and {columns} columns of"
                " patches, counted from 0"
            )
        mask[row, column] = True
    return mask


def _pixels(image: str | Path | torch.Tensor, live_model: LiveModel) -> torch.Tensor:
    """(1,C,h,w) on the model's device, in its dtype."""
    if isinstance(image, torch.Tensor):
        pixels = image[None] if image.ndim == 3 else image
        if pixels.ndim != 4 or len(pixels) != 1:
            raise UsageError(
                f"{opt('image')} has the shape {tuple(image.shape)}, not (C,h,w)",
                "give one image",
            )
    else:
        pixels = prepared([named_picture(image)], live_model.processor)
    return pixels.to(live_model.device, live_model.dtype)
