"""Which latents have stopped firing, counted in rows since each last fired, and when they are
resampled. How a model revives them is its own (saekit.models.sae.dead)."""

from __future__ import annotations

import torch

from saekit.models.autoencoder import Autoencoder
from saekit.training.optim import reset_moments
from saekit.types import ActivationBatch, Step

MAX_DEAD_ROWS = 10_000_000
# At most this many times per run, all in its first half, so that resampled latents can settle.
RESAMPLINGS = 4
# Latents per resampling, as a share of the batch's rows, of which each latent takes one: 4,800 at
# once, several of them pointed at the same outlier row, made the error 10,000 times as large in one
# run (docs/notes/log.md).
RESAMPLED = 0.5
NUDGE_EVERY = 4  # steps, which bounds the cost; rarer where the device is polled more rarely
# Share of the run: a latent idle for so long must be revived now if it is to learn anything.
REVIVE_SHARE = 0.1


def dead_rows(train_rows: int) -> int:
    """Rows without firing after which a latent is dead: ten million, or one epoch if that is
    shorter."""
    return min(MAX_DEAD_ROWS, train_rows)


def revive_rows(train_rows: int, total_rows: int) -> int:
    """Rows without firing after which a latent is resampled or joins the auxiliary loss: when it is
    dead, or, in a short run, earlier. Nudges always wait until it is dead."""
    return max(min(dead_rows(train_rows), round(REVIVE_SHARE * total_rows)), 1)


def resampling_steps(total: int) -> set[int]:
    """The steps after which dead latents are resampled: evenly spaced in the first half of the
    run."""
    return {round(total * (i + 1) / (2 * RESAMPLINGS)) for i in range(RESAMPLINGS)} - {0}


class DeadTracker:
    """Two thresholds, in rows: latents idle for `threshold` are counted as dead, those idle for
    `revive` are revived."""

    def __init__(self, latents: int, threshold: int, revive: int, device: torch.device) -> None:
        self.threshold, self.revive = threshold, revive
        # (F,): rows since each latent fired
        self.idle = torch.zeros(latents, dtype=torch.int64, device=device)
        # mean active latents per row in the last batch
        self.l0 = torch.zeros((), device=device)

    def update(self, fired_F: torch.Tensor, rows: int) -> None:
        """Nothing here waits for the device."""
        self.l0 = fired_F.sum() / rows
        self.idle = torch.where(fired_F > 0, 0, self.idle + rows)

    def dead(self) -> torch.Tensor:
        """Indices of latents to revive, those idle for longest first (ties by index). Waits for the
        device, to read how many there are."""
        order = torch.sort(self.idle, descending=True, stable=True)
        return order.indices[: int((order.values >= self.revive).sum())]

    def share(self) -> float:
        return float((self.idle >= self.threshold).double().mean())


def resample(
    model: Autoencoder,
    tracker: DeadTracker,
    optimizer: torch.optim.Adam,
    batch: ActivationBatch,
    generator: torch.Generator,
    step: Step,
) -> None:
    """Point the latents that are idle for longest at rows of the batch; forget their moments and
    their idle time."""
    assert step.dead is not None
    latents = step.dead[: max(round(RESAMPLED * len(batch.x)), 1)]
    model.resample(latents, batch, generator, step)
    reset_moments(optimizer, latents, model.latents, model.by_output)
    tracker.idle[latents] = 0
