"""Which latents have stopped firing, counted in rows since each one last fired."""

from __future__ import annotations

import torch

MAX_DEAD_ROWS = 10_000_000
# at most so many times in a run, all in its first half, so that what is resampled can still settle
RESAMPLINGS = 4
# Latents at a time, as a share of the batch's rows, which take one each: 4,800 at once, several
# pointed at the same outlier row, made the error 10,000 times as large in one run (docs/log.md).
RESAMPLED = 0.5

# of the run: a latent that has been silent for so long has to come back now, if it is to learn
# something
REVIVE_SHARE = 0.1


def dead_rows(train_rows: int) -> int:
    """A latent is dead after so many rows without firing: ten million, or one epoch where that is
    shorter."""
    return min(MAX_DEAD_ROWS, train_rows)


def revive_rows(train_rows: int, total_rows: int) -> int:
    """A latent is revived after so many rows without firing: when it is dead, in a short run
    before."""
    return max(min(dead_rows(train_rows), round(REVIVE_SHARE * total_rows)), 1)


class DeadTracker:
    """Two thresholds, in rows: `threshold`, by which latents are counted as dead, and `revive`, by
    which they are brought back."""

    def __init__(self, latents: int, threshold: int, revive: int, device: torch.device) -> None:
        self.threshold, self.revive = threshold, revive
        # rows since each latent fired
        self.idle = torch.zeros(latents, dtype=torch.int64, device=device)
        self.l0 = torch.zeros((), device=device)  # mean active latents a row, in the last batch

    def update(self, fired_F: torch.Tensor, rows: int) -> None:
        """Nothing here waits for the device."""
        self.l0 = fired_F.sum() / rows
        self.idle = torch.where(fired_F > 0, 0, self.idle + rows)

    def dead(self) -> torch.Tensor:
        """Indices of latents to revive, longest idle first (ties by index). Waits for the device:
        their number is read."""
        order = torch.sort(self.idle, descending=True, stable=True)
        return order.indices[: int((order.values >= self.revive).sum())]

    def share(self) -> float:
        return float((self.idle >= self.threshold).double().mean())


def resampling_steps(total: int) -> set[int]:
    """The steps after which dead latents are resampled: evenly spaced in the first half of the
    run."""
    return {round(total * (i + 1) / (2 * RESAMPLINGS)) for i in range(RESAMPLINGS)} - {0}
