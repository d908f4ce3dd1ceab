"""Images for a vision model: its processor, and which of its tokens are class token, registers and patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from saekit.embedded.silence import quiet_transformers
from saekit.errors import DataError, MissingError
from saekit.harvesting.blocks import tower_path


@dataclass(frozen=True)
class ImageTokens:
    """How an image model lays out its tokens: [class token] [registers] patches, row-major over the grid."""

    has_cls: bool
    registers: int
    grid: tuple[int, int]
    size: tuple[int, int]  # pixels (h, w) that the image processor gives
    channels: int

    @property
    def count(self) -> int:
        return int(self.has_cls) + self.registers + self.grid[0] * self.grid[1]


def image_processor(where: str) -> tuple[Any, tuple[str, ...]]:
    """(processor or None, notes). Without torchvision AutoImageProcessor may refuse (5.17 for every model, 5.23 DINOv3);
    then the processor's PIL edition is taken, or, where there is none, ViT's, which knows the same settings (size, mean, std)."""
    from transformers import AutoImageProcessor
    from transformers.utils import is_torchvision_available

    try:
        return AutoImageProcessor.from_pretrained(where), ()
    except (ImportError, OSError, ValueError):
        if is_torchvision_available():
            return None, ()
    try:
        return pil_processor(where)
    except (OSError, ValueError):
        return None, ()


def pil_processor(where: str) -> tuple[Any, tuple[str, ...]]:
    import transformers

    settings, _ = transformers.ViTImageProcessorPil.get_image_processor_dict(where)
    named = settings.get("image_processor_type") or settings.get("feature_extractor_type") or "ViTImageProcessor"
    pil = named.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor") + "Pil"
    if hasattr(transformers, pil):
        return getattr(transformers, pil).from_pretrained(where), ()
    note = f"torchvision is not installed: images are resized by PIL, which rounds to 8 bits where {named} does not"
    return transformers.ViTImageProcessorPil.from_pretrained(where), (note,)


def image_tokens(module: nn.Module, processor: Any, name: str) -> ImageTokens:
    """From the tower's own parameters and config, with the image size that the processor really gives."""
    tower = module.get_submodule(tower_path(module))
    config = tower.config
    if processor is None:
        raise MissingError(f"{name} has no image processor", "put preprocessor_config.json beside its weights")
    own = {parameter.rsplit(".", 1)[-1] for parameter, _ in tower.named_parameters()}
    channels = getattr(config, "num_channels", 3)
    height, width = prepared([blank_image(channels)], processor).shape[-2:]
    patch = getattr(config, "patch_size", None)
    if not patch:
        raise DataError(f"{name} is a vision model without patches of one size", "choose a ViT, CLIP, SigLIP or DINO model")
    rows, columns = (patch, patch) if isinstance(patch, int) else patch
    return ImageTokens(
        has_cls=bool(own & {"cls_token", "class_embedding"}),
        # DeiT's distillation token is, like a register, a learnt token that is no patch.
        registers=getattr(config, "num_register_tokens", 0) * ("register_tokens" in own) + ("distillation_token" in own),
        grid=(height // rows, width // columns),
        size=(height, width),
        channels=channels,
    )


def blank_image(channels: int) -> Any:
    from PIL import Image

    return Image.new("L" if channels == 1 else "RGB", (32, 32))


def prepared(images: list[Any], processor: Any) -> torch.Tensor:
    """pixel_values (B,C,h,w) of PIL images, through the model's own image processor. DataError when sizes differ after it."""
    try:
        with quiet_transformers():
            return torch.as_tensor(processor(images=images, return_tensors="pt")["pixel_values"])
    except ValueError as error:
        raise DataError(
            f"the image processor gives images of different sizes: {str(error).splitlines()[0]}",
            "resize or crop the images to one size first",
        ) from error
