"""Passes of a model over chosen rows of a store: its outputs, its codes and its errors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix, vstack
from torch import nn

from saekit.evaluation.models import EvaluatedModel
from saekit.measures.anomaly import squared_errors
from saekit.measures.arrays import Codes, as_numbers
from saekit.rows import Rows
from saekit.store.reader import Store
from saekit.training.fit import applied, first_rows
from saekit.training.inputs import checked
from saekit.types import ActivationBatch, Output, Split

KNN_ROWS = 20_000
DENSE_NUMBERS = 2**27  # of dense codes held at once: 512 MB
# of the rows that a report shows; 32 MB of input, and as much for each model's output
SAMPLE_ROWS, SAMPLE_NUMBERS = 2_000, 2**23


def some(
    source: Rows, split: Split, count: int, seed: int, examples: bool
) -> Iterator[ActivationBatch]:
    """At most `count` rows or examples of one side: all in store order, or as many drawn by `seed`.
    Raises NumericsError (NaN, inf)."""
    total = source.count(split, examples)
    left = min(count, total)
    size = min(256 if examples else 4096, left)
    order = None if count >= total else seed
    for batch in checked(source, source.batches(size, order, split=split, examples=examples)):
        yield first_rows(batch, left)
        left -= len(batch.x)
        if left <= 0:
            return


def labels_of(source: Rows, examples: bool = False) -> list[str | None]:
    """The data's own label of every row, or of every example; None where it has none, as rows in
    memory."""
    if isinstance(source, Store):
        return source.labels("all", examples)
    return [None] * source.count("all", examples)


@torch.no_grad()
def codes_of(model: nn.Module, batches: Iterator[ActivationBatch]) -> tuple[Codes, np.ndarray]:
    """(codes (N,F), their first store rows (N,)). Sparse where most entries are exact zeros by
    construction."""
    parts, rows = [], []
    for batch in batches:
        code = (
            model.encode(batch.x.float())
            if batch.mask is None
            else model.encode(batch.x.float(), batch.mask)
        )
        parts.append(as_numbers(code, model.active_above))
        rows.append(batch.rows.numpy())
    joined = vstack(parts, "csr") if isinstance(parts[0], csr_matrix) else np.concatenate(parts)
    return joined, np.concatenate(rows)


def knn_rows(subjects: Sequence[EvaluatedModel]) -> int:
    """How many rows neighbours are sought among: the same number for all, so that accuracies
    compare."""
    widest = max((s.model.latents for s in subjects if s.model.active_above != 0.0), default=1)
    return max(min(KNN_ROWS, DENSE_NUMBERS // widest), 1)


@dataclass(frozen=True)
class Sample:
    """Rows or examples of one side that a report shows, the same for every model of their
    source."""

    batch: ActivationBatch
    labels: list[str | None]

    @property
    def x(self) -> torch.Tensor:
        return self.batch.x.float()

    @property
    def wanted(self) -> torch.Tensor:
        """What a model is to give: x, or the target."""
        return self.x if self.batch.target is None else self.batch.target.float()


def sample(
    source: Rows, split: Split, seed: int, examples: bool, labels: Sequence[str | None]
) -> Sample:
    """At most SAMPLE_ROWS, fewer where a row or example is wide. `labels` are those of all rows of
    the store."""
    probe = next(iter(source.batches(1, split=split, examples=examples)))
    count = max(min(SAMPLE_ROWS, SAMPLE_NUMBERS // math.prod(probe.x.shape[1:])), 1)
    total = source.count(split, examples)
    order = None if count >= total else seed
    batch = first_rows(
        next(
            iter(
                checked(
                    source, source.batches(min(count, total), order, split=split, examples=examples)
                )
            )
        ),
        count,
    )
    return Sample(batch, [labels[row] for row in batch.rows.tolist()])


@torch.no_grad()
def outputs_of(model: nn.Module, batch: ActivationBatch) -> tuple[torch.Tensor, Codes]:
    """(x_hat in the shape of what is wanted, codes (N,F)), in pieces of 256."""
    x_hats, codes = [], []
    for at in range(0, len(batch.x), 256):
        piece = {
            name: None if value is None else value[at : at + 256]
            for name, value in vars(batch).items()
        }
        output: Output = applied(model, ActivationBatch(**piece))
        x_hats.append(output.x_hat)
        codes.append(as_numbers(output.code, model.active_above))
    return torch.cat(x_hats), vstack(codes, "csr") if isinstance(
        codes[0], csr_matrix
    ) else np.concatenate(codes)


def errors_of(model: nn.Module, batches: Iterator[ActivationBatch]) -> torch.Tensor:
    """(N,): the squared error of each row or example of a pass."""
    return torch.cat(
        [
            squared_errors(batch.x.float(), outputs_of(model, batch)[0], batch.mask)
            for batch in batches
        ]
    )


@dataclass(frozen=True)
class Look:
    """What a model makes of the sample."""

    subject: EvaluatedModel
    sample: Sample
    x_hat: torch.Tensor
    codes: Codes

    @property
    def errors(self) -> torch.Tensor:
        return squared_errors(self.sample.wanted, self.x_hat, self.sample.batch.mask)


def look(subject: EvaluatedModel, seen: Sample) -> Look:
    return Look(subject, seen, *outputs_of(subject.model, seen.batch))
