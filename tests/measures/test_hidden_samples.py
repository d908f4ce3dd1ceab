"""Whether generated hidden states look real: on rows and codes whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from saekit_kernels import from_dense

from saekit.errors import DataError
from saekit.measures.hidden_samples import latent_use, told_apart


def rows(seed, count=600, width=8):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_a_probe_tells_rows_apart_that_are_shifted_and_not_those_of_one_distribution():
    # 300 rows of each to test: a standard error of 0.024
    assert 0.4 < told_apart(rows(0), rows(1)) < 0.6
    shifted = rows(1)
    shifted[:, 3] += 2
    # AUROC of N(0,1) and N(2,1): Phi(2 / sqrt 2) = 0.921
    assert told_apart(rows(0), shifted) == pytest.approx(0.921, abs=0.04)
    assert told_apart(rows(0), rows(1) + 20) == 1


def test_it_is_a_linear_probe():
    """Twice the spread around the same mean is not a difference along a direction."""
    assert 0.4 < told_apart(rows(0), 2 * rows(1)) < 0.6


def code(active):
    return torch.as_tensor(active, dtype=torch.float32)


def test_density_and_silent_latents_are_counted_by_hand():
    # shares of rows: 1, 1/2, 1/4, 0 and 1, 1/4, 0, 0
    real = code([[1, 1, 1, 0], [2, 3, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]])
    drawn = code([[1, 1, 0, 0], [1, 0, 0, 0], [5, 0, 0, 0], [1, 0, 0, 0]])
    use = latent_use(real, drawn, 0.0)
    expected = np.corrcoef([1, 0.5, 0.25], [1, 0.25, 0])[0, 1]
    assert use.density == pytest.approx(expected)
    assert (use.silent, use.silent_real) == (0.5, 0.25)
    # pairs 01, 02, 12: 1/2, 1/4, 1/4 and 1/4, 0, 0
    pairs = np.corrcoef([0.5, 0.25, 0.25], [0.25, 0, 0])[0, 1]
    assert use.coactivation == pytest.approx(pairs)


def test_latents_that_no_longer_come_together_show_in_pairs_only():
    """The same densities, in rows drawn by themselves for each latent."""
    generator = torch.Generator().manual_seed(0)
    together = (torch.rand(2000, 1, generator=generator) < 0.3).float()
    real = torch.cat([together.repeat(1, 4), (torch.rand(2000, 4) < 0.1).float()], 1)
    apart = torch.stack([column[torch.randperm(2000)] for column in real.T], 1)
    use = latent_use(real, apart, 0.0)
    assert use.density == pytest.approx(1) and use.coactivation < 0.98
    same = latent_use(real, real, 0.0)
    assert (same.density, same.coactivation) == (pytest.approx(1), pytest.approx(1))


def test_sparse_codes_give_the_same_as_dense_ones():
    dense = [rows(seed, 50, 30).relu() * (rows(seed + 9, 50, 30) > 0.5) for seed in (0, 1)]
    sparse = [from_dense(z) for z in dense]
    assert latent_use(*sparse, 0.0) == latent_use(*dense, 0.0)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(DataError, match="rows of 8 and of 7 values"):
        told_apart(rows(0), rows(0)[:, :7])
    with pytest.raises(DataError, match="at least four rows"):
        told_apart(rows(0)[:3], rows(0))
    with pytest.raises(DataError, match="fewer than three latents"):
        latent_use(torch.zeros(5, 9), torch.zeros(5, 9), 0.0)
    with pytest.raises(DataError, match="of 9 and of 8 latents"):
        latent_use(torch.ones(5, 9), torch.ones(5, 8), 0.0)
