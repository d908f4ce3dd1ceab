"""The variational autoencoder: its loss by hand in fp64, its bound against the likelihood that it
bounds, sampling, folding."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from batches import batch_of
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal, kl_divergence

from saekit.errors import UsageError
from saekit.models.catalog import build, restore
from saekit.models.noise import step_generator
from saekit.models.normalizer import Normalizer
from saekit.models.vae import POSTERIOR, VAE, VAEConfig
from saekit.types import Step

D, F = 4, 2
SIGMAS = 5


def rows(count=6, seed=0):
    return torch.rand(count, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(**options):
    model = VAE(
        VAEConfig(D, **{"latents": F, "hidden": (5,), "activation": "tanh", **options})
    ).double()
    gen = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape, generator=gen, dtype=torch.float64))
    return model


def encoded(model, x):
    """(mean, sigma), using only the weights."""
    h = (x @ model.layers[0].W_up.T + model.layers[0].b_up).tanh()
    mean = h @ model.layers[1].W_up.T + model.layers[1].b_up
    return mean, (0.5 * (h @ model.W_spread.T + model.b_spread)).exp()


def decoded(model, z):
    h = (z @ model.layers[1].W_down.T + model.layers[1].b_down).tanh()
    return h @ model.layers[0].W_down.T + model.layers[0].b_down


def log_likelihood(model, x, z):
    a = decoded(model, z)
    if model.config.output == "bernoulli":
        return -torch.nn.functional.binary_cross_entropy(a.sigmoid(), x, reduction="none").sum(1)
    x_hat = a if model.config.output == "linear" else a.sigmoid()
    return Normal(x_hat, (0.5 * model.log_noise).exp()).log_prob(x).sum(1)


@pytest.mark.parametrize("output", ["linear", "sigmoid", "bernoulli"])
@pytest.mark.parametrize(
    "beta,weight", [(1.0, 1.0), (4.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.5, 2.0)]
)
def test_the_loss_by_hand(output, beta, weight):
    model = filled(output=output, beta=beta, likelihood_weight=weight)
    x = rows()
    mean, sigma = encoded(model, x)
    epsilon = torch.randn(
        mean.shape, generator=step_generator(3, 8, x.device, POSTERIOR), dtype=torch.float64
    )
    reconstruction = -log_likelihood(model, x, mean + sigma * epsilon).mean()
    kl = (
        kl_divergence(Normal(mean, sigma), Normal(torch.zeros_like(mean), torch.ones_like(mean)))
        .sum(1)
        .mean()
    )
    loss = model.loss(batch_of(x), Step(8, seed=3))
    torch.testing.assert_close(loss.terms["reconstruction"], reconstruction, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(loss.terms["kl"], kl, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        loss.total, weight * reconstruction + beta * kl, rtol=1e-10, atol=1e-12
    )
    names, parameters = zip(*model.named_parameters())
    ours = torch.autograd.grad(loss.total, parameters, retain_graph=True)
    theirs = torch.autograd.grad(weight * reconstruction + beta * kl, parameters, allow_unused=True)
    for name, mine, other in zip(names, ours, theirs):
        expected = torch.zeros_like(mine) if other is None else other
        torch.testing.assert_close(mine, expected, rtol=1e-8, atol=1e-10, msg=name)
    assert loss.fired is None


def test_binary_rows_have_the_likelihood_of_a_bernoulli():
    model, x = filled(output="bernoulli"), (rows() < 0.5).double()
    z = torch.randn(6, F, dtype=torch.float64)
    expected = Independent(Bernoulli(logits=decoded(model, z)), 1).log_prob(x)
    torch.testing.assert_close(model._log_likelihood(model.from_code(z), x), expected)


def test_a_latent_that_ignores_its_input_costs_nothing():
    model = filled()
    with torch.no_grad():
        for parameter in (
            model.layers[1].W_up,
            model.layers[1].b_up,
            model.W_spread,
            model.b_spread,
        ):
            parameter.zero_()
    assert model.loss(batch_of(rows())).terms["kl"].item() == 0


def test_the_learnt_variance_is_the_mean_squared_error_at_its_optimum():
    model = filled()
    x = rows()
    squares = model.loss(batch_of(x)).metrics["squared_error"].item() / D
    with torch.no_grad():
        model.log_noise.fill_(math.log(squares))
    loss = model.loss(batch_of(x))
    gradient = torch.autograd.grad(loss.terms["reconstruction"], model.log_noise)[0].item()
    assert gradient == pytest.approx(0, abs=1e-10)
    assert loss.terms["reconstruction"].item() == pytest.approx(
        D / 2 * (math.log(2 * math.pi * squares) + 1)
    )


def test_samples_of_the_posterior_have_its_mean_and_variance():
    model, n = filled(), 40_000
    x = rows(1).expand(n, D)
    z = model.noisy_code(x, x, Step())[0]
    mean, sigma = encoded(model, x[:1])
    assert ((z.mean(0) - mean[0]).abs() < SIGMAS * sigma[0] / n**0.5).all()
    assert ((z.std(0) / sigma[0] - 1).abs() < SIGMAS / (2 * n) ** 0.5).all()
    assert abs(torch.corrcoef(z.T)[0, 1].item()) < SIGMAS / n**0.5
    assert torch.equal(z, model.noisy_code(x, x, Step())[0]) and not torch.equal(
        z, model.noisy_code(x, x, Step(1))[0]
    )


def test_the_code_is_the_mean_of_the_posterior():
    model, x = filled(), rows()
    mean, sigma = encoded(model, x)
    torch.testing.assert_close(model.encode(x), mean)
    posterior_mean, log_variance = model.posterior(x)
    torch.testing.assert_close(posterior_mean, mean)
    torch.testing.assert_close(log_variance, 2 * sigma.log())


def test_spreads_stay_finite_however_large_the_weights():
    model = filled().float()
    with torch.no_grad():
        model.b_spread.fill_(1e4)
    loss = model.loss(batch_of(rows().float()))
    loss.total.backward()
    assert loss.total.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())


def linear_gaussian(log_noise):
    """One latent, no hidden layer: p(x) = N(c, w w^T + s^2 I) and p(z|x) are known."""
    model = VAE(VAEConfig(D, latents=1, hidden=())).double()
    gen = torch.Generator().manual_seed(2)
    w, c, s2 = (
        torch.randn(D, generator=gen, dtype=torch.float64),
        torch.randn(D, generator=gen, dtype=torch.float64),
        math.exp(log_noise),
    )
    with torch.no_grad():
        model.layers[0].W_down.copy_(w[:, None])
        model.layers[0].b_down.copy_(c)
        model.log_noise.fill_(log_noise)
        precision = 1 + w @ w / s2
        model.layers[0].W_up.copy_((w / s2 / precision)[None])
        model.layers[0].b_up.copy_(-(w @ c) / s2 / precision)
        model.b_spread.copy_(-precision.log())
    marginal = MultivariateNormal(c, torch.outer(w, w) + s2 * torch.eye(D, dtype=torch.float64))
    return model, marginal


@pytest.mark.parametrize("log_noise", [0.0, -1.5])
def test_with_the_true_posterior_the_bound_is_the_likelihood(log_noise):
    model, marginal = linear_gaussian(log_noise)
    x = marginal.sample((4,))
    # The same likelihood by quadrature over z, with no formula for Gaussians in it.
    z = torch.linspace(-12, 12, 20_001, dtype=torch.float64)[:, None]
    prior = Normal(0.0, 1.0).log_prob(z[:, 0])
    for row, expected in zip(x, marginal.log_prob(x)):
        integral = (model._log_likelihood(model.from_code(z), row.expand(len(z), D)) + prior).exp()
        assert math.log(np.trapezoid(integral.detach().numpy(), z[:, 0].numpy())) == pytest.approx(
            expected.item(), abs=1e-6
        )
    n = 20_000
    draws = model.elbo(x.repeat(n, 1), torch.Generator().manual_seed(0)).reshape(n, 4)
    deviation = draws.std(0) / n**0.5
    assert ((draws.mean(0) - marginal.log_prob(x)).abs() < SIGMAS * deviation).all()


def test_any_other_posterior_falls_short_by_its_divergence_from_the_true_one():
    model, marginal = linear_gaussian(-0.5)
    x = marginal.sample((4,))
    true_mean, true_log_variance = model.posterior(x)
    true = Normal(true_mean.detach(), (0.5 * true_log_variance).exp().detach())
    with torch.no_grad():
        model.layers[0].b_up += 0.3
        model.b_spread += 0.5
    mean, log_variance = model.posterior(x)
    gap = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), true).sum(1).detach()
    n = 40_000
    draws = model.elbo(x.repeat(n, 1), torch.Generator().manual_seed(0)).reshape(n, 4)
    assert (gap > 0.05).all()
    assert (
        (draws.mean(0) - (marginal.log_prob(x) - gap)).abs() < SIGMAS * draws.std(0) / n**0.5
    ).all()


@pytest.mark.parametrize("output", ["linear", "bernoulli"])
def test_minus_the_loss_is_the_bound(output):
    model, x, n = filled(output=output), rows(1), 30_000
    many = x.expand(n, D)
    loss = model.loss(batch_of(many)).total.item()
    bounds = model.elbo(many, torch.Generator().manual_seed(5))
    assert abs(bounds.mean().item() + loss) < SIGMAS * 2**0.5 * bounds.std().item() / n**0.5


def test_after_folding_the_bound_is_the_density_of_raw_values():
    model = VAE(VAEConfig(D, latents=F, hidden=(5,)))
    gen = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape, generator=gen))
    raw = 5 + 3 * torch.randn(6, D)
    mean, scale = raw.mean(0), 0.4
    outside = restore(
        "vae",
        json.loads(json.dumps(dataclasses.asdict(model.config))),
        model.folded(Normalizer(mean, scale)),
    )
    inside = model.elbo((raw - mean) * scale, torch.Generator().manual_seed(0))
    outer = outside.elbo(raw, torch.Generator().manual_seed(0))
    torch.testing.assert_close(outer, inside + D * math.log(scale), rtol=1e-5, atol=1e-5)
    again = outside(raw).extras["elbo"]
    torch.testing.assert_close(
        again, outside.elbo(raw, step_generator(0, 0, raw.device, POSTERIOR))
    )
    # Against the known density of raw rows: that of N(c, w w^T + s^2 I) moved and stretched.
    tiny, marginal = linear_gaussian(-0.5)
    folded = restore(
        "vae",
        dataclasses.asdict(tiny.config),
        {k: v.float() for k, v in tiny.folded(Normalizer(torch.ones(D), scale)).items()},
    )
    x = marginal.sample((3,))
    n = 20_000
    draws = (
        folded.elbo((x / scale + 1).float().repeat(n, 1), torch.Generator().manual_seed(0))
        .double()
        .reshape(n, 3)
    )
    raw_marginal = MultivariateNormal(
        marginal.mean / scale + 1, marginal.covariance_matrix / scale**2
    )
    tolerance = SIGMAS * draws.std(0) / n**0.5 + 1e-4  # fp32 weights
    assert ((draws.mean(0) - raw_marginal.log_prob(x / scale + 1)).abs() < tolerance).all()


def test_samples_are_decoded_draws_from_the_prior_in_raw_units():
    model, _ = linear_gaussian(-0.5)
    outside = restore(
        "vae",
        dataclasses.asdict(model.config),
        {k: v.float() for k, v in model.folded(Normalizer(torch.ones(D), 0.5)).items()},
    )
    n = 40_000
    x = outside.sample(n, torch.Generator().manual_seed(0)).double()
    w, c = model.layers[0].W_down[:, 0].detach(), model.layers[0].b_down.detach()
    assert x.shape == (n, D)
    assert ((x.mean(0) - (c / 0.5 + 1)).abs() < SIGMAS * 2 * w.abs() / n**0.5 + 1e-5).all()
    torch.testing.assert_close(
        torch.cov(x.T), 4 * torch.outer(w, w), rtol=SIGMAS * (2 / n) ** 0.5, atol=1e-5
    )
    assert torch.equal(
        outside.sample(5, torch.Generator().manual_seed(1)),
        outside.sample(5, torch.Generator().manual_seed(1)),
    )
    bernoulli = build("vae", D, {"latents": F, "hidden": (), "output": "bernoulli"})
    bernoulli.initialise_from(torch.zeros(2, D), torch.Generator().manual_seed(0))
    shown = bernoulli.sample(100, torch.Generator().manual_seed(0))
    assert shown.min() > 0 and shown.max() < 1


def test_the_spread_starts_at_the_prior_s_and_the_noise_at_the_variance_of_the_data():
    model = build("vae", D, {"latents": F})
    sample = 3 + torch.randn(500, D) * torch.tensor([0.1, 0.2, 0.3, 0.4])
    model.initialise_from(sample, torch.Generator().manual_seed(0))
    _, log_variance = model.posterior(torch.randn(5, D))
    assert not log_variance.any()
    assert model.log_noise.exp().item() == pytest.approx(
        (sample - sample.mean(0)).square().mean().item(), rel=1e-5
    )
    model.initialise_from(torch.ones(5, D), torch.Generator().manual_seed(0))
    assert model.log_noise.isfinite(), "constant data have no variance"


def test_the_bound_of_a_model_with_a_target_is_that_of_the_target_or_none():
    """A target of the input's own width cannot be told from the input by its shape, but the config
    knows of it."""
    model = VAE(VAEConfig(D, latents=F, hidden=(5,), d_out=D))
    model.initialise_from(torch.zeros(2, D), torch.Generator().manual_seed(0))
    tensors = model.folded(
        Normalizer(torch.zeros(D), 1.0), Normalizer(torch.full((D,), 100.0), 1.0)
    )
    outside = restore(
        "vae",
        dataclasses.asdict(model.config),
        {name: tensor.clone() for name, tensor in tensors.items()},
    )
    x = torch.rand(6, D)
    elbo = outside(x).extras.get("elbo")
    # x is 100 standard deviations from what is reconstructed: a bound near -5000 nats a value is
    # that of the wrong rows.
    assert elbo is None or elbo.min() > -1000


@pytest.mark.parametrize(
    "options,cause",
    [
        ({"beta": -1.0}, "beta=-1 must not be negative"),
        ({"likelihood_weight": -2.0}, "likelihood_weight=-2 must not be negative"),
        ({"sparsity": "l1"}, 'sparsity does not apply to model="vae"'),
        ({"contractive": 0.1}, 'contractive does not apply to model="vae"'),
        ({"pretrain": "greedy"}, 'pretrain does not apply to model="vae"'),
    ],
)
def test_options_that_cannot_be_are_refused(options, cause):
    with pytest.raises(UsageError, match=cause):
        build("vae", D, options)
