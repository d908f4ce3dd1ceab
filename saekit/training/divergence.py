"""Losses that were not looked at yet: reading one makes the host wait for the device, so several
steps are checked at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from saekit.errors import NumericsError, opt
from saekit.rows import Rows
from saekit.training.inputs import check_peaks, peaks
from saekit.types import ActivationBatch, LossTerms


@dataclass
class _Pending:
    step: int
    rows: torch.Tensor | None
    """Their numbers in the store."""
    peaks: list[torch.Tensor]
    values: dict[str, torch.Tensor]


class PendingLosses:
    def __init__(self) -> None:
        self._pending: list[_Pending] = []

    def add(self, step: int, batch: ActivationBatch, terms: LossTerms) -> None:
        values = {"total": terms.total, **terms.terms, **terms.metrics}
        detached = {name: value.detach() for name, value in values.items()}
        self._pending.append(_Pending(step, batch.rows, peaks(batch), detached))

    def check(self, store: Rows) -> None:
        """Raise NumericsError for the first step since the last check whose loss was not finite:
        bad data, or a run that diverged."""
        pending, self._pending = self._pending, []
        hint = f"{opt('overwrite', True)} with a lower {opt('lr')}, or with {opt('clip', 1)}"
        for loss in pending:
            # not finite: are the rows at fault, or did the run diverge?
            if not math.isfinite(loss.values["total"].item()):
                check_peaks(store, loss.rows, loss.peaks)
                wrong = [
                    f"{name} is {value.item()}"
                    for name, value in loss.values.items()
                    if not math.isfinite(value.item())
                ]
                raise NumericsError(f"the loss diverged at step {loss.step}: {wrong[-1]}", hint)
