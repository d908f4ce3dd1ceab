"""Restricted Boltzmann machines small enough to enumerate: energies, conditionals, gradients, all
in fp64."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch

from saekit.models.rbm import RBM

D, F = 4, 3
SIGMAS = 5
KINDS = ["bernoulli", "gaussian"]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def binary(width):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=width)), dtype=torch.float64)


def machine(visible="bernoulli", hidden="bernoulli", scale=1.0, requires_grad=False):
    W, b, c = scale * normal(F, D), 0.5 * normal(F, seed=1), 0.5 * normal(D, seed=2)
    return RBM(*(t.requires_grad_(requires_grad) for t in (W, b, c)), visible, hidden)


def energy(rbm, v, h):
    own = -(rbm.c @ v) if rbm.visible == "bernoulli" else 0.5 * (v - rbm.c).square().sum()
    code = -(rbm.b @ h) if rbm.hidden == "bernoulli" else 0.5 * (h - rbm.b).square().sum()
    return own + code - h @ rbm.W @ v


@pytest.mark.parametrize("visible", KINDS)
def test_free_energy_sums_over_every_binary_code(visible):
    rbm = machine(visible)
    v_BD = binary(D) if visible == "bernoulli" else 2 * normal(5, D, seed=3)
    expected = torch.stack(
        [-torch.stack([-energy(rbm, v, h) for h in binary(F)]).logsumexp(0) for v in v_BD]
    )
    torch.testing.assert_close(rbm.free_energy(v_BD), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("visible", KINDS)
def test_free_energy_integrates_over_gaussian_codes(visible):
    """By Gauss-Hermite quadrature, exact to rounding here; the constant is that of the Gaussian,
    F/2 log 2 pi."""
    rbm = machine(visible, "gaussian", 0.5)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)  # for integrals against exp(-t^2 / 2)
    grid = torch.tensor(list(itertools.product(nodes, repeat=F)))
    log_weight = torch.tensor(list(itertools.product(weights, repeat=F))).log().sum(1)
    v_BD = binary(D) if visible == "bernoulli" else normal(5, D, seed=3)
    for v, ours in zip(v_BD, rbm.free_energy(v_BD)):
        h_NF = grid + rbm.b
        own = -(rbm.c @ v) if visible == "bernoulli" else 0.5 * (v - rbm.c).square().sum()
        # exp(-E) = exp(-V + h^T W v) exp(-|h - b|^2 / 2), whose last factor is the weight of the
        # quadrature.
        log_integral = (log_weight + h_NF @ rbm.W @ v - own).logsumexp(0)
        assert ours.item() == pytest.approx(
            -log_integral.item() + F / 2 * math.log(2 * math.pi), rel=1e-9
        )


def conditional_by_enumeration(rbm, v):
    p = torch.stack([-energy(rbm, v, h) for h in binary(F)]).softmax(0)
    return p @ binary(F)


def test_hidden_samples_have_the_conditional_of_the_energy():
    rbm, n = machine(), 40_000
    for row in binary(D)[[0, 5, 15]]:
        h = rbm.sample_hidden(row.expand(n, D), torch.Generator().manual_seed(0))
        p = conditional_by_enumeration(rbm, row)
        assert set(h.unique().tolist()) <= {0.0, 1.0}
        assert ((h.mean(0) - p).abs() < SIGMAS * (p * (1 - p) / n).sqrt()).all()


def test_gaussian_hidden_samples_have_unit_variance_around_the_energys_minimum():
    rbm, n = machine(hidden="gaussian"), 40_000
    v = normal(D, seed=3)
    h = rbm.sample_hidden(v.expand(n, D), torch.Generator().manual_seed(0))
    mode = torch.linalg.solve(torch.eye(F, dtype=torch.float64), rbm.b + rbm.W @ v)
    slope = torch.autograd.functional.jacobian(lambda h: energy(rbm, v, h), mode)
    assert slope.abs().max() < 1e-12
    assert ((h.mean(0) - mode).abs() < SIGMAS / n**0.5).all()
    assert ((h.var(0) - 1).abs() < SIGMAS * (2 / n) ** 0.5).all()


@pytest.mark.parametrize("visible", KINDS)
def test_visible_means_follow_from_the_energy(visible):
    rbm, h = machine(visible), binary(F)
    if visible == "bernoulli":
        expected = []
        for code in h:
            p = torch.stack([-energy(rbm, v, code) for v in binary(D)]).softmax(0)
            expected.append(p @ binary(D))
        torch.testing.assert_close(
            rbm.visible_mean(h), torch.stack(expected), rtol=1e-10, atol=1e-12
        )
        return
    for code, mean in zip(h, rbm.visible_mean(h)):  # where the energy is least
        slope = torch.autograd.functional.jacobian(partial(energy, rbm, h=code), mean)
        assert slope.abs().max() < 1e-12


@pytest.mark.parametrize("visible,hidden", list(itertools.product(KINDS, KINDS)))
def test_the_gradient_of_contrastive_divergence_is_a_difference_of_correlations(visible, hidden):
    rbm = machine(visible, hidden, requires_grad=True)
    v = binary(D) if visible == "bernoulli" else normal(16, D, seed=3)
    loss, v_k = rbm.contrastive_divergence(v, 2, torch.Generator().manual_seed(0))
    loss.backward()
    assert not v_k.requires_grad

    def statistics(v):
        a = v @ rbm.W.detach().T + rbm.b.detach()
        h = a.sigmoid() if hidden == "bernoulli" else a
        return h.T @ v / len(v), h.mean(0), v.mean(0)

    for parameter, model, data in zip((rbm.W, rbm.b, rbm.c), statistics(v_k), statistics(v)):
        torch.testing.assert_close(parameter.grad, model - data, rtol=1e-10, atol=1e-12)


def test_one_round_is_a_hidden_sample_and_the_visible_mean_of_it():
    rbm, v = machine(), binary(D)
    h = rbm.sample_hidden(v, torch.Generator().manual_seed(7))
    torch.testing.assert_close(
        rbm.chain(v, 1, torch.Generator().manual_seed(7)), (h @ rbm.W + rbm.c).sigmoid()
    )
    assert torch.equal(rbm.chain(v, 0, torch.Generator().manual_seed(7)), v)
    source = torch.Generator().manual_seed(7)
    assert torch.equal(
        rbm.chain(rbm.chain(v, 1, source), 2, source),
        rbm.chain(v, 3, torch.Generator().manual_seed(7)),
    )


def exact_gradients(rbm, data):
    """Of the mean negative log-likelihood, with the partition function summed over all visible
    states."""
    loss = rbm.free_energy(data).mean() + (-rbm.free_energy(binary(D))).logsumexp(0)
    return torch.autograd.grad(loss, (rbm.W, rbm.b, rbm.c))


def test_gibbs_sampling_with_its_conditionals_gives_the_gradient_of_the_exact_likelihood():
    rbm, n, gen = machine(requires_grad=True), 30_000, torch.Generator().manual_seed(0)
    data = binary(D)[[0, 3, 3, 9, 14]]
    v = data[torch.arange(n) % len(data)]
    with torch.no_grad():
        for _ in range(30):
            p = rbm.visible_mean(rbm.sample_hidden(v, gen))
            v = (torch.rand(p.shape, generator=gen, dtype=torch.float64) < p).double()
    ours = torch.autograd.grad(
        rbm.free_energy(data).mean() - rbm.free_energy(v).mean(), (rbm.W, rbm.b, rbm.c)
    )
    for mine, exact in zip(ours, exact_gradients(rbm, data)):
        assert (mine - exact).abs().max() < SIGMAS * 0.5 / n**0.5, (
            "a mean of values in [0, 1] has a deviation of at most 0.5 / sqrt(n)"
        )


@pytest.mark.parametrize("scale,most", [(0.02, 0.01), (0.5, 0.15)])
def test_many_rounds_of_contrastive_divergence_approach_the_exact_likelihood(scale, most):
    """Rounds hand on means of visible units, not samples: exact as the weights go to 0 (what a
    machine starts with), a bias beyond that."""
    rbm, n = machine(scale=scale, requires_grad=True), 30_000
    data = binary(D)[[0, 3, 3, 9, 14]]
    loss, _ = rbm.contrastive_divergence(
        data[torch.arange(n) % len(data)], 30, torch.Generator().manual_seed(0)
    )
    ours = torch.cat([g.flatten() for g in torch.autograd.grad(loss, (rbm.W, rbm.b, rbm.c))])
    exact = torch.cat([g.flatten() for g in exact_gradients(rbm, data)])
    assert (ours - exact).norm() < most * exact.norm() + SIGMAS * 0.5 * (len(exact) / n) ** 0.5
    assert exact.norm() > 0.3


def test_descending_the_divergence_raises_the_exact_likelihood():
    rbm = machine(scale=0.1, requires_grad=True)
    data = binary(D)[[0, 0, 3, 3, 12, 15]].repeat(20, 1)

    def likelihood():
        with torch.no_grad():
            return (
                -rbm.free_energy(data).mean() - (-rbm.free_energy(binary(D))).logsumexp(0)
            ).item()

    before, gen = likelihood(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([rbm.W, rbm.b, rbm.c], lr=0.02)
    for _ in range(800):
        optimizer.zero_grad()
        rbm.contrastive_divergence(data, 1, gen)[0].backward()
        optimizer.step()
    frequencies = torch.tensor([2, 2, 1, 1]).double() / 6
    best = (frequencies * frequencies.log()).sum().item()  # minus the entropy of the data
    assert before < -2.5 and best - 0.5 < likelihood() <= best
