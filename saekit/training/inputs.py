"""From stored rows to training inputs: x~ = (x - mean) * scale with E||x~||^2 = D, estimated on training rows only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from saekit.errors import NumericsError
from saekit.store.reader import Store
from saekit.types import ActivationBatch

STATISTICS_ROWS = 262_144
SAMPLE_ROWS = 16_384  # for the geometric median and the first scale of the encoder


@dataclass(frozen=True)
class Normalizer:
    mean_D: torch.Tensor
    scale: float

    def __call__(self, batch: ActivationBatch) -> ActivationBatch:
        """The batch with x normalised, fp32, on the device of the mean."""
        device, x = self.mean_D.device, batch.x
        if device.type == "cuda":  # from pinned memory the copy does not wait for the work in flight
            x = x.pin_memory().to(device, non_blocking=True)
        x = x.to(device, torch.float32).sub_(self.mean_D).mul_(self.scale)
        return ActivationBatch(x, batch.doc_id, batch.example_id, batch.position, batch.mask, batch.rows)


def estimate(store: Store, mode: str, seed: int, device: torch.device) -> tuple[Normalizer, torch.Tensor]:
    """(normalizer, sample (S,D) of normalised training rows), from the first shuffled training rows, at most STATISTICS_ROWS.

    Raises NumericsError, naming shard and row, when one of them is not finite.
    """
    n = len(store.split("train"))
    left, D = min(STATISTICS_ROWS, n), store.spec.d_in
    total, squares, seen, sample = torch.zeros(D, dtype=torch.float64), 0.0, 0, []
    for batch in store.batches(min(8192, left), seed=seed, split="train"):
        check_rows(store, batch)
        batch.x = batch.x[: left - seen].float()
        x = batch.x.double()
        total, squares, seen = total + x.sum(0), squares + float(x.square().sum()), seen + len(x)
        if seen <= max(SAMPLE_ROWS, len(x)):
            sample.append(batch)
        if seen >= left:
            break
    mean = total / seen if mode == "center+scale" else torch.zeros_like(total)
    mean_square = squares / seen - float(mean.square().sum())
    scale = (D / mean_square) ** 0.5 if mode != "none" and mean_square > 0 else 1.0
    normalizer = Normalizer(mean.float().to(device), scale)
    return normalizer, torch.cat([normalizer(batch).x for batch in sample])


def checked(store: Store, batches: Iterator[ActivationBatch]) -> Iterator[ActivationBatch]:
    """The same batches, each looked through for NaN and inf."""
    for batch in batches:
        check_rows(store, batch)
        yield batch


def check_rows(store: Store, batch: ActivationBatch) -> None:
    """Raise NumericsError for the first row that holds NaN or inf."""
    check_peaks(store, batch.rows, torch.linalg.vector_norm(batch.x.float(), torch.inf, dim=1))


def check_peaks(store: Store, rows: torch.Tensor, peak_B: torch.Tensor) -> None:
    """The same, of rows known by number and largest magnitude."""
    bad = (~peak_B.isfinite()).nonzero()[:, 0]
    if len(bad):
        where = store.locate(int(rows[bad[0].cpu()]))
        raise NumericsError(f"NaN or inf in the data: {store.path}, shard {where}", "harvest that store again with --overwrite")
