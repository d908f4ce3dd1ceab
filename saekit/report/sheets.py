"""Sheets of generated images: samples in one line per class, and paths between codes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from saekit.errors import DataError
from saekit.measures.generation import Decode, interpolate
from saekit.report.images import sheet

if TYPE_CHECKING:
    from PIL import Image

BLANK = 0.5  # mid gray: no sample of that class was drawn


def class_sheet(
    x: torch.Tensor,
    labels: Sequence[str] | np.ndarray,
    names: Sequence[str] | np.ndarray,
    shape: tuple[int, int, int],
    per_class: int = 10,
    zoom: int = 1,
) -> Image.Image:
    """The first `per_class` samples of each class, one line for each of `names` in order.

    x (N, ...) are images of `shape` (H,W,C) in [0, 1], labels (N,) their classes, asked for or
    found by a judge. Places that no sample fills are gray. Raises DataError, NumericsError."""
    if len(x) != len(labels):
        raise DataError(f"{len(labels):,} labels for {len(x):,} samples")
    images, labels = x.reshape(-1, *shape), np.asarray(labels)
    tiles = torch.full((len(names), per_class, *shape), BLANK)
    for line, name in zip(tiles, names):
        chosen = torch.from_numpy(np.flatnonzero(labels == name)[:per_class])
        line[: len(chosen)] = images[chosen]
    return sheet(tiles.flatten(0, 1), per_class, zoom=zoom)


def path_sheet(
    decode: Decode,
    z_BF: torch.Tensor,
    shape: tuple[int, int, int],
    steps: int = 10,
    zoom: int = 1,
) -> Image.Image:
    """Straight paths from each code to the next, one line each: B - 1 lines of `steps` images of
    `shape` (H,W,C)."""
    assert len(z_BF) >= 2
    lines = [interpolate(decode, *ends, steps) for ends in pairwise(z_BF)]
    return sheet(torch.cat(lines).reshape(-1, *shape), steps, zoom=zoom)
