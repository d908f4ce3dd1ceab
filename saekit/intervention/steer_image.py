"""Steer an image classifier by a dictionary's latents, and measure what that does to its classes:
`steer_image`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saekit.errors import UsageError, opt
from saekit.harvesting.classifiers import class_names, load_classifier, no_head
from saekit.harvesting.images import ImageTokens, prepared
from saekit.harvesting.models import LiveModel
from saekit.harvesting.pictures import read_picture
from saekit.intervention.attach import Hooks, attach
from saekit.intervention.positions import Positions
from saekit.intervention.reconstruct import log_probabilities
from saekit.intervention.steer import edit_latents, model_name_of
from saekit.training.checkpoints import ModelLike, path_or_model

BATCH = 64  # images, each with another patch edited


@dataclass(frozen=True)
class ClassChange:
    label: str
    clean: float
    """Probability."""
    steered: float


@dataclass(frozen=True)
class ImageSteerResult:
    edits: list[str]
    classes: list[ClassChange]
    """All, the most probable first."""
    kl: float
    """KL(clean || steered) over the classes, in nats."""
    patches: list[list[float]]
    """(H,W): the same KL where only this patch is edited."""
    report: str | None = None
    """The path of the page, where one was written."""


def steer_image(
    checkpoint: ModelLike,
    image: str | Path | torch.Tensor,
    latents: Mapping[int, float],
    *,
    ablate: Sequence[int] = (),
    model: LiveModel | str | None = None,
    hook: Hooks | None = None,
    error: bool = True,
    raw: bool = False,
    maxima: torch.Tensor | None = None,
    positions: Positions = "all",
) -> ImageSteerResult:
    """Class probabilities of an image with latents of a dictionary added or ablated.

    Parameters
        checkpoint: an autoencoder or transcoder, as `attach` takes it.
        image: a file, or pixel values (C,h,w) or (1,C,h,w) as the model takes them.
        latents, ablate, hook, error, raw, maxima: as for `steer_text`.
        model: the classifier, loaded with its head, or its name; None: the one that the checkpoint
            was trained on.
        positions: "all", "cls", "patches" or a mask of the grid (H,W).

    Raises UsageError, DataError and MissingError, also for a model without a head.
    """
    source = path_or_model(checkpoint)
    model = model_name_of(source) if model is None else model
    live_model = load_classifier(model) if isinstance(model, str) else model
    layout, module = live_model.image_tokens, live_model.module
    if layout is None or getattr(module.config, "id2label", None) is None:
        raise no_head(live_model.name)
    pixels = _pixels(image, live_model)

    with torch.inference_mode(), attach(live_model, source, hook, maxima=maxima) as live:

        def log_p(where: Positions | None, count: int = 1) -> torch.Tensor:
            """(count,V), with the edits at these positions; None: without."""
            live.clear()
            live[0].keep_error(error or where is None)
            if where is not None:
                edit_latents(live, latents, ablate, raw, where)
            output = module(pixel_values=pixels.expand(count, -1, -1, -1))
            if "logits" not in output:
                raise no_head(live_model.name)
            return log_probabilities(output.logits)

        clean_V, steered_V = log_p(None)[0], log_p(positions)[0]
        edits = live.edits
        kl_N = _patch_by_patch(layout, clean_V, log_p)
    names = class_names(live_model)
    changes = [
        ClassChange(names[number], float(clean_V[number].exp()), float(steered_V[number].exp()))
        for number in clean_V.argsort(descending=True).tolist()
    ]
    kl = float(_divergences(clean_V, steered_V[None])[0])
    return ImageSteerResult(edits, changes, kl, kl_N.view(layout.grid).tolist())


def _patch_by_patch(layout: ImageTokens, clean_V: torch.Tensor, log_p: Any) -> torch.Tensor:
    """(H*W,): KL(clean || steered) where only one patch is edited."""
    rows, columns = layout.grid
    one_NHW = torch.eye(rows * columns, dtype=torch.bool).view(-1, rows, columns)
    kls = [_divergences(clean_V, log_p(masks, len(masks))) for masks in one_NHW.split(BATCH)]
    return torch.cat(kls)


def _divergences(clean_V: torch.Tensor, steered_NV: torch.Tensor) -> torch.Tensor:
    """(N,): KL(clean || steered), in nats."""
    return (clean_V.exp() * (clean_V - steered_NV)).sum(1)


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
        pixels = prepared([read_picture(Path(image))], live_model.processor)
    return pixels.to(live_model.device, live_model.dtype)
