"""FGSM and projected gradient against their formulas."""

from __future__ import annotations

import pytest
import torch

from saekit.attacks.balls import Ball
from saekit.attacks.gradients import input_gradient
from saekit.attacks.perturb import climb, fgsm, pgd
from saekit.attacks.pixels import pixels_of
from saekit.attacks.scores import ClassScore
from saekit.errors import UsageError

INSIDE = 0.5


def middle(count: int = 4) -> torch.Tensor:
    """Pictures away from 0 and 1, where no clamp acts."""
    g = torch.Generator().manual_seed(7)
    return INSIDE + 0.2 * (torch.rand(count, 2, 3, 4, dtype=torch.float64, generator=g) - 0.5)


def test_fgsm_is_its_formula(network):
    """x + eps sign(d loss / dx); in L2 x + eps g / ||g||."""
    x, y = middle(), torch.tensor([0, 1, 2, 3])
    leaf = x.clone().requires_grad_(True)
    torch.nn.functional.cross_entropy(network(leaf), y, reduction="sum").backward()
    g = leaf.grad
    assert g is not None
    score = ClassScore(network, y)
    assert torch.allclose(fgsm(score, x, Ball("linf", 0.05)).x, x + 0.05 * g.sign())
    unit = g / g.flatten(1).norm(dim=1)[:, None, None, None]
    assert torch.allclose(fgsm(score, x, Ball("l2", 0.05)).x, x + 0.05 * unit)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_one_step_of_the_size_of_the_budget_is_fgsm(network, norm):
    x, score = middle(), ClassScore(network, torch.tensor([0, 1, 2, 3]))
    ball = Ball(norm, 0.05)
    one, fast = pgd(score, x, ball, 1, step_size=0.05), fgsm(score, x, ball)
    assert torch.equal(one.x, fast.x) and torch.equal(one.after, fast.after)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_first_step_never_lowers_the_score_when_it_is_small(network, norm, targeted):
    g = torch.Generator().manual_seed(0)
    x = torch.rand(200, 2, 3, 4, dtype=torch.float64, generator=g)
    y = torch.randint(5, (200,), generator=g)
    found = fgsm(ClassScore(network, y, targeted), x, Ball(norm, 1e-4))
    assert bool((found.after >= found.before).all())
    # to first order it rises by eps times the dual norm of the gradient
    score_B, gradient = input_gradient(
        ClassScore(network, y, targeted), middle(1).repeat(200, 1, 1, 1)
    )
    moved = fgsm(ClassScore(network, y, targeted), middle(1).repeat(200, 1, 1, 1), Ball(norm, 1e-5))
    flat = gradient.flatten(1)
    dual = flat.abs().sum(1) if norm == "linf" else flat.norm(dim=1)
    assert ((moved.after - score_B) / 1e-5).tolist() == pytest.approx(dual.tolist(), rel=1e-3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_iterate_is_within_the_budget_and_the_best_is_kept(network, norm):
    g = torch.Generator().manual_seed(1)
    x = torch.rand(8, 2, 3, 4, dtype=torch.float64, generator=g)
    score, ball = ClassScore(network, torch.randint(5, (8,), generator=g)), Ball(norm, 0.3)
    path = list(climb(score, x, x, ball, 10, 0.075))
    assert len(path) == 11 and torch.equal(path[0][0], x)
    for now, score_B in path:
        assert float(ball.sizes(now, x).max()) <= 0.3 * (1 + 1e-14)
        assert float(now.min()) >= 0 and float(now.max()) <= 1
        assert torch.allclose(score(now), score_B)
    found = pgd(score, x, ball, 10)
    assert found.after.tolist() == torch.stack([s for _, s in path]).amax(0).tolist()
    assert torch.allclose(score(found.x), found.after)
    # more starts find no less, the same seed the same
    more = pgd(score, x, ball, 10, restarts=4, seed=2)
    assert bool((more.after >= found.after).all())
    assert torch.equal(more.x, pgd(score, x, ball, 10, restarts=4, seed=2).x)


def test_projected_gradient_is_stronger_than_one_step(aim):
    x = torch.cat([pixels_of(f"embedded:digits:{n}", aim.live, aim.scale) for n in range(12)])
    with torch.no_grad():
        classes = aim.logits(x).argmax(1)
    score, ball = ClassScore(aim.logits, classes), Ball("linf", 0.1)
    one, many = fgsm(score, x, ball), pgd(score, x, ball, 10)
    assert float(many.after.mean()) > float(one.after.mean())
    with torch.no_grad():
        wrong_one = int((aim.logits(one.x).argmax(1) != classes).sum())
        wrong = int((aim.logits(many.x).argmax(1) != classes).sum())
    assert wrong >= wrong_one and wrong > 0


def test_numbers_that_mean_nothing_are_refused(network):
    score, ball = ClassScore(network, torch.zeros(4, dtype=torch.int64)), Ball("linf", 0.1)
    for options, name in (
        ({"steps": 0}, "steps"), ({"restarts": 0}, "restarts"), ({"step_size": 0.0}, "step_size"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=name):
            pgd(score, middle(), ball, **options)
