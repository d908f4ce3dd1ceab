"""Passes of a model over chosen rows: its outputs, its codes and its errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix, vstack

from saekit.device import CPU
from saekit.evaluation.models import EvaluatedModel
from saekit.measures.anomaly import squared_errors
from saekit.measures.arrays import Codes, as_numbers
from saekit.models.autoencoder import Autoencoder
from saekit.rows import Rows
from saekit.training.fit import applied, first_rows, on_device
from saekit.training.inputs import checked
from saekit.types import ActivationBatch, Split

KNN_ROWS = 20_000
DENSE_NUMBERS = 2**27  # of dense codes in memory at once: 512 MB
# of the rows that a report shows: 32 MB of input, and as much for each model's output
SAMPLE_ROWS, SAMPLE_NUMBERS = 2_000, 2**23
PIECE = 256  # rows or examples per forward pass


def chosen_batches(
    source: Rows, split: Split, count: int, seed: int, examples: bool
) -> Iterator[ActivationBatch]:
    """At most `count` rows or examples of one split: all in store order, or as many drawn by
    `seed`. Raises NumericsError (NaN, inf)."""
    total = source.count(split, examples)
    missing = min(count, total)
    size = min(PIECE if examples else 4096, missing)
    order = None if count >= total else seed
    for batch in checked(source, source.batches(size, order, split=split, examples=examples)):
        yield first_rows(batch, missing)
        missing -= len(batch.x)
        if missing <= 0:
            return


@torch.no_grad()
def codes_of(
    model: Autoencoder, batches: Iterable[ActivationBatch], device: torch.device = CPU
) -> tuple[Codes, np.ndarray]:
    """(codes (N,F), their first store rows (N,)), computed on a device. Sparse where most entries
    are exact zeros by construction."""
    codes, rows = [], []
    model = on_device(model, device)
    for batch in (batch.on(device) for batch in batches):
        inputs = (batch.x.float(),) if batch.mask is None else (batch.x.float(), batch.mask)
        codes.append(as_numbers(model.encode(*inputs), model.active_above))
        assert batch.rows is not None
        rows.append(batch.rows.numpy())
    return _joined(codes), np.concatenate(rows)


def knn_rows(models: Sequence[EvaluatedModel]) -> int:
    """Among how many rows neighbors are searched: the same number for all, so that accuracies
    compare."""
    dense = (evaluated.model.latents for evaluated in models if evaluated.model.active_above != 0.0)
    return max(min(KNN_ROWS, DENSE_NUMBERS // max(dense, default=1)), 1)


@dataclass(frozen=True)
class Sample:
    """Rows or examples of one split that a report shows, the same for every model of their
    source."""

    batch: ActivationBatch
    labels: list[str | None]

    @property
    def x(self) -> torch.Tensor:
        return self.batch.x.float()

    @property
    def target(self) -> torch.Tensor:
        """What a model is to reconstruct: x, or the rows of the target store."""
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
    batches = source.batches(min(count, total), order, split=split, examples=examples)
    batch = first_rows(next(iter(checked(source, batches))), count)
    assert batch.rows is not None
    return Sample(batch, [labels[row] for row in batch.rows.tolist()])


@torch.no_grad()
def outputs_of(model: Autoencoder, batch: ActivationBatch) -> tuple[torch.Tensor, Codes]:
    """(x_hat in the shape of the target, codes (N,F)), both on the CPU, PIECE rows at a time;
    model and batch are on one device."""
    x_hats, codes = [], []
    for start in range(0, len(batch.x), PIECE):
        columns: dict[str, Any] = {
            name: None if column is None else column[start : start + PIECE]
            for name, column in vars(batch).items()
        }
        output = applied(model, ActivationBatch(**columns))
        x_hats.append(output.x_hat.cpu())
        codes.append(as_numbers(output.code, model.active_above))
    return torch.cat(x_hats), _joined(codes)


def _joined(codes: list[Codes]) -> Codes:
    if isinstance(codes[0], csr_matrix):
        return csr_matrix(vstack(codes, "csr"))
    return np.concatenate([code for code in codes if isinstance(code, np.ndarray)])


def errors_of(
    model: Autoencoder, batches: Iterable[ActivationBatch], device: torch.device = CPU
) -> torch.Tensor:
    """(N,): the squared error of each row or example of a pass, computed on a device."""
    model = on_device(model, device)
    errors = [
        squared_errors(batch.x.float(), outputs_of(model, batch.on(device))[0], batch.mask)
        for batch in batches
    ]
    return torch.cat(errors)


@dataclass(frozen=True)
class SampleOutput:
    """What a model makes of the sample."""

    evaluated: EvaluatedModel
    sample: Sample
    x_hat: torch.Tensor
    codes: Codes

    @property
    def errors(self) -> torch.Tensor:
        return squared_errors(self.sample.target, self.x_hat, self.sample.batch.mask)


def output_on(evaluated: EvaluatedModel, shown: Sample) -> SampleOutput:
    return SampleOutput(evaluated, shown, *outputs_of(evaluated.model, shown.batch))
