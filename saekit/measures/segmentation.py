"""How well a predicted mask covers the true one."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saekit.errors import DataError


@dataclass(frozen=True)
class IoU:
    pooled: float
    """Pixels in both masks over pixels in either, counted over all images: large objects count
    more."""
    mean: float
    """The mean of the same ratio of each image: every image counts the same."""
    images: int


def iou(prediction: torch.Tensor, mask: torch.Tensor, threshold: float = 0.5) -> IoU:
    """Intersection over union of the pixels above `threshold` in the prediction and in the mask,
    both (N, ...).

    An image with neither predicted nor true pixels counts as a full match, 1. Raises DataError when
    the shapes differ or there is no image.
    """
    if prediction.shape != mask.shape or len(mask) == 0:
        raise DataError(
            f"a prediction of shape {tuple(prediction.shape)} for masks of shape"
            f" {tuple(mask.shape)}"
        )
    ours, truth = (
        t.flatten(1) > threshold if t.dtype != torch.bool else t.flatten(1)
        for t in (prediction, mask)
    )
    both, either = (ours & truth).sum(1), (ours | truth).sum(1)
    per_image = torch.where(either > 0, both.double() / either.clamp(min=1), 1.0)
    pooled = (both.sum().double() / either.sum()).item() if either.sum() > 0 else 1.0
    return IoU(pooled, per_image.mean().item(), len(mask))
