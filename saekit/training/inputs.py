"""From stored batches to training batches: normalized rows, by statistics of training rows only,
and a check that every row is finite."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from saekit.errors import NumericsError, opt
from saekit.models.normalizer import Normalizer, Scale
from saekit.rows import Rows
from saekit.store.reader import Store
from saekit.types import ActivationBatch, Split

STATISTICS_ROWS = 262_144
# A run warns when the root mean square of a raw dimension is outside of these.
LARGE_VALUES, SMALL_VALUES = 5.0, 1e-3
SAMPLE_ROWS = 16_384  # for the geometric median and the first scale of the encoder


@dataclass(frozen=True)
class Spread:
    """Moments of what a run reconstructs, after normalization."""

    mean_D: torch.Tensor
    variance: float
    """Mean of ||x - mean||^2."""
    raw: bool = False
    """Whether the rows are not normalized."""

    @property
    def advice(self) -> str | None:
        """A warning about rows that are not normalized, and whose size is far from the one that
        learning rates and first weights are chosen for; else None."""
        D = len(self.mean_D)
        size = (float(self.mean_D.square().sum()) + self.variance) / D
        if not self.raw or SMALL_VALUES**2 <= size <= LARGE_VALUES**2:
            return None
        return (
            f"the values of a row are about {size**0.5:.3g} in size and are not normalized, while"
            f" learning rates are chosen for values about 1: {opt('normalize', 'center+scale')}"
            " reconstructs better"
        )


@dataclass(frozen=True)
class BatchNormalizer:
    """Stored batches -> training batches, fp32, on the device of the mean."""

    inputs: Normalizer
    targets: Normalizer | None = None
    """Of the target's rows, where that is another store."""
    spread: Spread | None = None
    """Of what is reconstructed, normalized; None in a run that goes on from a state."""

    def __call__(self, batch: ActivationBatch) -> ActivationBatch:
        """x, previous rows and target normalized; padding is zero again."""
        mask = None if batch.mask is None else batch.mask.to(self.inputs.mean_D.device)
        x = _normalized(batch.x, self.inputs, mask)
        target, previous = batch.target, batch.previous
        if target is not None:
            assert self.targets is not None, "the run has no target"
            target = _normalized(target, self.targets, mask)
        if previous is not None:
            previous = _normalized(previous, self.inputs)
        return dataclasses.replace(batch, x=x, mask=mask, target=target, previous=previous)


def _normalized(
    x: torch.Tensor, normalizer: Normalizer, mask: torch.Tensor | None = None
) -> torch.Tensor:
    device = normalizer.mean_D.device
    # from pinned memory the copy does not wait for the work in flight
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory().to(device, non_blocking=True)
    x = normalizer.apply_(x.to(device, torch.float32, copy=True))
    return x if mask is None else x.mul_(mask[..., None])


def estimate(
    source: Rows, mode: str, seed: int, device: torch.device
) -> tuple[BatchNormalizer, torch.Tensor]:
    """(normalizer, sample (S,D) of normalized training rows), from the first shuffled training
    rows, at most STATISTICS_ROWS. Raises NumericsError, naming shard and row, for one that is not
    finite.
    """
    batches = source.batches(*_order(source, seed))
    inputs, sample, spread = _statistics(source, batches, mode)
    inputs = inputs.to(device)
    rows_SD = torch.cat([_normalized(x, inputs) for x in sample])
    return BatchNormalizer(inputs, spread=spread), rows_SD


def estimate_target(
    normalize: BatchNormalizer, source: Rows, mode: str, seed: int
) -> tuple[BatchNormalizer, torch.Tensor]:
    """The same with a normalizer of the target, estimated as that of x, and a sample (S,D_out) of
    normalized rows of the target."""
    assert source.target is not None
    batches = (
        dataclasses.replace(batch, x=batch.target, target=None)
        for batch in source.batches(*_order(source, seed))
    )
    targets, sample, spread = _statistics(source.target, batches, mode)
    targets = targets.to(normalize.inputs.mean_D.device)
    rows_SD = torch.cat([_normalized(x, targets) for x in sample])
    return dataclasses.replace(normalize, targets=targets, spread=spread), rows_SD


def store_normalizer(store: Store, device: torch.device) -> Normalizer:
    """From the statistics of a whole store; the training rows that `estimate` reads are a sample of
    these."""
    mean_D, std_D = (
        torch.tensor(store.stats[name], dtype=torch.float64) for name in ("mean", "std")
    )
    return Normalizer.from_moments(mean_D, std_D.square()).to(device)


def scale_from(saved: torch.Tensor, device: torch.device) -> Scale:
    """The scale of a Normalizer as a train state holds it, in fp64."""
    return saved.to(device, torch.float32) if saved.ndim else saved.item()


def _order(source: Rows, seed: int) -> tuple[int, int, int, Split]:
    """Arguments of `batches`: shuffled training rows, whatever the layout."""
    return min(8192, STATISTICS_ROWS, source.count("train")), seed, 0, "train"


def _statistics(
    store: Rows, batches: Iterable[ActivationBatch], mode: str
) -> tuple[Normalizer, list[torch.Tensor], Spread]:
    """(normalizer in fp64 on the CPU, with a scale for each of the store's parts; the first raw
    rows, in batches; the Spread of what is scaled).

    Sums are of x - shift, the first batch's mean: a mean far from 0 would drown the variance.
    """
    needed = min(STATISTICS_ROWS, store.count("train"))
    D = store.spec.d_in
    sums_D, squares_D = torch.zeros(2, D, dtype=torch.float64)
    shift_D: torch.Tensor | None = None
    sample: list[torch.Tensor] = []
    rows = 0
    # One pass: sums, and the first rows as the sample.
    for batch in batches:
        check_rows(store, batch)
        raw = batch.x[: needed - rows].float()
        x = raw.double()
        shift_D = x.mean(0) if shift_D is None else shift_D
        x = x - shift_D
        sums_D, squares_D, rows = sums_D + x.sum(0), squares_D + x.square().sum(0), rows + len(x)
        if rows <= max(SAMPLE_ROWS, len(x)):
            sample.append(raw)
        if rows >= needed:
            break
    assert shift_D is not None, "there are no training rows"
    # What is subtracted, and the mean squares of what is scaled.
    true_mean_D = shift_D + sums_D / rows
    variance_D = squares_D / rows - (sums_D / rows).square()
    centered = mode == "center+scale"
    mean_D = true_mean_D if centered else torch.zeros_like(sums_D)
    square_D = variance_D if centered else variance_D + true_mean_D.square()
    if mode == "none":
        square_D = torch.ones_like(square_D)  # a scale of 1
    normalizer = Normalizer.from_moments(mean_D, square_D, store.parts)
    # The moments of normalized rows.
    if centered and all(part.sum() > 0 for part in square_D.split(list(store.parts or (D,)))):
        return normalizer, sample, Spread(torch.zeros_like(mean_D), float(D))
    scale = torch.as_tensor(normalizer.scale, dtype=torch.float64)
    spread = Spread(
        (true_mean_D - mean_D) * scale, float((variance_D * scale.square()).sum()), mode == "none"
    )
    return normalizer, sample, spread


def checked(store: Rows, batches: Iterator[ActivationBatch]) -> Iterator[ActivationBatch]:
    """The same batches, each checked for NaN and inf."""
    for batch in batches:
        check_rows(store, batch)
        yield batch


def check_rows(store: Rows, batch: ActivationBatch) -> None:
    """Raise NumericsError for the first row that holds NaN or inf."""
    check_peaks(store, batch.rows, peaks(batch))


def peaks(batch: ActivationBatch) -> list[torch.Tensor]:
    """(B,) for x and, where there is one, for the target: the largest magnitude in each row or
    example, NaN and inf included."""
    values = [batch.x] if batch.target is None else [batch.x, batch.target]
    return [torch.linalg.vector_norm(x.float().flatten(1), torch.inf, dim=1) for x in values]


def check_peaks(store: Rows, rows: torch.Tensor | None, row_peaks: Iterable[torch.Tensor]) -> None:
    """The same for rows known by their numbers and `peaks`. Rows None: they come from a running
    model, and no shard holds them."""
    for source, peak_B in zip((store, store.target), row_peaks):
        assert source is not None
        bad = (~peak_B.isfinite()).nonzero()[:, 0]
        if len(bad) and rows is None:
            raise NumericsError(
                f"NaN or inf in the data: {source.spec.model} at {source.spec.hook}",
                f"harvest another {opt('hook')}",
            )
        if len(bad) and rows is not None:
            stored = isinstance(source.path, Path)
            hint = (
                f"harvest that store again with {opt('overwrite', True)}"
                if stored
                else "drop such rows"
            )
            raise NumericsError(
                f"NaN or inf in the data: {source.locate(int(rows[bad[0].cpu()]))}", hint
            )
