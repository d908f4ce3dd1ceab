"""Precision, recall, memorization and diversity against brute force and built cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saekit.errors import DataError, NumericsError, UsageError
from saekit.measures.samples import diversity, memorization, nearest, precision_recall, radii


def rows(seed, count=120, width=6, at=0.0):
    return at + torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def by_loops(queries, manifold, k):
    """Share of queries in the union of balls, as the paper writes it."""
    inside = 0
    for query in queries:
        inside += any(
            np.linalg.norm(query - center)
            <= sorted(np.linalg.norm(center - other) for other in manifold)[k]
            for center in manifold
        )
    return inside / len(queries)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_those_of_two_loops(k):
    real, drawn = rows(0, 40, 3).double(), rows(1, 40, 3).double() + 1.0
    found = precision_recall(real, drawn, k)
    assert found.precision == by_loops(drawn.numpy(), real.numpy(), k)
    assert found.recall == by_loops(real.numpy(), drawn.numpy(), k)
    assert 0 < found.precision < 1 and 0 < found.recall < 1


def test_a_set_has_precision_and_recall_1_with_itself_and_0_with_a_far_one():
    # the mean is far from 0: products of rows would lose the distances in fp32
    real = rows(0, at=300.0)
    same, far = precision_recall(real, real), precision_recall(real, real + 1000)
    assert (same.precision, same.recall) == (1, 1)
    assert (far.precision, far.recall) == (0, 0)


def test_a_collapsed_generator_is_precise_and_recalls_nothing():
    real = rows(0)
    collapsed = real[:1] + 1e-3 * rows(1)
    found = precision_recall(real, collapsed)
    assert found.precision == 1 and found.recall <= 1 / len(real)
    assert diversity(real, collapsed) < 0.01


def test_half_of_the_modes_are_half_of_the_recall():
    """Two modes, of which the generator knows one."""
    real = torch.cat([rows(0, 60), rows(1, 60, at=100.0)])
    found = precision_recall(real, rows(2, 120))
    assert found.precision > 0.6 and 0.3 < found.recall <= 0.5


def test_copies_of_training_rows_are_detected():
    train, held_out, fresh = rows(0, 300), rows(1), rows(2)
    copied = memorization(train, held_out, train[:100])
    assert (copied.ratio, copied.nearer, copied.copies) == (0, 1, 1)
    new = memorization(train, held_out, fresh)
    assert 0.85 < new.ratio < 1.15 and 0.4 < new.nearer < 0.6 and new.copies < 0.05
    half = memorization(train, held_out, torch.cat([train[:60], fresh[:60]]))
    assert 0.5 <= half.copies < 0.55 and half.nearer > 0.7
    far = memorization(train, held_out, fresh + 50)
    assert far.nearer == 0 and far.ratio > 10


def test_diversity_is_a_ratio_of_distances():
    real = rows(0)
    assert diversity(real, 2 * real) == pytest.approx(2, rel=1e-6)
    assert diversity(real, real[:1].repeat(50, 1)) == 0
    # the same number of rows on both sides: of fewer rows the nearest is further away
    assert diversity(rows(0, 1000), rows(0, 1000)[:50]) == 1


def test_distances_are_those_of_numpy():
    a, b = rows(0, 300).double(), rows(1, 50).double()
    expected = np.linalg.norm(b.numpy()[:, None] - a.numpy()[None], axis=2).min(1)
    np.testing.assert_allclose(nearest(b, a), expected, rtol=1e-12)
    pairs = np.sort(np.linalg.norm(a.numpy()[:, None] - a.numpy()[None], axis=2), axis=1)
    np.testing.assert_allclose(radii(a, 3), pairs[:, 3], rtol=1e-12)


def test_sets_that_cannot_be_compared_are_refused():
    with pytest.raises(UsageError, match="120 real rows and 100 samples"):
        precision_recall(rows(0), rows(1)[:100])
    with pytest.raises(UsageError, match="k = 120 must be"):
        precision_recall(rows(0), rows(1), 120)
    with pytest.raises(DataError, match="real rows of 6 values and samples of 5"):
        precision_recall(rows(0), rows(1)[:, :5])
    with pytest.raises(NumericsError, match="samples: row 3 is not finite"):
        broken = rows(1)
        broken[3] = float("nan")
        precision_recall(rows(0), broken)
    with pytest.raises(DataError, match="every held-out row is also a training row"):
        memorization(rows(0), rows(0)[:20], rows(1))
    with pytest.raises(DataError, match="real rows are repeated"):
        diversity(torch.zeros(9, 2), rows(0, 9, 2))
