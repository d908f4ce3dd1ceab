"""The Frechet distance against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from saekit.errors import DataError
from saekit.measures.frechet import between_gaussians, frechet_distance


def covariance(seed, width=5):
    A = np.random.default_rng(seed).normal(size=(width, width))
    return A @ A.T


def test_of_diagonal_gaussians_it_is_that_of_means_and_standard_deviations():
    mean_a, mean_b = np.array([0.0, 1.0, 2.0]), np.array([3.0, 1.0, -2.0])
    std_a, std_b = np.array([1.0, 2.0, 0.5]), np.array([1.0, 5.0, 0.0])
    found = between_gaussians(mean_a, np.diag(std_a**2), mean_b, np.diag(std_b**2))
    # 9 + 0 + 16 of the means, 0 + 9 + 0.25 of the deviations
    assert found == pytest.approx(34.25, rel=1e-12)


def test_of_full_covariances_it_is_the_formula_with_a_matrix_square_root():
    a, b, zero = covariance(0), covariance(1), np.zeros(5)
    expected = np.trace(a + b - 2 * np.real(scipy.linalg.sqrtm(a @ b)))
    assert between_gaussians(zero, a, zero, b) == pytest.approx(expected, rel=1e-9)
    assert between_gaussians(zero, b, zero, a) == pytest.approx(expected, rel=1e-9)
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(5, 5)))[0]
    turned = between_gaussians(zero, turn @ a @ turn.T, zero, turn @ b @ turn.T)
    assert turned == pytest.approx(expected, rel=1e-9)


def test_of_equal_sets_it_is_0_also_with_fewer_rows_than_features():
    x = torch.randn(20, 40, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(x, x + 2) == pytest.approx(4 * 40, rel=1e-6)


def test_of_samples_it_comes_near_that_of_their_gaussians():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(20_000, 4, generator=generator)
    b = 1 + 2 * torch.randn(20_000, 4, generator=generator)
    assert frechet_distance(a, b) == pytest.approx(4 * (1 + 1), rel=0.03)


def test_a_covariance_of_one_row_is_refused():
    with pytest.raises(DataError, match="at least two rows"):
        frechet_distance(torch.ones(1, 3), torch.ones(5, 3))
    with pytest.raises(DataError, match="features of 3 and of 4 values"):
        frechet_distance(torch.ones(5, 3), torch.ones(5, 4))
