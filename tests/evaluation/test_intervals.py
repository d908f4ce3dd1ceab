"""Intervals over documents: their coverage on data of a known law, and where there are none."""

from __future__ import annotations

import numpy as np
import pytest

from saekit.evaluation import intervals
from saekit.evaluation.intervals import bootstrap


def ratio(sums: np.ndarray) -> np.ndarray:
    """Mean loss per token, of columns (tokens, loss)."""
    return sums[..., 1:] / sums[..., :1]


def documents(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 2): documents of uneven length whose tokens share a level, so that tokens are far
    from independent. The mean loss per token is 2."""
    tokens = rng.integers(5, 60, count)
    loss = tokens * (2 + rng.normal(0, 0.5, count)) + rng.normal(0, 1, count) * tokens**0.5
    return np.stack([tokens, loss], 1).astype(float)


def test_an_interval_covers_the_true_value_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 500)
    rng = np.random.default_rng(0)
    for count in (8, 40):
        hits = 0
        for seed in range(200):
            _, low, high = bootstrap(documents(rng, count), ratio, seed)
            hits += bool(low[0] <= 2 <= high[0])
        # the standard error of 95 % over 200 repetitions is 1.5 %
        assert 0.91 <= hits / 200 <= 0.99, count


def test_an_interval_is_the_same_for_the_same_seed_and_holds_its_value():
    sums = documents(np.random.default_rng(1), 30)
    value, low, high = bootstrap(sums, ratio, 3)
    assert np.array_equal([value, low, high], bootstrap(sums, ratio, 3))
    assert value[0] == pytest.approx(sums[:, 1].sum() / sums[:, 0].sum()) and low < value < high


def test_it_narrows_with_the_root_of_the_number_of_documents():
    rng = np.random.default_rng(2)
    widths = []
    for count in (100, 1600):
        _, low, high = bootstrap(documents(rng, count), ratio)
        widths.append(float((high - low)[0]))
    assert 0.2 < widths[1] / widths[0] < 0.32  # 1/4


def test_one_document_and_a_denominator_that_may_vanish_have_no_interval():
    value, low, high = bootstrap(np.array([[4.0, 2.0]]), ratio)
    assert value == 0.5 and np.isnan([low, high]).all()

    def share(sums: np.ndarray) -> np.ndarray:
        tokens = np.where(sums[..., :1] > 0, sums[..., :1], np.nan)
        return sums[..., 1:] / tokens

    value, low, high = bootstrap(np.array([[2.0, 1.0], [-1.0, 1.0], [1.0, 1.0]]), share)
    assert value == 1.5 and np.isnan([low, high]).all()
