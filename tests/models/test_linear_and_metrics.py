from __future__ import annotations

import numpy as np
import pytest
import torch
from made_stores import make_rows
from saekit_kernels import from_dense
from sklearn.decomposition import PCA as SklearnPCA

from saekit.errors import DataError, UsageError
from saekit.models.catalog import CATALOG, build, check_options, model_options, restore
from saekit.models.linear import PCA, PCAConfig
from saekit.models.metrics import METRICS, ROW_METRICS, RowSums
from saekit.models.normalizer import Normalizer


def fitted(x, latents):
    pca = PCA(PCAConfig(x.shape[1], latents)).double()
    pca.fit(iter(x.split(100)))
    return pca


def test_pca_finds_the_subspace_and_error_of_scikit_learn():
    x = make_rows(500).double()
    ours, theirs = fitted(x, 5), SklearnPCA(5).fit(x.numpy())
    angles = np.linalg.svd(ours.components.numpy() @ theirs.components_.T)[1]
    assert np.allclose(angles, 1, atol=1e-9)
    expected = theirs.inverse_transform(theirs.transform(x.numpy()))
    np.testing.assert_allclose(ours(x).x_hat, expected, atol=1e-9)
    np.testing.assert_allclose(
        ours.explained_variance, theirs.explained_variance_ * 499 / 500, rtol=1e-9
    )


def test_the_error_of_pca_is_the_sum_of_the_trailing_eigenvalues():
    x = make_rows(500).double()
    eigenvalues = np.linalg.eigvalsh(np.cov(x.numpy().T, bias=True))[::-1]
    error = (fitted(x, 5)(x).x_hat - x).square().sum(1).mean()
    assert error.item() == pytest.approx(eigenvalues[5:].sum(), rel=1e-9)


def test_folding_pca():
    raw = make_rows(300).double()
    mean, scale = raw.mean(0), 0.2
    inside = fitted((raw - mean) * scale, 4)
    outside = PCA(PCAConfig(16, 4)).double()
    outside.load_state_dict(inside.folded(Normalizer(mean, scale)))
    torch.testing.assert_close(
        outside(raw).x_hat, inside((raw - mean) * scale).x_hat / scale + mean
    )


@pytest.mark.parametrize("latents", [0, 17])
def test_pca_refuses_more_components_than_dimensions(latents):
    with pytest.raises(UsageError, match="1 to d_in = 16"):
        PCA(PCAConfig(16, latents))


def test_figures_by_hand():
    x = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    x_hat = torch.tensor([[1.0, 1.0], [3.0, 3.0]])
    z = torch.tensor([[0.5, 0.0, 0.0], [1.0, 2.0, 0.0]])
    sums = RowSums(active_above=0.0)
    for i in range(2):
        sums.add(x[i : i + 1], x_hat[i : i + 1], from_dense(z[i : i + 1]))
    f = sums.figures()
    # errors 1 + 1; variance around (2, 2): (1 + 4) + (1 + 4)
    assert f["fvu"] == pytest.approx(2 / 10) and f["mse"] == pytest.approx(1.0)
    assert f["cosine"] == pytest.approx((1 / 2**0.5 + (9 + 12) / (5 * 18**0.5)) / 2)
    assert f["l0"] == pytest.approx(1.5) and f["dead"] == pytest.approx(1 / 3)
    assert f.density.tolist() == [1.0, 0.5, 0.0] and f.rows == 2


def test_a_sigmoid_code_is_active_above_one_half():
    sums = RowSums(active_above=0.5)
    sums.add(torch.eye(2), torch.eye(2), torch.tensor([[0.4, 0.6], [0.5, 0.9]]))
    assert sums.figures()["l0"] == 1.0 and sums.figures()["dead"] == 0.5


def test_dense_codes_have_no_sparsity_figures():
    sums = RowSums(active_above=None)
    sums.add(torch.eye(2), torch.eye(2), torch.ones(2, 2))
    f = sums.figures()
    assert (f["l0"], f["dead"], f.density) == (None, None, None)


def test_a_metric_is_printed_by_its_own_form_and_not_where_it_does_not_apply():
    texts = {name: METRICS[name].text(0.0123456) for name in ("fvu", "mse", "l0", "dead")}
    assert texts == {"fvu": "0.0123", "mse": "0.01235", "l0": "0.0", "dead": "1.2%"}
    assert [METRICS["fvu"].text(value, "–") for value in (None, float("nan"))] == ["–", "–"]
    assert all(metric.meaning and metric.of is not None for metric in ROW_METRICS)


def test_the_explained_variance_about_zero_forgives_a_long_mean():
    x = torch.randn(50, 8, dtype=torch.float64) + 100
    x_hat = x.mean(0).expand_as(x)
    sums = RowSums(None)
    for part in torch.arange(50).split(13):
        sums.add(x[part], x_hat[part], x)
    figures = sums.figures()
    expected = 1 - (x - x_hat).square().sum() / x.square().sum()
    assert figures["ev_zero"] == pytest.approx(float(expected), rel=1e-12)
    assert figures["ev_zero"] > 0.999 and figures["fvu"] == pytest.approx(1.0)
    zeros = RowSums(None)
    zeros.add(torch.zeros(3, 2), torch.ones(3, 2), torch.ones(3, 2))
    assert METRICS["ev_zero"].text(zeros.figures()["ev_zero"]) == "-"


def test_figures_do_not_depend_on_the_batches():
    x, x_hat = torch.randn(100, 8) + 5, torch.randn(100, 8) + 5
    z = torch.randn(100, 12).relu()
    one, many = RowSums(0.0), RowSums(0.0)
    one.add(x, x_hat, z)
    for part in torch.arange(100).split(7):
        many.add(x[part], x_hat[part], z[part])
    for name, value in one.figures().scalars().items():
        assert many.figures().scalars()[name] == pytest.approx(value, rel=1e-12), name


@pytest.mark.parametrize("name", CATALOG)
def test_every_model_of_the_catalog_can_be_built_and_describes_its_options(name):
    model = build(name, 48, {}, shape=(4, 4, 3), classes=("a", "b"))
    assert model.d_in == 48 and model.strategy in ("gradient", "closed_form", "adversarial")
    assert model_options(name) and CATALOG[name].line


def test_an_option_of_another_model_is_refused():
    with pytest.raises(UsageError, match='coef does not apply to model="pca", which takes latents'):
        check_options("pca", {"coef": 1.0})
    with pytest.raises(UsageError, match='model="sea": did you mean sae'):
        check_options("sea", {})


def test_tensors_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="does not fit a pca model"):
        restore("pca", {"d_in": 16, "latents": 4}, {"mean": torch.zeros(3)})
