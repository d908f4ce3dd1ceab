"""Which latents have stopped firing, counted in rows since each one last fired."""

from __future__ import annotations

import torch

from saekit.models.metrics import firing_counts

MAX_DEAD_ROWS = 10_000_000
RESAMPLINGS = 4  # at most so many times in a run, all in its first half, so that what is resampled can still settle


def dead_rows(train_rows: int) -> int:
    """A latent is dead after so many rows without firing: ten million, or one epoch where that is shorter."""
    return min(MAX_DEAD_ROWS, train_rows)


class DeadTracker:
    def __init__(self, latents: int, active_above: float, threshold: int, device: torch.device) -> None:
        self.active_above, self.threshold = active_above, threshold
        self.idle = torch.zeros(latents, dtype=torch.int64, device=device)  # rows since each latent fired
        self.l0 = 0.0  # mean active latents a row, in the last batch

    def update(self, code, rows: int) -> None:
        counts = firing_counts(code, self.active_above)
        self.l0 = float(counts.sum()) / rows
        self.idle += rows
        self.idle[counts > 0] = 0

    def dead(self) -> torch.Tensor:
        """Indices of dead latents, longest idle first (ties by index)."""
        order = torch.sort(self.idle, descending=True, stable=True)
        return order.indices[: int((order.values >= self.threshold).sum())]

    def share(self) -> float:
        return float((self.idle >= self.threshold).double().mean())


def resampling_steps(total: int) -> set[int]:
    """The steps after which dead latents are resampled: evenly spaced in the first half of the run."""
    return {round(total * (i + 1) / (2 * RESAMPLINGS)) for i in range(RESAMPLINGS)} - {0}
