"""The figures that every model is judged by, summed in fp64 over a stream of rows (formulas: DESIGN
4).

Pooled sums, not means of batch means, so the batch size does not matter; the variance is around the
rows' own mean, found in the same pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from saekit.models.codes import Code, firing_counts, row_count
from saekit.types import Output


@dataclass(frozen=True)
class Figures:
    """fvu = sum ||x - x_hat||^2 / sum ||x - mean||^2; mse = mean over rows of the sum over D, raw
    units; cosine = mean cos(x, x_hat); l0 = mean active latents a row; density (F,) = share of rows
    where each is active; dead = share of latents never active. The last three are None for dense
    codes."""

    rows: int
    fvu: float
    mse: float
    cosine: float
    l0: float | None
    dead: float | None
    density: torch.Tensor | None
    others: dict[str, float] = field(default_factory=dict)
    """Means of what the model itself says of each row: `elbo`, in nats."""

    def scalars(self) -> dict[str, float | None]:
        return {
            name: getattr(self, name) for name in ("fvu", "mse", "cosine", "l0", "dead")
        } | self.others


class RowSums:
    """Add batches, then read `figures()`. `active_above` is the model's (None: dense code)."""

    def __init__(self, active_above: float | None) -> None:
        self.active_above = active_above
        self.rows = self.codes = 0  # a model of whole examples has one code for many rows
        self.error = self.squares = self.cosines = 0.0
        # (D,): sums are of x - shift, lest a mean far from 0 drown the variance
        self.shift: torch.Tensor | None = None
        self.total: torch.Tensor | float = 0.0
        self.fired: torch.Tensor | int = 0
        self.examples = 0
        self.others: dict[str, float] = {}

    def add_output(self, x: torch.Tensor, output: Output, mask: torch.Tensor | None = None) -> None:
        """One batch of any layout, (B,D), (B,T,D) or (B,H,W,D); `mask` says which positions are
        rows."""
        D = x.shape[-1]
        rows = slice(None) if mask is None else mask.flatten()
        self.add(x.reshape(-1, D)[rows], output.x_hat.reshape(-1, D)[rows], output.code)
        self.examples += len(x)
        if "elbo" in output.extras:
            self.others["elbo"] = self.others.get("elbo", 0.0) + float(
                output.extras["elbo"].double().sum()
            )

    def add(self, x_BD: torch.Tensor, x_hat_BD: torch.Tensor, code: Code) -> None:
        x, x_hat = x_BD.double(), x_hat_BD.double()
        if self.shift is None and len(x):
            self.shift = x.mean(0)
        shifted = x if self.shift is None else x - self.shift
        self.rows += len(x)
        self.error += float((x - x_hat).square().sum())
        self.squares += float(shifted.square().sum())
        self.total = self.total + shifted.sum(0)
        self.cosines += float(torch.nn.functional.cosine_similarity(x, x_hat, dim=1).sum())
        if self.active_above is not None:
            self.fired = self.fired + firing_counts(code, self.active_above)
            self.codes += row_count(code)

    def figures(self) -> Figures:
        n = self.rows
        variance = self.squares - float((self.total / n).square().sum()) * n
        sparse = self.active_above is not None
        density = self.fired.double() / self.codes if sparse else None
        return Figures(
            n,
            self.error / variance if variance > 0 else float("nan"),
            self.error / n,
            self.cosines / n,
            float(density.sum()) if sparse else None,
            float((self.fired == 0).double().mean()) if sparse else None,
            density,
            {name: total / self.examples for name, total in self.others.items()},
        )
