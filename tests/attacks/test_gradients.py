"""Gradients with respect to pixels, against finite differences."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from saekit.attacks.gradients import input_gradient
from saekit.attacks.pixels import PixelScale, pixels_of
from saekit.attacks.scores import ClassScore, LatentScore
from saekit.attacks.target import Target
from saekit.errors import DataError, NumericsError


def check_directions(score, x: torch.Tensor, count: int = 3, h: float = 1e-6) -> None:
    """Central differences along random directions, image by image, in fp64."""
    assert x.dtype == torch.float64
    before, gradient = input_gradient(score, x)
    assert torch.allclose(before, score(x))
    for seed in range(count):
        v = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
        with torch.no_grad():
            slope_B = (score(x + h * v) - score(x - h * v)) / (2 * h)
        own_B = (gradient * v).flatten(1).sum(1)
        assert own_B.tolist() == pytest.approx(slope_B.tolist(), rel=1e-5, abs=1e-7)


def double(aim: Target) -> Target:
    """The same model and dictionary in fp64."""
    live = replace(aim.live, module=copy.deepcopy(aim.live.module).double())
    assert aim.dictionary is not None
    its = replace(aim.dictionary, model=copy.deepcopy(aim.dictionary.model).double())
    scale = PixelScale(aim.scale.black_C11.double(), aim.scale.white_C11.double())
    return replace(aim, live=live, scale=scale, dictionary=its)


@pytest.mark.parametrize("targeted", [False, True])
def test_of_a_class_of_a_small_network(network, targeted):
    x = torch.rand(4, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    check_directions(ClassScore(network, torch.tensor([0, 1, 4, 2]), targeted), x)


def test_of_a_class_and_a_latent_of_a_vision_transformer(aim):
    exact = double(aim)
    x = pixels_of("embedded:digits:8", exact.live, exact.scale)
    check_directions(ClassScore(exact.logits, torch.tensor([3])), x, count=1)
    for direction in ("raise", "silence"):
        check_directions(exact.latent_score(5, direction), x, count=1)


def test_images_do_not_depend_on_each_other_and_the_input_is_left_as_it_is(network):
    x = torch.rand(3, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    classes = torch.tensor([0, 1, 2])
    before = x.clone()
    score_B, gradient = input_gradient(ClassScore(network, classes), x)
    for b in range(3):
        own, single = input_gradient(ClassScore(network, classes[b : b + 1]), x[b : b + 1])
        assert torch.allclose(single[0], gradient[b]) and torch.allclose(own[0], score_B[b])
    assert torch.equal(x, before) and not x.requires_grad
    # also where the caller has switched gradients off
    with torch.inference_mode():
        again = input_gradient(ClassScore(network, classes), x)[1]
    assert torch.equal(again, gradient)


def test_scores_without_a_gradient_or_a_number_are_refused():
    x = torch.rand(2, 1, 2, 2)
    with pytest.raises(DataError, match="does not depend"):
        input_gradient(lambda x: x.detach().sum((1, 2, 3)), x)
    with pytest.raises(NumericsError, match="NaN or infinite"):
        input_gradient(lambda x: (x * 0).sum((1, 2, 3)).log(), x)


def test_a_latent_that_is_silent_has_a_gradient(aim, sae):
    """Through the code it would be 0."""
    quiet = copy.deepcopy(sae)
    quiet.threshold[7] = 1e3
    x = pixels_of("embedded:digits:8", aim.live, aim.scale)
    score = LatentScore(aim.live, aim.scale, quiet, aim.dictionary.hook, 7)
    assert not score.activations(x).any()
    assert float(input_gradient(score, x)[1].abs().max()) > 1e-4
    # the same as without the threshold
    assert torch.equal(
        input_gradient(score, x)[1], input_gradient(aim.latent_score(7, "raise"), x)[1]
    )
