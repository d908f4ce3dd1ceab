"""k-means as an autoencoder: scikit-learn's centroids, one latent a row, folding, and rows far from
the origin."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from saekit_kernels import SparseCodes
from sklearn.cluster import KMeans as Lloyd
from sklearn.cluster import MiniBatchKMeans

from saekit.errors import DataError, UsageError
from saekit.models.catalog import build, restore
from saekit.models.kmeans import BATCH, KMeans, KMeansConfig
from saekit.models.metrics import RowSums
from saekit.models.normalizer import Normalizer


def blobs(rows=1200, centres=6, width=5, seed=0):
    gen = torch.Generator().manual_seed(seed)
    middle = 20 * torch.randn(centres, width, generator=gen)
    return middle[torch.arange(rows) % centres] + torch.randn(rows, width, generator=gen)


def fitted(x, latents, batch=500, seed=0):
    model = KMeans(KMeansConfig(x.shape[1], latents, seed))
    model.fit(iter(x.split(batch)))
    return model


def in_order(centroids):
    return centroids[np.lexsort(np.asarray(centroids).T)]


def test_a_small_store_gets_the_centroids_of_scikit_learn_on_all_of_it():
    x = blobs()
    theirs = (
        MiniBatchKMeans(6, batch_size=BATCH, n_init=1, random_state=0)
        .fit(x.numpy())
        .cluster_centers_
    )
    np.testing.assert_allclose(fitted(x, 6).centroids.numpy(), theirs, rtol=1e-6)


def test_a_large_store_gets_those_of_one_pass_in_batches():
    x = blobs(3 * BATCH)
    model = MiniBatchKMeans(6, batch_size=BATCH, n_init=1, random_state=0)
    for part in x.split(BATCH):
        model.partial_fit(part.numpy())
    np.testing.assert_allclose(
        fitted(x, 6, batch=BATCH // 2).centroids.numpy(), model.cluster_centers_, rtol=1e-6
    )


def test_separate_clusters_get_their_means():
    x = blobs()
    lloyd = Lloyd(6, n_init=20, random_state=1).fit(x.numpy())
    ours = min(
        (fitted(x, 6, seed=seed) for seed in range(8)),
        key=lambda model: (model(x).x_hat - x).square().sum().item(),
    )
    np.testing.assert_allclose(
        in_order(ours.centroids.numpy()), in_order(lloyd.cluster_centers_), atol=0.2
    )
    assert (ours(x).x_hat - x).square().sum().item() == pytest.approx(lloyd.inertia_, rel=0.01)


def test_no_row_of_a_pass_is_left_out():
    """The rows after the last full batch hold their own cluster: a latent must go there."""
    x = torch.cat(
        [blobs(BATCH, 3), torch.full((BATCH // 2, 5), 500.0) + torch.randn(BATCH // 2, 5)]
    )
    seen = []

    class Counting(MiniBatchKMeans):
        def partial_fit(self, X, y=None, sample_weight=None):
            seen.append(len(X))
            return super().partial_fit(X, y, sample_weight)

        def fit(self, X, y=None, sample_weight=None):
            seen.append(len(X))
            return super().fit(X, y, sample_weight)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sklearn.cluster.MiniBatchKMeans", Counting)
        fitted(x, 8, batch=BATCH)
    assert sum(seen) == len(x)


def test_code_and_reconstruction_by_hand():
    model = KMeans(KMeansConfig(2, latents=3))
    model.centroids.copy_(torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 3.0]]))
    output = model(torch.tensor([[1.9, 0.0], [2.1, 0.0], [1.0, 9.0]]))
    assert isinstance(output.code, SparseCodes)
    assert output.code.to_dense().tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    assert output.x_hat.tolist() == [[0.0, 0.0], [4.0, 0.0], [0.0, 3.0]]
    assert torch.equal(model.decode(output.code), output.x_hat)


def test_figures_count_one_latent_a_row():
    x = blobs()
    model, sums = fitted(x, 6), RowSums(KMeans.active_above)
    sums.add_output(x, model(x))
    counts = torch.bincount(
        torch.cdist(x.double(), model.centroids.double()).argmin(1), minlength=6
    )
    assert sums.figures()["l0"] == pytest.approx(1.0)
    assert sums.figures().density.tolist() == pytest.approx((counts / len(x)).tolist())


def test_folding_gives_raw_centroids():
    raw = 7 + blobs()
    mean, scale = raw.mean(0), 0.2
    inside = fitted((raw - mean) * scale, 6)
    outside = restore(
        "kmeans", dataclasses.asdict(inside.config), inside.folded(Normalizer(mean, scale))
    )
    expected = inside((raw - mean) * scale)
    assert torch.equal(outside.encode(raw).idx, expected.code.idx)
    torch.testing.assert_close(
        outside(raw).x_hat, expected.x_hat / scale + mean, rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("offset", [0.0, 100.0, 3000.0])
def test_the_nearest_centroid_is_found_far_from_the_origin(offset):
    """Hidden states have values in the thousands on single dimensions: squares of whole rows would
    cancel in fp32."""
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 32, generator=gen)
    model = KMeans(KMeansConfig(32, latents=50))
    centroids = torch.randn(50, 32, generator=gen)
    x[:, 3] += offset
    centroids[:, 3] += offset
    model.centroids.copy_(centroids)
    exact = (x.double()[:, None] - centroids.double()[None]).square().sum(2)
    chosen = exact.gather(1, model.encode(x).idx.long())[:, 0]
    assert (chosen - exact.min(1).values).max().item() < 1e-3, "squared distances are about 60 here"


def test_the_seed_of_the_run_is_the_seed_of_the_centroids():
    x = torch.rand(1000, 5)
    assert torch.equal(fitted(x, 20, seed=1).centroids, fitted(x, 20, seed=1).centroids)
    assert not torch.equal(fitted(x, 20, seed=1).centroids, fitted(x, 20, seed=2).centroids)


def test_more_centroids_than_rows_are_refused():
    with pytest.raises(DataError, match="10 rows cannot have 20 centroids"):
        fitted(torch.rand(10, 3), 20)
    with pytest.raises(UsageError, match="latents=0 must be at least 1"):
        build("kmeans", 3, {"latents": 0})


def test_centroids_are_right_far_from_the_origin():
    generator = torch.Generator().manual_seed(0)
    centers = 20 * torch.randn(5, 6, generator=generator)
    x = centers[torch.randint(5, (3000,), generator=generator)] + 0.1 * torch.randn(
        3000, 6, generator=generator
    )
    model = build("kmeans", 6, {"latents": 5})
    model.fit(iter([x + 1e6]))
    error = (model(x + 1e6).x_hat - (x + 1e6)).square().sum() / (x - x.mean(0)).square().sum()
    assert error < 0.01
