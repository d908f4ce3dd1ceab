"""Projections: exact to the last bit, in every dtype."""

from __future__ import annotations

import pytest
import torch

from saekit.attacks.balls import Ball
from saekit.errors import UsageError


def pictures(count: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 3, 5, 4, generator=g, dtype=torch.float64)
    x[:, :, 0], x[:, :, 1] = 0.0, 1.0  # at the ends of the range
    return x.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("eps", [1e-3, 8 / 255, 0.3, 5.0])
def test_a_projection_is_never_outside_of_budget_and_range(norm, eps, dtype):
    center = pictures(64, 0, dtype)
    far = center + (2 * pictures(64, 1, dtype) - 1) * 3 * eps
    ball = Ball(norm, eps)
    x = ball.project(far, center)
    assert x.dtype == dtype
    # the sum of 60 squares in fp64 is itself rounded
    slack = 0.0 if norm == "linf" else 1e-14
    assert float(ball.sizes(x, center).max()) <= eps * (1 + slack)
    assert float(x.min()) >= 0 and float(x.max()) <= 1
    # what is inside stays, and projecting again changes nothing
    assert torch.equal(ball.project(center, center), center)
    assert torch.equal(ball.project(x, center), x)


def test_projections_reach_the_budget():
    center = torch.full((2, 1, 4, 4), 0.5)
    far = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)) + center
    assert Ball("linf", 0.1).sizes(Ball("linf", 0.1).project(far, center), center).tolist() == (
        pytest.approx([0.1, 0.1], abs=1e-7)
    )
    x = Ball("l2", 0.1).project(far, center)
    assert Ball("l2", 0.1).sizes(x, center).tolist() == pytest.approx([0.1, 0.1], abs=1e-6)
    # L2 keeps the direction
    cosine = torch.cosine_similarity((x - center).flatten(1), (far - center).flatten(1))
    assert cosine.tolist() == pytest.approx([1.0, 1.0], abs=1e-6)


def test_linf_is_the_nearest_point_by_hand():
    center = torch.tensor([0.0, 0.5, 0.95, 0.3]).view(1, 1, 2, 2)
    far = torch.tensor([-0.5, 0.9, 1.4, 0.35]).view(1, 1, 2, 2)
    x = Ball("linf", 0.1).project(far, center)
    assert x.flatten().tolist() == pytest.approx([0.0, 0.6, 1.0, 0.35], abs=1e-7)


def test_the_steepest_direction_has_size_one_and_no_gradient_gives_none():
    g = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    g[2] = 0
    assert Ball("l2", 1.0).ascent(g).flatten(1).norm(dim=1).tolist() == (
        pytest.approx([1, 1, 0], abs=1e-6)
    )
    signs = Ball("linf", 1.0).ascent(g)
    assert set(signs[:2].unique().tolist()) == {-1.0, 1.0} and not signs[2].any()
    # no direction of the ball raises a linear function more
    random = torch.randn(500, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    for norm in ("linf", "l2"):
        own = float((Ball(norm, 1.0).ascent(g[:1]) * g[0]).sum())
        unit = random / Ball(norm, 1.0).sizes(random, torch.zeros_like(random))[:, None, None, None]
        assert own > float((unit * g[0]).flatten(1).sum(1).max())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_starts_fill_the_ball_and_a_seed_repeats_them(norm):
    ball = Ball(norm, 0.2)
    center = torch.full((200, 1, 3, 3), 0.5)
    x = ball.random(center, torch.Generator().manual_seed(4))
    sizes = ball.sizes(x, center)
    assert float(sizes.max()) <= 0.2 and float(sizes.std()) > 0.001
    # of a uniform point of a ball in 9 dimensions the size over eps is 9/10 in the mean
    assert float(sizes.mean()) / 0.2 == pytest.approx(0.9, abs=0.03)
    assert torch.equal(x, ball.random(center, torch.Generator().manual_seed(4)))


def test_other_norms_and_budgets_are_refused():
    with pytest.raises(UsageError, match="norm"):
        Ball("l1", 0.1)  # pyright: ignore[reportArgumentType]
    for eps in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(UsageError, match="eps"):
            Ball("linf", eps)
