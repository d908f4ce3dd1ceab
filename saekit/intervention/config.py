"""What a fine-tune is asked for, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from saekit.errors import UsageError, opt
from saekit.options import Device, Doc, check


@dataclass(frozen=True)
class FinetuneConfig:
    store: Annotated[
        str | Path | None,
        Doc("Store that CKPT was trained on (default: where it was then).", metavar="STORE"),
    ] = None
    data: str | None = None
    """Train on this data; None: on the store's. Figures are always of the store's held-out
    documents."""
    rows: Annotated[
        int | None,
        Doc("Replaced rows to train on (default: 5 % of those that CKPT was trained on)."),
    ] = None
    lr: Annotated[
        float, Doc("Adam's learning rate at the first step; it decays linearly to 0.")
    ] = 3e-4
    batch: Annotated[int, Doc("Contexts per step.")] = 4
    seed: Annotated[int, Doc("Seed of the order of the documents.")] = 0
    device: Device = "auto"
    save_seconds: Annotated[
        float, Doc("Seconds between saved states, from which a run can be resumed.")
    ] = 60.0

    def __post_init__(self) -> None:
        check(self)
        if self.store is not None:  # text, as JSON and TOML have it
            object.__setattr__(self, "store", str(self.store))
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
