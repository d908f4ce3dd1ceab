from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from saekit.errors import DataError, NumericsError
from saekit.measures.anomaly import auroc, error_histogram, one_class


def test_auroc_counts_ordered_pairs_and_ties_by_half():
    # of 3 x 2 pairs: 2 beats 1 and ties with 2, 4 beats all three
    assert auroc(torch.tensor([1.0, 2.0, 3.0]), np.array([2.0, 4.0])) == pytest.approx(4.5 / 6)
    assert auroc(torch.tensor([1.0]), torch.tensor([0.0])) == 0.0


def test_errors_must_be_there_finite_and_one_a_row():
    with pytest.raises(DataError, match="anomalous errors: there are no rows"):
        auroc(torch.ones(3), torch.ones(0))
    with pytest.raises(NumericsError, match="normal errors: row 1"):
        auroc(torch.tensor([0.0, torch.inf]), torch.ones(2))
    with pytest.raises(DataError, match="4 values per row"):
        auroc(torch.ones(3, 4), torch.ones(2))


def from_the_mean(x):
    mean = x.mean(0)
    return lambda rows: (rows - mean).square().sum(1)


def test_each_class_is_judged_from_its_own_training_rows():
    x, y = torch.tensor([[0.0], [2.0], [10.0], [12.0]]), ["a", "a", "b", "b"]
    # mean of a: 1, of b: 11. Test row 6.5 of b is nearer to a's mean than 7 of a is, and farther
    # from b's mean than 7 of a is.
    result = one_class(
        from_the_mean, x, y, torch.tensor([[0.0], [7.0], [6.5], [12.0]]), ["a", "a", "b", "b"]
    )
    # a: errors 1, 36 | 30.25, 121: three pairs of four in order; b: 20.25, 1 | 121, 16: again three
    assert (
        result.by_class == {"a": 0.75, "b": 0.75}
        and result.mean == 0.75
        and result.worst == ("a", 0.75)
    )


def test_a_class_that_was_never_trained_on_is_refused():
    x = torch.zeros(2, 1)
    with pytest.raises(DataError, match="each of them among the training rows"):
        one_class(from_the_mean, x, [0, 1], x, [0, 2])


def test_the_residual_of_pca_on_digits_reaches_its_known_area():
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.data))
    x, y = torch.from_numpy(bunch.data[order] / 16), bunch.target[order]

    def residual(rows):
        pca = PCA(16).fit(rows)
        return lambda test: ((test.numpy() - pca.inverse_transform(pca.transform(test))) ** 2).sum(
            1
        )

    result = one_class(residual, x[:1437], y[:1437], x[1437:], y[1437:])
    # another draw of 360 rows gave mean 0.998 and worst 0.994
    assert sorted(result.by_class) == list(range(10))
    assert result.mean == pytest.approx(0.998, abs=0.002) and result.worst[1] == pytest.approx(
        0.994, abs=0.006
    )


def test_the_histogram_has_common_edges_and_loses_no_row():
    edges, counts = error_histogram(
        torch.tensor([0.0, 0.5, 1.0]), torch.tensor([3.0, 4.0, 4.0]), bins=4
    )
    assert edges == [0, 1, 2, 3, 4] and counts == {
        "normal": [2, 1, 0, 0],
        "anomalous": [0, 0, 0, 3],
    }
