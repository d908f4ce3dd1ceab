from __future__ import annotations

import math

import pytest
import torch

from saekit.measures.denoising import GaussianMixture, psnr, score_estimate, vector_field

DOUBLE = torch.float64


def mixture(std=0.3):
    means = torch.tensor([[0.0, 0.0], [2.0, 1.0], [-1.0, 3.0]], dtype=DOUBLE)
    return GaussianMixture(means, std, torch.tensor([1.0, 2.0, 5.0], dtype=DOUBLE))


def points(n=200, seed=0):
    return 3 * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def test_psnr_by_hand():
    clean = torch.zeros(2, 5)
    assert psnr(clean, clean + 0.1) == pytest.approx(20.0, abs=1e-5)  # MSE 0.01
    assert psnr(255 * clean, clean + 25.5, peak=255) == pytest.approx(20.0, abs=1e-5)
    assert psnr(clean, clean) == math.inf
    # pooled: errors 1 and 0 in equal number are an MSE of 1/2, whatever the images
    assert psnr(clean, torch.tensor([[1.0] * 5, [0.0] * 5])) == pytest.approx(10 * math.log10(2))


def test_gaussian_noise_of_a_quarter_is_twelve_decibels():
    clean = torch.rand(1000, 784)
    noisy = clean + 0.25 * torch.randn(1000, 784, generator=torch.Generator().manual_seed(0))
    # 20 log10(1 / 0.25); 784,000 squares pin it to 0.007 dB (one standard error)
    assert psnr(clean, noisy) == pytest.approx(12.04, abs=0.03)


def test_the_density_is_that_of_torch():
    from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

    gm, sigma = mixture(), 0.7
    std = torch.full_like(gm.means_MD, math.hypot(gm.std, sigma))
    theirs = MixtureSameFamily(Categorical(gm.weights_M), Independent(Normal(gm.means_MD, std), 1))
    torch.testing.assert_close(
        gm.log_density(points(), sigma), theirs.log_prob(points()), atol=1e-10, rtol=0
    )


@pytest.mark.parametrize("sigma", [0.0, 0.05, 0.7])
def test_the_score_is_the_gradient_of_the_log_density(sigma):
    x = points().requires_grad_()
    (gradient,) = torch.autograd.grad(mixture().log_density(x, sigma).sum(), x)
    torch.testing.assert_close(mixture().score(x.detach(), sigma), gradient, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("std", [0.0, 0.3])
@pytest.mark.parametrize("sigma", [0.1, 0.7])
def test_the_pull_of_the_best_denoiser_is_the_score_of_the_noised_density(std, sigma):
    gm = mixture(std)
    estimate = score_estimate(lambda x: gm.denoise(x, sigma), points(), sigma)
    torch.testing.assert_close(estimate, gm.score(points(), sigma), atol=1e-10, rtol=1e-10)


def test_the_best_denoiser_is_the_posterior_mean_by_integration():
    gm = GaussianMixture(
        torch.tensor([[-1.0], [1.5]], dtype=DOUBLE), 0.4, torch.tensor([3.0, 1.0], dtype=DOUBLE)
    )
    clean, sigma = torch.linspace(-8, 8, 20001, dtype=DOUBLE), 0.6
    for x in (-2.0, 0.3, 1.1):
        joint = gm.log_density(clean[:, None]).exp() * torch.exp(
            -((x - clean) ** 2) / (2 * sigma**2)
        )
        expected = (clean * joint).sum() / joint.sum()
        assert gm.denoise(torch.tensor([[x]], dtype=DOUBLE), sigma).item() == pytest.approx(
            expected.item(), abs=1e-10
        )


def test_draws_have_the_moments_of_the_mixture():
    gm = mixture()
    x = gm.sample(20_000, torch.Generator().manual_seed(0))
    share = gm.weights_M / gm.weights_M.sum()
    mean = share @ gm.means_MD
    variance = gm.std**2 + share @ (gm.means_MD - mean).square()
    assert x.dtype == DOUBLE
    # std 1.1 over sqrt(20,000) is 0.008
    torch.testing.assert_close(x.mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(x.var(0), variance, atol=0.06, rtol=0)
    torch.testing.assert_close(x, gm.sample(20_000, torch.Generator().manual_seed(0)))


def test_the_field_runs_along_the_first_axis_and_points_where_the_rows_go():
    at, pull = vector_field(lambda x: 0.5 * x, low=(0.0, 10.0), high=(2.0, 14.0), count=3)
    assert at.tolist() == [
        [0, 10],
        [1, 10],
        [2, 10],
        [0, 12],
        [1, 12],
        [2, 12],
        [0, 14],
        [1, 14],
        [2, 14],
    ]
    torch.testing.assert_close(pull, -0.5 * at)


def test_a_trained_denoising_autoencoder_knows_the_score():
    """(g(f(x)) - x) / sigma^2 against the exact gradient of the noised density, where noised data
    lie."""
    from saekit.estimator import Estimator

    gen, sigma = torch.Generator().manual_seed(0), 0.4
    known = mixture()
    options = {"hidden": (64,), "noise": f"gaussian:{sigma}"}
    trained = Estimator("dense", latents=32, options=options, normalize="none", epochs=30).fit(
        known.sample(4000, gen).float()
    )
    x = known.sample(1000, gen)
    noised = x + sigma * torch.randn(x.shape, generator=gen, dtype=DOUBLE)
    exact = known.score(noised, sigma)
    estimate = score_estimate(
        lambda rows: trained.reconstruct(rows.float()).double(), noised, sigma
    )
    assert (estimate - exact).square().sum() < 0.1 * exact.square().sum()
    # the clean density's score is another one: it was learnt at this noise, not below it
    assert (estimate - known.score(noised)).square().sum() > 0.3 * known.score(
        noised
    ).square().sum()
