from __future__ import annotations

import numpy as np
import pytest
import torch
from saekit_kernels import from_dense
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from saekit.errors import DataError, NumericsError, UsageError
from saekit.measures.codes import (
    few_labels,
    knn_accuracy,
    map_2d,
    principal_angles,
    trustworthiness,
)

XOR = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]]).repeat(5, 1)
XOR_LABELS = [0, 0, 1, 1] * 5


@pytest.fixture(scope="module")
def digits():
    """(training pixels, labels, test pixels, labels), 1,437 and 360 rows."""
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.data))
    x, y = torch.from_numpy(bunch.data[order] / 16), torch.from_numpy(bunch.target[order])
    return x[:1437], y[:1437], x[1437:], y[1437:]


def test_the_majority_of_the_nearest_neighbours_decides():
    train = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
    # 5.9 is nearest to 2, 10 and 1: two of three say a
    accuracy = knn_accuracy(
        train, list("aaabbb"), torch.tensor([[1.4], [11.0], [5.9]]), ["a", "b", "b"], k=3
    )
    assert accuracy == pytest.approx(2 / 3)
    assert (
        knn_accuracy(
            train, list("aaabbb"), torch.tensor([[1.4], [11.0], [6.1]]), ["a", "b", "b"], k=1
        )
        == 1
    )


def test_raw_digits_have_the_known_neighbour_accuracy(digits):
    # 0.975 on another draw of 360; two standard errors are 0.016
    assert knn_accuracy(*digits) == pytest.approx(0.975, abs=0.017)


def test_a_linear_probe_does_not_see_what_neighbours_see():
    (probe,) = few_labels(XOR, XOR_LABELS, XOR, XOR_LABELS, per_class=(len(XOR) // 2,))
    assert probe.mean == 0.5
    assert knn_accuracy(XOR, XOR_LABELS, XOR, XOR_LABELS, k=3) == 1.0


def test_a_probe_does_not_depend_on_the_units_of_a_latent(digits):
    x, y, x_test, y_test = (part[:300] for part in digits)
    units = torch.logspace(-3, 3, 64, dtype=torch.float64)
    few = few_labels(x, y, x_test, y_test, per_class=(5, 20))
    assert few[1].mean > 0.8
    assert few_labels(x * units, y, x_test * units, y_test, per_class=(5, 20)) == few


def test_sparse_and_dense_codes_are_judged_alike(digits):
    x, y, x_test, y_test = (part[:200] for part in digits)
    x, x_test = x.float(), x_test.float()
    assert knn_accuracy(from_dense(x), y, from_dense(x_test), y_test) == knn_accuracy(
        x, y, x_test, y_test
    )


def test_all_labels_of_a_class_are_the_plain_probe():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], 20)
    x = rng.normal(size=(60, 4)) + np.eye(3, 4)[y]
    (every,) = few_labels(x, y, x[::2], y[::2], per_class=(20,))
    scaled = (x - x.mean(0)) / x.std(0)
    expected = LogisticRegression().fit(scaled, y).score(scaled[::2], y[::2])
    assert every.mean == pytest.approx(expected) and every.std == pytest.approx(0)


def test_few_labels_report_each_draw_and_their_spread(digits):
    rows = few_labels(*digits, per_class=(1, 20), seeds=(0, 1, 2))
    assert [row.per_class for row in rows] == [1, 20] and rows[0].mean < rows[1].mean - 0.2
    for row in rows:
        assert row.mean == pytest.approx(sum(row.accuracies) / 3)
        assert row.std == pytest.approx(
            (sum((a - row.mean) ** 2 for a in row.accuracies) / 2) ** 0.5
        )
    # a seed stands for itself, whichever others and whatever other sizes are asked for
    (again,) = few_labels(*digits, per_class=(20,), seeds=(2,))
    assert again.accuracies == rows[1].accuracies[2:] and again.std is None


def test_a_class_with_too_few_rows_is_named():
    with pytest.raises(DataError, match="class b has 2 training rows, fewer than 5"):
        few_labels(
            torch.randn(12, 2),
            list("aaaaaaaaaabb"),
            torch.randn(2, 2),
            ["a", "b"],
            per_class=(1, 5),
        )


def by_definition(x, z, k):
    """Venna and Kaski's sum, rank by rank."""
    n = len(x)
    near_x, near_z = torch.cdist(x, x).argsort(1).tolist(), torch.cdist(z, z).argsort(1).tolist()
    penalty = sum(max(0, near_x[i].index(j) - k) for i in range(n) for j in near_z[i][1 : k + 1])
    return 1 - 2 / (n * k * (2 * n - 3 * k - 1)) * penalty


def test_trustworthiness_is_one_for_a_copy_and_follows_its_definition():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    assert trustworthiness(x, 3 * x) == 1.0
    partly = x[:, :2]
    assert trustworthiness(x, partly, neighbours=4) == pytest.approx(
        by_definition(x, partly, 4), abs=1e-12
    )
    assert trustworthiness(x.view(60, 5, 1), partly) > trustworthiness(
        x, x[torch.randperm(60, generator=generator)]
    )


def test_trustworthiness_judges_the_drawn_rows_only():
    x, z = torch.randn(300, 6), torch.randn(300, 2)
    few = trustworthiness(x, z, rows=40, seed=1)
    assert few == trustworthiness(x, z, rows=40, seed=1) != trustworthiness(x, z, rows=40, seed=2)
    drawn = np.sort(np.random.default_rng(1).choice(300, 40, replace=False))
    assert few == trustworthiness(x[drawn], z[drawn])
    with pytest.raises(UsageError, match="under half of the 10 rows"):
        trustworthiness(x[:10], z[:10], neighbours=5)


def test_principal_angles_of_a_turned_plane():
    turn = np.radians(30)
    A = [[1.0, 0, 0, 0], [0, 1, 0, 0]]
    B = [[1.0, 0, 0, 0], [0, np.cos(turn), np.sin(turn), 0]]
    np.testing.assert_allclose(principal_angles(np.array(A), np.array(B)), [0, 30], atol=1e-12)
    # another basis of the same plane, and a plane against a line within it
    mixed = torch.tensor([[2.0, 1.0], [1.0, -3.0]], dtype=torch.float64) @ torch.tensor(
        B, dtype=torch.float64
    )
    np.testing.assert_allclose(principal_angles(np.array(A), mixed), [0, 30], atol=1e-12)
    np.testing.assert_allclose(
        principal_angles(np.array(A), np.array([[3.0, 4, 0, 0]])), [0], atol=1e-12
    )
    np.testing.assert_allclose(principal_angles(np.array(A), np.array([[0.0, 0, 0, 1]])), [90])


def test_a_tiny_angle_is_not_rounded_to_zero():
    # its cosine is 1 in fp64
    tiny = principal_angles(np.array([[1.0, 0.0]]), np.array([[1.0, 1e-10]]))
    np.testing.assert_allclose(tiny, [np.degrees(1e-10)], rtol=1e-6)


def test_the_pca_map_holds_the_two_widest_directions():
    x = torch.randn(50, 6, dtype=torch.float64) * torch.tensor(
        [5.0, 0.1, 3.0, 0.1, 0.1, 0.1], dtype=torch.float64
    )
    variances = np.linalg.eigvalsh(np.cov(x.numpy().T))[::-1]
    np.testing.assert_allclose(map_2d(x).var(0, ddof=1), variances[:2], rtol=1e-9)


def test_the_tsne_map_keeps_clusters_together_and_repeats():
    x = torch.randn(40, 8) + 20 * torch.eye(2, 8).repeat_interleave(20, 0)
    y = [0] * 20 + [1] * 20
    points = map_2d(x, "tsne", seed=3)
    assert points.shape == (40, 2) and knn_accuracy(points, y, points, y, k=3) == 1.0
    np.testing.assert_array_equal(points, map_2d(x, "tsne", seed=3))


def test_what_cannot_be_judged_is_refused_with_its_place():
    z, y = torch.randn(6, 2), [0, 0, 0, 1, 1, 1]
    broken = z.clone()
    broken[4, 1] = torch.nan
    with pytest.raises(NumericsError, match="codes: row 4 is not finite"):
        knn_accuracy(z, y, broken, y)
    with pytest.raises(DataError, match="codes: row 1 has no label"):
        knn_accuracy(z, y, z, ["a", None, "b", "a", "b", "a"])
    with pytest.raises(DataError, match=r"labels of shape \(5,\) for 6 rows"):
        few_labels(z, y[:5], z, y)
    with pytest.raises(DataError, match="only one class"):
        few_labels(z, [1] * 6, z, y)
    with pytest.raises(DataError, match="2 latents to train on, 1 to evaluate"):
        knn_accuracy(z, y, z[:, :1], y)
    with pytest.raises(UsageError, match="k = 7 neighbors"):
        knn_accuracy(z, y, z, y, k=7)
    with pytest.raises(UsageError, match="umap"):
        map_2d(z, "umap")
    with pytest.raises(DataError, match="of 1 latents"):
        map_2d(z[:, :1])
