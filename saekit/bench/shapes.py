"""What is measured: shapes, rows like hidden states, and autoencoders at a given L0."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from saekit.errors import UsageError, opt
from saekit.models.catalog import build, model_options
from saekit.models.sae import SAE


class Shape(NamedTuple):
    D: int
    F: int
    B: int

    def __str__(self) -> str:
        return f"{self.D}x{self.F}x{self.B}"


SAMPLE = 1024  # rows, for the first weights: these are computed on the CPU
ON_CPU = [Shape(576, 18432, 4096)]
QUICK_ON_CPU = [Shape(576, 18432, 2048)]
ON_GPU = [Shape(768, 24576, 8192), Shape(2304, 73728, 8192), Shape(4096, 131072, 8192)]


def parse_shapes(texts: Iterable[str]) -> list[Shape]:
    """DxFxB ... Raises UsageError."""
    shapes = []
    for text in texts:
        match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
        D, F, B = map(int, match.groups()) if match else (0, 0, 0)
        if 0 in (D, F, B):
            raise UsageError(
                f"{opt('shapes', text)}: write width x latents x rows",
                opt("shapes", "576x18432x4096"),
            )
        shapes.append(Shape(D, F, B))
    return shapes


def hidden_rows(B: int, D: int, seed: int = 0) -> torch.Tensor:
    """(B,D), E||x||^2 = D, on the CPU: rows as hard as hidden states. Two dimensions hold a quarter
    of the norm and one row in forty is four times as large, as after block 9 of SmolLM2-135M
    (docs/notes/kernels.md)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(B, D, generator=generator)
    x[:, :2] *= (D / 8) ** 0.5
    x[::40] *= 4
    return x * (D / x.square().sum(1).mean()).sqrt()


def active_options(sparsity: str, active: float) -> dict[str, Any]:
    """Options that give a variant `active` latents per row. Each of matching pursuit's is a pass of
    the encoder: it keeps its own default."""
    if sparsity == "matching-pursuit":
        return {}
    takes_k = "k" in model_options("sae", sparsity)
    return {"k": int(active)} if takes_k else {"target_l0": active}


def sae_for(shape: Shape, x_BD: torch.Tensor, sparsity: str, active: float, seed: int = 0) -> SAE:
    """An initialized SAE on the device of x, with `active` latents per row on average, from its
    first step on."""
    options = {"latents": shape.F, "sparsity": sparsity, **active_options(sparsity, active)}
    if "start_l0" in model_options("sae", sparsity):
        options["start_l0"] = active
    model = build("sae", shape.D, options)
    assert isinstance(model, SAE)
    model.initialise_from(x_BD[:SAMPLE].cpu(), torch.Generator().manual_seed(seed))
    return model.to(x_BD.device)
