"""A run of every variant gives the same bits whatever memory held before it."""

from __future__ import annotations

import pytest
import torch
from made_stores import make_rows
from poisoned import reads_only_what_was_written

import saekit
from saekit.models.sparsity import VARIANTS


@pytest.mark.parametrize("sparsity", VARIANTS)
def test_a_run_reads_only_what_was_written(sparsity):
    rows = torch.as_tensor(make_rows(400, 12, 0)).float()
    if VARIANTS[sparsity].needs_previous:
        rows = rows.view(-1, 20, 12)
    takes_k = hasattr(VARIANTS[sparsity].config_class, "k")
    options = {"k": 3} if takes_k else {"target_l0": 3.0}

    def run() -> list[torch.Tensor]:
        trained = saekit.train(
            rows, sparsity=sparsity, latents=48, batch=64, rows=5 * 64, revive="nudge", **options
        )
        return list(trained.model.state_dict().values())

    reads_only_what_was_written(run)
