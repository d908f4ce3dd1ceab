"""Penalties on the code, each against an independent computation in fp64."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from saekit_kernels import reference
from torch.autograd.functional import jacobian
from torch.distributions import Normal, kl_divergence

from saekit.models.classic import ACTIVATIONS
from saekit.models.penalties import SLOPES, contractive, gaussian_kl, kl, l1


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_l1_is_the_penalty_of_the_sae():
    x, W_enc, b_enc, W_dec, b_dec = (
        normal(9, 5),
        normal(7, 5, seed=1),
        normal(7, seed=2),
        3 * normal(7, 5, seed=3),
        normal(5, seed=4),
    )
    _, expected, z = reference.relu_reconstruction_dense(x, W_enc, b_enc, W_dec, b_dec)
    torch.testing.assert_close(l1(z, W_dec.norm(dim=1)), expected, rtol=1e-12, atol=0)


def test_l1_counts_magnitudes_of_signed_codes():
    z = torch.tensor([[1.0, -2.0], [-3.0, 0.0]], dtype=torch.float64)
    assert l1(z, torch.tensor([1.0, 10.0]).double()).item() == pytest.approx((1 + 20 + 3) / 2)


@pytest.mark.parametrize("rate", [0.01, 0.3])
def test_kl_is_the_penalty_of_the_sae_with_its_gradient(rate):
    x, W_enc, b_enc, W_dec, b_dec = (
        normal(9, 5),
        normal(7, 5, seed=1),
        normal(7, seed=2),
        normal(7, 5, seed=3),
        normal(5, seed=4),
    )
    W_enc.requires_grad_()
    _, expected, f = reference.sigmoid_reconstruction_dense(x, W_enc, b_enc, W_dec, b_dec, rate)
    ours = kl(f, rate)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    mine, theirs = (
        torch.autograd.grad(value, W_enc, retain_graph=True)[0] for value in (ours, expected)
    )
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_kl_is_zero_only_at_the_rate():
    assert kl(torch.full((4, 3), 0.2, dtype=torch.float64), 0.2).item() == pytest.approx(
        0, abs=1e-15
    )
    assert kl(torch.full((4, 3), 0.3, dtype=torch.float64), 0.2).item() > 0.01


def test_the_divergence_of_a_gaussian_is_that_of_torch():
    mean, log_variance = 2 * normal(6, 4), 3 * normal(6, 4, seed=1)
    posterior = Normal(mean, (0.5 * log_variance).exp())
    expected = kl_divergence(posterior, Normal(torch.zeros_like(mean), torch.ones_like(mean))).sum(
        1
    )
    torch.testing.assert_close(gaussian_kl(mean, log_variance), expected, rtol=1e-12, atol=1e-12)
    assert gaussian_kl(torch.zeros(1, 4), torch.zeros(1, 4)).item() == 0


@pytest.mark.parametrize("name", SLOPES)
def test_slopes_are_the_derivatives_of_the_activations(name):
    a = torch.linspace(-6, 6, 101, dtype=torch.float64)
    a = a[a != 0].requires_grad_()
    h = ACTIVATIONS[name](a)
    expected = torch.autograd.grad(h.sum(), a)[0]
    torch.testing.assert_close(SLOPES[name](a, h), expected, rtol=1e-10, atol=1e-12)


def test_every_activation_has_a_slope():
    assert SLOPES.keys() == ACTIVATIONS.keys()


WIDTHS = {1: (5, 3), 2: (5, 4, 3), 3: (5, 6, 4, 3), 4: (5, 6, 4, 2, 3)}


def stack(widths):
    pairs = list(pairwise(widths))
    return [normal(b, a, seed=i) for i, (a, b) in enumerate(pairs)], [
        normal(b, seed=10 + i) for i, (_, b) in enumerate(pairs)
    ]


def forward(x, weights, biases, kinds):
    slopes, h = [], x
    for W, b, kind in zip(weights, biases, kinds):
        a = h @ W.T + b
        h = ACTIVATIONS[kind](a)
        slopes.append(SLOPES[kind](a, h))
    return h, slopes


@pytest.mark.parametrize("layers", WIDTHS)
@pytest.mark.parametrize("kind", SLOPES)
@pytest.mark.parametrize("code", ["linear", "relu", "sigmoid"])
def test_the_contractive_penalty_is_the_squared_norm_of_the_jacobian(layers, kind, code):
    weights, biases = stack(WIDTHS[layers])
    kinds = [kind] * (layers - 1) + [code]
    x = normal(7, 5, seed=99)
    expected = torch.stack(
        [
            jacobian(lambda row: forward(row[None], weights, biases, kinds)[0][0], row)
            .square()
            .sum()
            for row in x
        ]
    ).mean()
    _, slopes = forward(x, weights, biases, kinds)
    torch.testing.assert_close(contractive(slopes, weights), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("kind", ["sigmoid", "tanh", "silu", "gelu"])
def test_the_gradient_of_the_contractive_penalty(layers, kind):
    weights, biases = stack(WIDTHS[layers])
    x = normal(3, 5, seed=99)

    def penalty(*parameters):
        W, b = parameters[:layers], parameters[layers:]
        return contractive(forward(x, W, b, [kind] * layers)[1], W)

    assert torch.autograd.gradcheck(penalty, [p.requires_grad_() for p in (*weights, *biases)])
