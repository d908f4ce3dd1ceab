"""Pictures from noise."""

from __future__ import annotations

import pytest
import torch

from saekit.attacks.visualize import Canvas, VisualizeConfig, total_variation, visualize
from saekit.errors import NumericsError, UsageError


def test_total_variation_by_hand():
    x = torch.tensor([[0.0, 1.0, 1.0], [0.5, 0.5, 0.0]]).view(1, 1, 2, 3)
    down, across = (0.5 + 0.5 + 1.0) / 3, (1.0 + 0.0 + 0.0 + 0.5) / 4
    assert float(total_variation(x)) == pytest.approx(down + across)
    assert float(total_variation(torch.full((1, 3, 4, 4), 0.3))) == 0


def test_a_coefficient_is_divided_by_its_frequency():
    """One wave per picture writes four times what four waves do; both are cosines."""
    canvas = Canvas((1, 1, 8, 8), True, torch.Generator())
    heights = []
    for waves in (1, 4):
        with torch.no_grad():
            canvas.values.zero_()
            canvas.values[0, 0, 0, waves, 0] = 1.0
            x = canvas().logit()
        assert torch.allclose(x[0, 0, 0], x[0, 0, 3], atol=1e-5)  # waves across only
        angle = 2 * torch.pi * waves * torch.arange(8) / 8
        assert torch.allclose(x[0, 0, 0], x[0, 0, 0, 0] * angle.cos(), atol=1e-4)
        heights.append(float(x[0, 0, 0, 0]))
    # the last coefficient of a real transform stands for itself, others also for their conjugate
    assert heights[0] / heights[1] == pytest.approx(2 * 4, rel=1e-3)


def bright_left(x: torch.Tensor) -> torch.Tensor:
    return (x[..., :4] - x[..., 4:]).mean((1, 2, 3))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fourier", [True, False])
def test_a_score_rises_and_a_seed_repeats_the_picture(fourier, channels):
    config = VisualizeConfig(steps=30, jitter=1, tv=0.1, fourier=fourier)
    made = visualize(bright_left, (channels, 8, 8), config, 2, seed=3)
    assert made.x.shape == (2, channels, 8, 8)
    assert 0 <= float(made.x.min()) and float(made.x.max()) <= 1
    assert torch.allclose(bright_left(made.x), made.scores)
    assert float(made.scores.min()) > 0.2
    assert made.curve == sorted(made.curve) and len(made.curve) == 30
    assert made.curve[-1] == pytest.approx(float(made.scores.max()))
    assert torch.equal(made.x, visualize(bright_left, (channels, 8, 8), config, 2, seed=3).x)
    assert not torch.equal(made.x[0], made.x[1])


def test_total_variation_makes_a_picture_smoother():
    def noisy(x: torch.Tensor) -> torch.Tensor:
        checks = torch.tensor([1.0, -1.0]).repeat(4)
        return (x[:, 0] * checks[:, None] * checks).mean((1, 2))

    smooth, rough = (
        visualize(noisy, (1, 8, 8), VisualizeConfig(steps=30, jitter=0, tv=tv)) for tv in (2.0, 0.0)
    )
    assert float(total_variation(smooth.x)) < 0.5 * float(total_variation(rough.x))
    assert float(smooth.scores) < float(rough.scores)


def test_jitter_keeps_a_score_that_depends_on_the_place_low():
    """With the largest jitter every place is as likely as any other."""
    still, moved = (
        visualize(bright_left, (1, 8, 8), VisualizeConfig(steps=30, jitter=jitter, tv=0.0))
        for jitter in (0, 4)
    )
    assert float(moved.scores) < 0.8 * float(still.scores)


def test_numbers_that_mean_nothing_are_refused():
    for options in ({"steps": 0}, {"jitter": -1}, {"tv": -1.0}, {"lr": 0.0}):
        with pytest.raises(UsageError, match=next(iter(options))):
            VisualizeConfig(**options)
    with pytest.raises(NumericsError):
        visualize(lambda x: x.sum((1, 2, 3)) / 0, (1, 4, 4), VisualizeConfig(steps=2))
