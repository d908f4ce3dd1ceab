"""Last activations and their losses, by hand and against torch in fp64."""

from __future__ import annotations

import math

import pytest
import torch

from saekit.errors import DataError
from saekit.models.outputs import activate, check_range, pointwise_loss, summed_loss

OUTPUTS = ("linear", "sigmoid", "bernoulli")


def sigmoid(a):
    return 1 / (1 + math.exp(-a))


BY_HAND = {
    "linear": lambda a, x: (a - x) ** 2,
    "sigmoid": lambda a, x: (sigmoid(a) - x) ** 2,
    "bernoulli": lambda a, x: -x * math.log(sigmoid(a)) - (1 - x) * math.log(1 - sigmoid(a)),
}


def sample(*shape):
    gen = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=gen, dtype=torch.float64) * 2, torch.rand(
        *shape, generator=gen, dtype=torch.float64
    )


@pytest.mark.parametrize("output", OUTPUTS)
def test_every_value_has_the_loss_of_its_formula(output):
    a, x = sample(3, 4)
    expected = torch.tensor(
        [[BY_HAND[output](p, q) for p, q in zip(r, s)] for r, s in zip(a.tolist(), x.tolist())],
        dtype=torch.float64,
    )
    torch.testing.assert_close(pointwise_loss(output, a, x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        summed_loss(output, a, x), expected.sum(1).mean(), rtol=1e-12, atol=1e-12
    )
    shown = (
        a
        if output == "linear"
        else torch.tensor([[sigmoid(p) for p in r] for r in a.tolist()], dtype=torch.float64)
    )
    torch.testing.assert_close(activate(output, a), shown, rtol=1e-12, atol=1e-12)


def test_cross_entropy_is_that_of_a_bernoulli_distribution():
    a, _ = sample(5, 6)
    x = (torch.rand(5, 6, generator=torch.Generator().manual_seed(1)) < 0.5).double()
    expected = -torch.distributions.Bernoulli(logits=a).log_prob(x)
    torch.testing.assert_close(pointwise_loss("bernoulli", a, x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("output", OUTPUTS)
def test_gradients_are_those_of_finite_differences(output):
    a, x = sample(3, 4)
    mask = torch.tensor([1.0, 0.0, 1.0]).double()
    assert torch.autograd.gradcheck(lambda a: summed_loss(output, a, x, mask), a.requires_grad_())


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_mask_leaves_the_mean_over_the_rows_that_count(output):
    a, x = sample(2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    rows = [pointwise_loss(output, a[b, t], x[b, t]).sum() for b, t in ((0, 0), (0, 1), (1, 0))]
    torch.testing.assert_close(summed_loss(output, a, x, mask), sum(rows) / 3)
    every = summed_loss(output, a, x, torch.ones(2, 3, dtype=torch.bool))
    torch.testing.assert_close(every, summed_loss(output, a, x))
    torch.testing.assert_close(every, pointwise_loss(output, a, x).sum() / 6)


def test_rows_of_a_grid_are_its_positions():
    a, x = sample(2, 3, 5, 4)
    torch.testing.assert_close(summed_loss("linear", a, x), (a - x).square().sum() / 30)


def test_cross_entropy_stays_finite_and_keeps_its_slope_far_out():
    a = torch.tensor([[1000.0, -1000.0]], requires_grad=True)
    loss = summed_loss("bernoulli", a, torch.tensor([[0.0, 1.0]]))
    loss.backward()
    assert loss.item() == 2000.0 and a.grad.tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize("output", ["sigmoid", "bernoulli"])
def test_data_outside_zero_and_one_are_refused(output):
    for bad in (-0.01, 1.01):
        with pytest.raises(DataError, match=r"gives values in \[0, 1\], and the data range from"):
            check_range(output, torch.tensor([[0.5, bad]]))
    check_range(output, torch.tensor([[0.0, 1.0]]))
    check_range(output, torch.zeros(0, 3))
    check_range("linear", torch.tensor([[-5.0, 9.0]]))
