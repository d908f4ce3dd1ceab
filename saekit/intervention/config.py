"""What a fine-tune is asked for, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass

from saekit.errors import UsageError, opt


@dataclass(frozen=True)
class FinetuneConfig:
    store: str | None = None
    """The store that the checkpoint was trained on; None: where it lay then."""
    data: str | None = None
    """Train on this data; None: on the store's. Figures are always of the store's held-out
    documents."""
    rows: int | None = None
    """Replaced rows to train on, counted with repetition; None: 5 % of those that the checkpoint
    was trained on."""
    lr: float = 3e-4
    """Adam's rate at the first step, in the units of training; it falls linearly to 0."""
    batch: int = 4
    """Contexts per step."""
    seed: int = 0
    """Order of the documents."""
    device: str = "auto"
    save_seconds: float = 60.0
    """Seconds between two saved states."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UsageError(f"{opt('seed', self.seed)} must not be negative")
        for name in ("rows", "lr", "batch"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{opt(name, value)} must be above 0")


@dataclass(frozen=True)
class FinetuneResult:
    path: str
    rows: int
    steps: int
    lr: float
    rows_per_s: float
    contexts: int
    """Held-out contexts that were judged."""
    before: dict[str, float | None]
    """kl (nats a position), fvu of the replaced rows, l0."""
    after: dict[str, float | None]
