"""The metrics that every model is judged by: what each is called, what it means, how it is printed,
and how it is computed (docs/design.md 4).

A new metric of rows is one `Metric` in ROW_METRICS, and a sum in `RowSums` where it needs one: the
verbs, their tables, the pages of `compare`, `sweep` and `inspect`, and checkpoints read this list.
Sums are pooled in fp64, not means of batch means, so the batch size does not matter; the variance
is around the rows' own mean, computed in the same pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from saekit.models.codes import Code, firing_counts, row_count
from saekit.types import Output


@dataclass(frozen=True)
class Metric:
    name: str
    """Key in JSON, and heading of its column."""
    meaning: str
    """For readers of a table, after the name and a colon."""
    form: str = ".4f"
    """Format specification of its values."""
    of: Callable[[RowSums], float | None] | None = None
    """Its value on a pass over rows, None where it does not apply to the model; None for a metric
    that its verb computes."""
    foreign: bool = False
    """For comparison with the tables of other tools: in every JSON, and in the table of `evaluate`
    only."""

    def text(self, value: float | None, missing: str = "-") -> str:
        """The value as tables show it; `missing` where it does not apply or is not a number."""
        return missing if value is None or math.isnan(value) else format(value, self.form)


def _fvu(sums: RowSums) -> float:
    variance = sums.squares - float((sums.total / sums.rows).square().sum()) * sums.rows
    return sums.error / variance if variance > 0 else float("nan")


def _ev_zero(sums: RowSums) -> float:
    # sums are of x - shift: ||x||^2 = ||x - shift||^2 + 2 shift (x - shift) + ||shift||^2
    shift = torch.zeros(()) if sums.shift is None else sums.shift
    about_zero = sums.squares + float((2 * shift * sums.total + sums.rows * shift.square()).sum())
    return 1 - sums.error / about_zero if about_zero > 0 else float("nan")


def _l0(sums: RowSums) -> float | None:
    density = sums.density()
    return None if density is None else float(density.sum())


def _dead(sums: RowSums) -> float | None:
    if sums.active_above is None:
        return None
    return float((torch.as_tensor(sums.fired) == 0).double().mean())


ROW_METRICS = (
    Metric(
        "fvu",
        "squared error as a share of the rows' variance, 0 is perfect, 1 the mean row",
        ".4f",
        _fvu,
    ),
    Metric(
        "ev_zero",
        "1 - squared error as a share of the rows' squared norm, as other tools publish it",
        ".4f",
        _ev_zero,
        foreign=True,
    ),
    Metric(
        "mse",
        "squared error summed over a row's values, mean over rows, in raw units",
        ".4g",
        lambda sums: sums.error / sums.rows,
    ),
    Metric(
        "cosine",
        "between row and reconstruction, mean over rows",
        ".4f",
        lambda sums: sums.cosines / sums.rows,
    ),
    Metric("l0", "active latents per row", ".1f", _l0),
    Metric("dead", "share of latents that no row activates", ".1%", _dead),
)
"""Of every model; l0 and dead apply to sparse codes."""

OUTPUT_METRICS = (Metric("elbo", "evidence lower bound per row or example, in nats", ".3f"),)
"""Means of what a model itself says of each row or example, under this name in Output.extras."""

SAMPLE_METRICS = (
    Metric("diversity", "distance of a sample to the nearest other one, over that of rows", ".3f"),
    Metric("classes", "share of the rows' classes that the samples have", ".1%"),
)
"""Of a model that encodes nothing (saekit.training.health)."""

LOSS_METRICS = (
    Metric("ce_clean", "cross-entropy of the model's predictions, in nats", ".4f"),
    Metric("ce_sae", "the same with the reconstruction in place of the rows", ".4f"),
    Metric("ce_zero", "with zeros in their place", ".4f"),
    Metric("ce_mean", "with the store's mean row in their place", ".4f"),
    Metric("ce_recovered", "(ce_zero - ce_sae) / (ce_zero - ce_clean)", ".4f"),
    Metric("kl_sae", "KL of the clean predictions from those with the reconstruction", ".4f"),
    Metric("kl_zero", "from those with zeros", ".4f"),
    Metric("top1_agreement", "share of predictions that keep their first choice", ".1%"),
)
"""Of the model that the rows came from, run with other rows (saekit.evaluation.recovery)."""

METRICS = {
    metric.name: metric
    for metric in (
        *ROW_METRICS,
        *OUTPUT_METRICS,
        *SAMPLE_METRICS,
        *LOSS_METRICS,
        Metric("dead_train", "share of latents not active in the last training rows", ".1%"),
        Metric("knn", "share of held-out rows whose nearest codes mostly have their label", ".1%"),
        Metric("auroc", "how often an anomaly has a larger error than a row", ".3f"),
        Metric("kl", "divergence of the next token's distribution, in nats", ".4f"),
    )
}
"""Every metric by name."""


@dataclass(frozen=True)
class Figures:
    """The metrics of one pass over rows: `figures["fvu"]`."""

    rows: int
    values: dict[str, float | None]
    density: torch.Tensor | None
    """(F,): share of rows where each latent is active; None for dense codes."""

    def __getitem__(self, name: str) -> float | None:
        return self.values[name]

    def scalars(self) -> dict[str, float | None]:
        return dict(self.values)


class RowSums:
    """Add batches, then read `figures()`. `active_above` is the model's (None: dense code)."""

    def __init__(self, active_above: float | None) -> None:
        self.active_above = active_above
        self.rows = self.codes = 0  # a model of whole examples has one code for many rows
        self.error = self.squares = self.cosines = 0.0
        # (D,): sums are of x - shift, lest a mean far from 0 drown the variance
        self.shift: torch.Tensor | None = None
        self.total: torch.Tensor = torch.zeros(())
        self.fired: torch.Tensor | int = 0
        self.examples = 0
        self.outputs: dict[str, float] = {}

    def add_output(self, x: torch.Tensor, output: Output, mask: torch.Tensor | None = None) -> None:
        """One batch of any layout, (B,D), (B,T,D) or (B,H,W,D); `mask` says which positions are
        rows."""
        D, code = x.shape[-1], output.code
        rows = slice(None) if mask is None else mask.flatten()
        # one code per position, or one for a whole example
        if mask is not None and code.shape[:-1] == mask.shape:
            code = code.view(mask.numel(), code.shape[-1])[rows]
        self.add(x.reshape(-1, D)[rows], output.x_hat.reshape(-1, D)[rows], code)
        self.examples += len(x)
        for metric in OUTPUT_METRICS:
            if metric.name in output.extras:
                value = float(output.extras[metric.name].double().sum())
                self.outputs[metric.name] = self.outputs.get(metric.name, 0.0) + value

    def add(self, x_BD: torch.Tensor, x_hat_BD: torch.Tensor, code: Code) -> None:
        """One batch of rows; `code` is not read where the code is dense."""
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

    def density(self) -> torch.Tensor | None:
        """(F,): share of rows where each latent is active; None for a dense code."""
        if self.active_above is None:
            return None
        return torch.as_tensor(self.fired).double().cpu() / self.codes

    def figures(self) -> Figures:
        values = {metric.name: metric.of(self) for metric in ROW_METRICS if metric.of is not None}
        outputs = {name: total / self.examples for name, total in self.outputs.items()}
        return Figures(self.rows, values | outputs, self.density())
