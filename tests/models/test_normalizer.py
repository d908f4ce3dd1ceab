"""Mean and scale of training rows: estimated, applied, inverted, and folded into weights."""

from __future__ import annotations

import torch

from saekit.models.normalizer import Normalizer


def test_rows_have_the_mean_0_and_the_mean_square_norm_of_their_width():
    x = 3.0 * torch.randn(2000, 5, generator=torch.Generator().manual_seed(0)).double() + 7.0
    normalizer = Normalizer.from_moments(x.mean(0), x.var(0, correction=0))
    inside = normalizer.apply(x)
    assert inside.mean(0).abs().max() < 1e-12
    torch.testing.assert_close(inside.square().sum(1).mean().item(), 5.0)
    torch.testing.assert_close(normalizer.invert(inside), x)
    assert torch.equal(normalizer.apply_(x.clone()), inside)


def test_each_hook_of_a_row_has_its_own_scale_and_one_without_values_keeps_1():
    squares = torch.tensor([4.0, 4.0, 0.0, 0.25, 0.25, 0.25])
    normalizer = Normalizer.from_moments(torch.zeros(6), squares, (2, 1, 3))
    assert normalizer.scale.tolist() == [0.5, 0.5, 1.0, 2.0, 2.0, 2.0]
    assert normalizer.scales((2, 1, 3)) == [0.5, 1.0, 2.0]


def test_rows_that_are_all_0_are_not_scaled():
    assert Normalizer.from_moments(torch.zeros(3), torch.zeros(3)).scale == 1.0
