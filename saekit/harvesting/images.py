"""Images for a vision model: its processor, and the layout of its tokens."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from saekit.embedded.silence import quiet_transformers
from saekit.errors import DataError, SaekitError
from saekit.harvesting.blocks import tower_path


@dataclass(frozen=True)
class ImageTokens:
    """The layout of an image model's tokens: [class token] [registers] patches, row-major."""

    has_cls: bool
    registers: int
    grid: tuple[int, int]
    size: tuple[int, int]  # pixels (h, w) after the image processor
    channels: int
    model_size: tuple[int, int] | None = None  # pixels in the model's config

    @property
    def count(self) -> int:
        return int(self.has_cls) + self.registers + self.grid[0] * self.grid[1]

    def account(self) -> str:
        rows, columns = self.grid
        return f"{int(self.has_cls)} class, {self.registers} register, {rows}x{columns} patch"

    def size_conflict(self, name: str) -> tuple[str, str] | None:
        """(why a forward pass may fail, the next step); None when the sizes agree. Models that
        interpolate their positions accept other sizes too."""
        if self.model_size is None or self.model_size == self.size:
            return None
        (h, w), (height, width) = self.size, self.model_size
        return (
            f"the image processor of {name} gives {h}x{w} pixels, the model takes {height}x{width}",
            'set "size" (and "crop_size", if it has one) in its preprocessor_config.json to'
            f' {{"height": {height}, "width": {width}}}',
        )


_LARGEST = 8192  # pixels per side
# Modules after the last block, whose parameters are not tokens of the sequence (AIMv2's cls_token).
_POOLING = ("head", "pooler")


def image_processor(
    where: str, trust_remote_code: bool = False, revision: str | None = None
) -> tuple[Any, tuple[str, ...]]:
    """(processor, notes). Without torchvision AutoImageProcessor may refuse (transformers 5.17 for
    every model, 5.23 for DINOv3); then the processor's PIL version is used, or, if there is none,
    ViT's, which has the same settings (size, mean, std). Raises the errors of transformers."""
    from transformers import AutoImageProcessor
    from transformers.utils.import_utils import is_torchvision_available

    try:
        processor = AutoImageProcessor.from_pretrained(
            where, revision=revision, trust_remote_code=trust_remote_code
        )
        return processor, ()
    except (ImportError, OSError, ValueError) as error:
        if is_torchvision_available() or "trust_remote_code" in str(error):
            raise
    return pil_processor(where, revision)


def pil_processor(where: str, revision: str | None = None) -> tuple[Any, tuple[str, ...]]:
    """(processor, notes): the PIL version of the image processor in `where`."""
    import transformers

    vit, revision = transformers.ViTImageProcessorPil, revision or "main"
    settings, _ = vit.get_image_processor_dict(where, revision=revision)
    named = str(
        settings.get("image_processor_type")
        or settings.get("feature_extractor_type")
        or "ViTImageProcessor"
    )
    pil = named.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor") + "Pil"
    if hasattr(transformers, pil):
        kind = getattr(transformers, pil)
        return kind.from_pretrained(where, revision=revision, trust_remote_code=False), ()
    if not hasattr(transformers, named):
        raise ValueError(f"{named} is not an image processor that transformers knows")
    note = (
        "torchvision is not installed: images are resized by PIL, which rounds to 8 bits, unlike"
        f" {named}"
    )
    return vit.from_pretrained(where, revision=revision, trust_remote_code=False), (note,)


def image_tokens(module: nn.Module, processor: Any, name: str) -> ImageTokens:
    """From the parameters and config of the tower, and the actual output size of the processor."""
    tower = module.get_submodule(tower_path(module))
    config: Any = tower.config
    masked = getattr(config, "mask_ratio", 0)
    if masked and _takes_noise(tower):
        raise DataError(
            f"{name} drops {masked:.0%} of the patches of an image at random (mask_ratio), so its"
            " rows have no fixed positions",
            'set "mask_ratio": 0.0 in its config.json: every patch is then read, in order',
        )
    # Token parameters and image size.
    tokens = {
        path.rsplit(".", 1)[-1]
        for path, _ in tower.named_parameters()
        if not set(path.split(".")) & {*_POOLING}
    }
    channels = getattr(config, "num_channels", 3)
    _check_request(processor, name)
    height, width = prepared([blank_image(channels)], processor).shape[-2:]
    patch = getattr(config, "patch_size", None)
    if not patch:
        raise DataError(
            f"{name} is a vision model without patches of one size",
            "choose a ViT, CLIP, SigLIP or DINO model",
        )
    rows, columns = _pair(patch)
    if height < rows or width < columns:
        raise DataError(
            f"the image processor of {name} gives {height}x{width} pixels, less than one patch of"
            f" {rows}x{columns}",
            'check "size" and "crop_size" in its preprocessor_config.json',
        )
    size = getattr(config, "image_size", None)
    return ImageTokens(
        has_cls=bool(tokens & {"cls_token", "class_embedding"}),
        # DeiT's distillation token is, like a register, a learned token that is not a patch.
        registers=getattr(config, "num_register_tokens", 0) * ("register_tokens" in tokens)
        + ("distillation_token" in tokens),
        grid=(height // rows, width // columns),
        size=(height, width),
        channels=channels,
        model_size=_pair(size) if size else None,
    )


def _check_request(processor: Any, name: str) -> None:
    """A side of 100,000 pixels in a few bytes of JSON would fill the memory before we could check
    the result."""
    for setting in ("size", "crop_size"):
        size = getattr(processor, setting, None)
        sides = [side for side in dict(size).values() if isinstance(side, int)] if size else []
        if max(sides, default=0) > _LARGEST:
            raise DataError(
                f"the image processor of {name} asks for {max(sides)} pixels per side ({setting})",
                f"at most {_LARGEST} are supported: fix its preprocessor_config.json",
            )


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _takes_noise(tower: nn.Module) -> bool:
    return "noise" in inspect.signature(tower.forward).parameters


def ordered_noise(
    tower: nn.Module, tokens: ImageTokens, inputs: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Inputs for ViT-MAE, which shuffles patches by the order of a noise, even when it drops none:
    rising numbers keep every patch at its place."""
    if not _takes_noise(tower) or "noise" in inputs:
        return {}
    pixels_BChw, patches = inputs["pixel_values"], tokens.grid[0] * tokens.grid[1]
    order = torch.arange(patches, dtype=torch.float32, device=pixels_BChw.device)
    return {"noise": order.expand(len(pixels_BChw), -1)}


def blank_image(channels: int) -> Any:
    from PIL import Image

    return Image.new("L" if channels == 1 else "RGB", (32, 32))


def prepared(images: list[Any], processor: Any) -> torch.Tensor:
    """pixel_values (B,C,h,w) of PIL images, through the model's image processor. Raises DataError
    when it fails or its outputs differ in size."""
    try:
        with quiet_transformers():
            pixels = torch.as_tensor(processor(images=images, return_tensors="pt")["pixel_values"])
    except SaekitError:
        raise
    except Exception as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        sizes = sorted({"{1}x{0}".format(*image.size) for image in images})
        cause = (
            f"images of different sizes ({', '.join(sizes[:3])})"
            if len(sizes) > 1
            else f"images of {sizes[0]} pixels"
        )
        raise DataError(
            f"the image processor ({type(processor).__name__}) fails on {cause}: {line}",
            "its preprocessor_config.json must resize to one size; or resize the images first",
        ) from error
    if pixels.ndim != 4:
        raise DataError(
            f"the image processor ({type(processor).__name__}) gives pixel_values of shape"
            f" {tuple(pixels.shape)}, not images of one size",
            "choose a ViT, CLIP, SigLIP or DINO model; models that cut an image into a varying"
            " number of patches are not supported",
        )
    return pixels
