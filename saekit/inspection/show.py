"""From a stored row back to something that a person can read: the tokens of a context, an image as
the model saw it."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from saekit.errors import SaekitError
from saekit.harvesting.images import image_processor, prepared
from saekit.inspection.tokens import token_texts
from saekit.store.reader import Store
from saekit.store.stack import StackedStore

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Thumbnails", "token_texts"]
# pixels of the longer side; smaller images stay as they are and the page enlarges them
THUMBNAIL = 224


class Thumbnails:
    """Encoded images by key (a hash of the pixels), made once however many latents show them.

    The page draws the patches of the model over them, so they are what the image processor passes
    to the model: resized, cropped and padded. Where the processor is not available they are the
    whole images, and `note` says so.
    """

    def __init__(self, store: Store | StackedStore, data: Any = None) -> None:
        """`data`: the images themselves, where the store's were in memory. Raises what
        `open_data_of` does."""
        from saekit.harvesting.sources import open_data_of

        self._data = open_data_of(store.spec, store.origin.manifest.plan.get("data"), data)
        self._keys: dict[str, str] = {}
        self.images: dict[str, bytes] = {}
        self.note = ""
        self._view = None
        if not store.spec.is_raw:
            try:
                self._view = ModelView(store.spec.model, store.spec.grid)
            except SaekitError as error:
                self.note = (
                    "Pictures are shown whole; the model may have seen only a part of them, so heat"
                    f" maps may be misplaced: {error.message}."
                )

    def key(self, ref: str) -> str:
        if ref not in self._keys:
            image = self._data.image(ref)
            if self._view is not None:
                image = self._view(image)
            image = image if image.mode in ("L", "RGB") else image.convert("RGB")
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            encoded = io.BytesIO()
            image.save(encoded, "PNG")
            key = hashlib.sha256(encoded.getvalue()).hexdigest()[:16]
            self._keys[ref], self.images[key] = key, encoded.getvalue()
        return self._keys[ref]


class ModelView:
    """Pictures as a model sees them: the pixels of its image processor, without the normalization.
    Raises MissingError."""

    def __init__(self, model: str, grid: tuple[int, int] | None) -> None:
        self._processor, self._channels, self._patch = _processor_of(model)
        self._grid = grid

    def __call__(self, image: Image) -> Image:
        from PIL import Image as pillow

        image = image.convert("L" if self._channels == 1 else "RGB")
        pixels_Chw = prepared([image], self._processor)[0].float()
        settings = self._processor
        if getattr(settings, "do_normalize", False):
            mean, std = (
                torch.as_tensor(value, dtype=torch.float32).reshape(-1, 1, 1)
                for value in (settings.image_mean, settings.image_std)
            )
            pixels_Chw = pixels_Chw * std + mean
        rescaled = getattr(settings, "do_rescale", True)
        factor = getattr(settings, "rescale_factor", 1 / 255) if rescaled else 1
        pixels_Chw = pixels_Chw / (factor * 255)
        # the model does not see pixels after the last whole patch
        if self._grid is not None and self._patch is not None:
            pixels_Chw = pixels_Chw[
                :, : self._grid[0] * self._patch[0], : self._grid[1] * self._patch[1]
            ]
        bytes_hwC = (pixels_Chw.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        return pillow.fromarray(
            np.ascontiguousarray(bytes_hwC[:, :, 0] if bytes_hwC.shape[2] == 1 else bytes_hwC)
        )


def _processor_of(model: str) -> tuple[Any, int, tuple[int, int] | None]:
    """(image processor, channels, patch size (h, w) where the config has one), without the model's
    weights. Raises MissingError."""
    from transformers import AutoConfig

    from saekit.embedded.silence import quiet_transformers
    from saekit.errors import MissingError
    from saekit.harvesting.location import locate_model
    from saekit.harvesting.reading import model_reading

    with model_reading("model", model, model):
        where, _ = locate_model(model)
    with quiet_transformers(), model_reading("image processor", model, where):
        config = AutoConfig.from_pretrained(where, trust_remote_code=False)
        processor, _ = image_processor(where)
    if processor is None:
        raise MissingError(
            f"{model} has no image processor", "put preprocessor_config.json next to its weights"
        )
    config = getattr(config, "vision_config", config)
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, int):
        patch = (patch, patch)
    return processor, getattr(config, "num_channels", 3), (patch[0], patch[1]) if patch else None
