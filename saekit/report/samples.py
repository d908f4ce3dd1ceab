"""Samples of a model: a section of a report, and a file of pictures or of the values themselves."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saekit.errors import DataError, UsageError, opt
from saekit.evaluation.models import EvaluatedModel
from saekit.interop.opening import open_checkpoint
from saekit.models.vae import VAE
from saekit.report.images import sheet
from saekit.report.page import Panel, figure, note, picture, pictures
from saekit.report.pictures import image_shape
from saekit.store.files import write_bytes, write_tensors
from saekit.training.health import drawn
from saekit.training.sampling import sample
from saekit.types import ActivationSpec

SUFFIXES = (".png", ".safetensors")
COLUMNS, SHOWN = 10, 60  # of a sheet, and of one in a report; classes are drawn in turn
ON_SCREEN = 56  # pixels that an image has at least


@dataclass(frozen=True)
class SampledFile:
    path: str
    n: int
    shape: tuple[int, ...]
    """Of one sample."""
    label: str | None
    seed: int


def write_sample(
    checkpoint: str | Path,
    out: str | Path,
    *,
    n: int = 64,
    label: str | int | None = None,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> SampledFile:
    """Draw `n` samples (saekit.sample) and write them to `out`: a .png of all of them, ten side by
    side, where a checkpoint's rows are pictures, or a .safetensors with a tensor `x` (n,*example).

    Raises UsageError (the suffix, a label, rows that are not pictures), DataError (`out` exists).
    """
    path = Path(out)
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{opt('out', out)} ends in neither of {', '.join(SUFFIXES)}")
    if path.exists() and not overwrite:
        raise DataError(f"{path} exists", opt("overwrite", True))
    x = sample(checkpoint, n, label=label, seed=seed, device=device)
    if path.suffix == ".png":
        write_bytes(path, _png(x, str(checkpoint)))
    else:
        write_tensors(path, {"x": x.contiguous()})
    text = None if label is None else str(label)
    return SampledFile(str(path), len(x), tuple(x.shape[1:]), text, seed)


def _png(x: torch.Tensor, checkpoint: str) -> bytes:
    spec = ActivationSpec.from_json(open_checkpoint(checkpoint).config["spec"])
    shape = image_shape(spec, x.shape[-1]) if x.dim() == 2 else None
    if shape is None:
        raise UsageError(
            f"the rows of {checkpoint} are not pictures", opt("out", "samples.safetensors")
        )
    file = io.BytesIO()
    _sheet(x, shape).save(file, "PNG", optimize=True)
    return file.getvalue()


def _sheet(x: torch.Tensor, shape: tuple[int, int, int]) -> Any:
    zoom = max(-(-ON_SCREEN // shape[1]), 1)
    return sheet(x.reshape(-1, *shape), COLUMNS, zoom=zoom)


def samples_panel(
    models: Sequence[EvaluatedModel], spec: ActivationSpec, seed: int
) -> Panel | None:
    """What the runs draw; VAEs, whose latents say more, have a section of their own."""
    items = []
    for evaluated in models:
        model = evaluated.model
        shape = image_shape(spec, model.d_in) if evaluated.role == "run" else None
        if shape is None or not model.generates or isinstance(model, VAE):
            continue
        x = drawn(model, SHOWN, torch.Generator().manual_seed(seed))
        caption = f"{evaluated.name}: {SHOWN} samples"
        items.append(figure(picture(_sheet(x, shape), caption), caption))
    text = (
        "Rows that the models draw, with codes from N(0, I); a model of classes takes them in turn."
    )
    return Panel("Samples", note(text) + pictures(items)) if items else None
