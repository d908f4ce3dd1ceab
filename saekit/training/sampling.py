"""Rows that a model draws: the verb `sample`."""

from __future__ import annotations

from typing import Annotated

import torch

from saekit.device import pick_device
from saekit.errors import UsageError, opt
from saekit.options import Device, Doc
from saekit.training.checkpoints import ModelLike, for_inference, load
from saekit.training.health import drawn


@torch.no_grad()
def sample(
    checkpoint: Annotated[ModelLike, Doc("Checkpoint folder.", metavar="CKPT", positional=True)],
    n: Annotated[int, Doc("Samples to draw.")] = 64,
    *,
    label: Annotated[
        str | int | None,
        Doc("Class of all samples, for cgan (default: all classes in turn).", metavar="LABEL"),
    ] = None,
    seed: Annotated[int, Doc("Seed of the draws.")] = 0,
    device: Device = "auto",
) -> torch.Tensor:
    """Draw rows that are not in the data, from a model that generates: vae, gan, dcgan, cgan, aae.

    >>> saekit.sample("runs/cgan", 16, label=7).shape
    torch.Size([16, 784])

    Parameters
        checkpoint: what `saekit.load` takes.
        n: how many.
        label: a class of the training's labels, as its text or number.
        seed: equal seeds and n give equal samples; codes are drawn on the CPU, whatever the device.
        device: where they are decoded.

    Returns (n, *example) fp32 on the CPU, in the units of the store: (n,D), or (n,H,W,D) of a model
    of grids. Raises UsageError for a model without a distribution of codes, or for a label that it
    does not know, and what `saekit.load` raises.
    """
    if n < 1:
        raise UsageError(f"{opt('n', n)} must be at least 1")
    if seed < 0:
        raise UsageError(f"{opt('seed', seed)} must not be negative")
    where = pick_device(device)
    model = for_inference(load(checkpoint)).to(where)
    return drawn(model, n, torch.Generator().manual_seed(seed), label)
