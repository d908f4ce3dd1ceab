"""Filters of a signed code are ordered by how often their latents fire, whatever the sign."""

from __future__ import annotations

import torch
from made_runs import digits_store

import saekit
from saekit.evaluation.models import open_runs
from saekit.evaluation.passes import output_on, sample
from saekit.report.pictures import _use
from saekit.store.reader import open_store


def test_negative_activations_count_as_use(tmp_path):
    saekit.train(
        digits_store(tmp_path / "acts", rows=None, holdout=0.2),
        tmp_path / "run",
        sparsity="abs-topk",
        k=5,
        latents=20,
        rows=4000,
        batch=256,
        normalize="center+scale",
    )
    store = open_store(tmp_path / "acts")
    (run,) = open_runs([tmp_path / "run"], store, None)
    seen = output_on(run, sample(store, "holdout", 0, False, store.labels("all")))
    with torch.no_grad():
        z = run.model.encode(seen.sample.x)
    z = z if isinstance(z, torch.Tensor) else z.to_dense()
    assert (z < 0).any()
    torch.testing.assert_close(
        _use(seen, run.model.W_dec.detach()), (z != 0).double().mean(0), rtol=0, atol=1e-9
    )
