"""From stored rows to training inputs: x~ = (x - mean) * scale with E||x~||^2 = D, estimated on
training rows only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from saekit.errors import NumericsError, opt
from saekit.rows import Rows
from saekit.types import ActivationBatch

STATISTICS_ROWS = 262_144
# root mean square of a raw dimension, beyond which a run says so
LARGE_VALUES, SMALL_VALUES = 5.0, 1e-3
SAMPLE_ROWS = 16_384  # for the geometric median and the first scale of the encoder


@dataclass(frozen=True)
class Spread:
    mean_D: torch.Tensor
    variance: float
    """Mean of ||x - mean||^2."""
    raw: bool = False
    """Whether neither mean nor scale were taken out."""

    @property
    def advice(self) -> str | None:
        """For rows that are trained on as they are, and are far from the size that rates and first
        weights are chosen for."""
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
class Normalizer:
    mean_D: torch.Tensor
    scale: float | torch.Tensor
    """One for all, or (D,) where a row holds several hooks, each with its own."""
    target: tuple[torch.Tensor, float | torch.Tensor] | None = None
    """Mean and scale of the target's rows, where that is another store."""
    spread: Spread | None = None
    """Of what is to be reconstructed, normalised; None in a run that goes on from a state."""

    def scales(self, parts: Sequence[int] = ()) -> float | list[float]:
        """The scale, or those of the hooks side by side, one for each of the widths `parts`, for a
        file."""
        if not torch.is_tensor(self.scale):
            return self.scale
        return [float(part[0]) for part in self.scale.split(list(parts))]

    def __call__(self, batch: ActivationBatch) -> ActivationBatch:
        """The batch with x and target normalised, fp32, on the device of the mean. Padding is zero
        again."""
        device = self.mean_D.device
        mask = None if batch.mask is None else batch.mask.to(device)
        x = _normalised(batch.x, self.mean_D, self.scale, mask)
        target = None if batch.target is None else _normalised(batch.target, *self.target, mask)
        previous = (
            None
            if batch.previous is None
            else _normalised(batch.previous, self.mean_D, self.scale, None)
        )
        return dataclasses.replace(batch, x=x, mask=mask, target=target, previous=previous)


def _normalised(
    x: torch.Tensor, mean_D: torch.Tensor, scale: float | torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    # from pinned memory the copy does not wait for the work in flight
    if mean_D.device.type == "cuda":
        x = x.pin_memory().to(mean_D.device, non_blocking=True)
    x = x.to(mean_D.device, torch.float32, copy=True).sub_(mean_D).mul_(scale)
    return x if mask is None else x.mul_(mask[..., None])


def target_normalizer(
    normalize: Normalizer, source: Rows, mode: str, seed: int
) -> tuple[Normalizer, torch.Tensor]:
    """The same with the target's mean and scale, estimated as those of x, and a sample (S,D_out) of
    normalised rows of the target."""
    batches = (
        dataclasses.replace(batch, x=batch.target, target=None)
        for batch in source.batches(*_order(source, seed))
    )
    mean, scale, sample, spread = _statistics(source.target, batches, mode)
    device = normalize.mean_D.device
    target = Normalizer(mean.float().to(device), _on(scale, device))
    made = dataclasses.replace(normalize, target=(target.mean_D, target.scale), spread=spread)
    return made, torch.cat([target(batch).x for batch in sample])


def estimate(
    source: Rows, mode: str, seed: int, device: torch.device
) -> tuple[Normalizer, torch.Tensor]:
    """(normalizer, sample (S,D) of normalised training rows), from the first shuffled training
    rows, at most STATISTICS_ROWS.

    Raises NumericsError, naming shard and row, when one of them is not finite.
    """
    mean, scale, sample, spread = _statistics(source, source.batches(*_order(source, seed)), mode)
    normalizer = Normalizer(mean.float().to(device), _on(scale, device), spread=spread)
    return normalizer, torch.cat([normalizer(batch).x for batch in sample])


def _on(scale: float | torch.Tensor, device: torch.device) -> float | torch.Tensor:
    return scale.to(device, torch.float32) if torch.is_tensor(scale) else scale


def scale_from(saved: torch.Tensor, device: torch.device) -> float | torch.Tensor:
    """The scale of a Normalizer as a train state holds it, in fp64."""
    return _on(saved, device) if saved.ndim else saved.item()


def _order(source: Rows, seed: int) -> tuple:
    """Arguments of `batches`: shuffled training rows, whatever the layout."""
    return min(8192, STATISTICS_ROWS, source.count("train")), seed, 0, "train"


def _statistics(store: Rows, batches: Iterator[ActivationBatch], mode: str):
    """(mean (D,) fp64, scale (a float, or (D,) with one value for each of the store's parts), the
    first batches, the Spread of what is scaled). Sums are of x - shift, the first batch's mean,
    lest a mean far from 0 drown the variance."""
    n = store.count("train")
    left = min(STATISTICS_ROWS, n)
    total, squares, seen, sample, shift = 0.0, 0.0, 0, [], None  # squares (D,)
    for batch in batches:
        check_rows(store, batch)
        batch = ActivationBatch(
            batch.x[: left - seen].float(),
            batch.doc_id,
            batch.example_id,
            batch.position,
            rows=batch.rows,
        )
        x = batch.x.double()
        shift = x.mean(0) if shift is None else shift
        x = x - shift
        total, squares, seen = total + x.sum(0), squares + x.square().sum(0), seen + len(x)
        if seen <= max(SAMPLE_ROWS, len(x)):
            sample.append(batch)
        if seen >= left:
            break
    true_mean = shift + total / seen
    variance_D = squares / seen - (total / seen).square()
    centered = mode == "center+scale"
    mean = true_mean if centered else torch.zeros_like(total)
    # mean squares of what is scaled
    left_D = variance_D if centered else variance_D + true_mean.square()
    widths = store.parts or (len(mean),)
    scales = [
        (width / float(part.sum())) ** 0.5 if mode != "none" and part.sum() > 0 else 1.0
        for width, part in zip(widths, left_D.split(widths))
    ]
    scale = (
        scales[0]
        if len(scales) == 1
        else torch.tensor(scales).repeat_interleave(torch.tensor(widths))
    )
    if centered and all(part.sum() > 0 for part in left_D.split(widths)):
        spread = Spread(torch.zeros_like(mean), float(len(mean)))
    else:
        spread = Spread(
            (true_mean - mean) * scale,
            float((variance_D * torch.as_tensor(scale, dtype=torch.float64).square()).sum()),
            mode == "none",
        )
    return mean, scale, sample, spread


def checked(store: Rows, batches: Iterator[ActivationBatch]) -> Iterator[ActivationBatch]:
    """The same batches, each looked through for NaN and inf."""
    for batch in batches:
        check_rows(store, batch)
        yield batch


def check_rows(store: Rows, batch: ActivationBatch) -> None:
    """Raise NumericsError for the first row that holds NaN or inf."""
    check_peaks(store, batch.rows, peaks(batch))


def peaks(batch: ActivationBatch) -> list[torch.Tensor]:
    """(B,) of x and, where there is one, of the target: the largest magnitude in each row or
    example, NaN and inf included."""
    values = [batch.x] if batch.target is None else [batch.x, batch.target]
    return [torch.linalg.vector_norm(x.float().flatten(1), torch.inf, dim=1) for x in values]


def check_peaks(store: Rows, rows: torch.Tensor | None, found: list[torch.Tensor]) -> None:
    """The same, of rows known by number and `peaks`; rows None: those of a running model, which no
    shard holds."""
    for source, peak_B in zip((store, store.target), found):
        bad = (~peak_B.isfinite()).nonzero()[:, 0]
        if len(bad) and rows is None:
            raise NumericsError(
                f"NaN or inf in the data: {source.spec.model} at {source.spec.hook}",
                f"harvest another {opt('hook')}",
            )
        if len(bad):
            stored = isinstance(source.path, Path)
            hint = (
                f"harvest that store again with {opt('overwrite', True)}"
                if stored
                else "drop such rows"
            )
            raise NumericsError(
                f"NaN or inf in the data: {source.locate(int(rows[bad[0].cpu()]))}", hint
            )
