"""The values of a latent, against states that a plain hook reads."""

from __future__ import annotations

import copy
from dataclasses import replace

import by_hand
import pytest
import torch

from saekit.attacks.balls import Ball
from saekit.attacks.perturb import pgd
from saekit.attacks.pixels import pixels_of
from saekit.attacks.scores import LatentScore
from saekit.attacks.target import is_classifier, target_of
from saekit.errors import DataError, UsageError
from saekit.harvesting.models import load_model
from saekit.training.checkpoints import load

LATENT = 5


def states_by_hand(classifier, pixel_values: torch.Tensor) -> torch.Tensor:
    kept = []
    layer = classifier.module.get_submodule("vit.layers.1")
    handle = layer.register_forward_hook(lambda _m, _a, x: kept.append(x))
    with torch.no_grad():
        classifier.module(pixel_values=pixel_values)
    handle.remove()
    return kept[0]


def test_values_are_those_of_the_patches(aim, classifier, sae):
    x = pixels_of("embedded:digits:8", aim.live, aim.scale)
    x_BTD = states_by_hand(classifier, aim.scale.to_model(x))
    pre = x_BTD @ sae.W_enc[LATENT] + sae.b_enc[LATENT]
    code = by_hand.encode(sae, x_BTD)[..., LATENT]
    for scope, positions in (
        ("content", slice(1, None)),
        ("cls", slice(0, 1)),
        ("all", slice(0, None)),
    ):
        score = LatentScore(classifier, aim.scale, sae, "blocks.1", LATENT, scope)
        assert torch.allclose(score.preactivations(x), pre[:, positions], atol=1e-5)
        assert torch.allclose(score.activations(x), code[:, positions], atol=1e-5)
        assert torch.allclose(score(x), pre[:, positions].amax(1), atol=1e-5)
        silence = LatentScore(classifier, aim.scale, sae, "blocks.1", LATENT, scope, "silence")
        expected = -pre[:, positions].clamp_min(0).sum(1)
        assert torch.allclose(silence(x), expected, atol=1e-4)
    largest = aim.largest_activations(x)[0, LATENT]
    assert float(largest) == pytest.approx(float(code[:, 1:].max()), abs=1e-5)


def test_a_latent_is_raised_and_silenced(aim, sae):
    """Silenced: with a threshold that the strongest patches only just pass."""
    x = pixels_of("embedded:digits:8", aim.live, aim.scale)
    raised = aim.latent_score(LATENT, "raise")
    found = pgd(raised, x, Ball("linf", 0.1), 8)
    before, after = (float(raised.activations(pixels).max()) for pixels in (x, found.x))
    assert after > before and float(found.after) > float(found.before)
    strict = copy.deepcopy(sae)
    strict.threshold[LATENT] = 0.95 * float(raised.preactivations(x).max())
    score = LatentScore(aim.live, aim.scale, strict, "blocks.1", LATENT, direction="silence")
    assert float(score.activations(x).max()) > 0
    found = pgd(score, x, Ball("linf", 0.1), 8)
    assert not score.activations(found.x).any()


def test_where_latents_compete_a_rival_counts(aim, classifier):
    """p + min(p - p_(k), 0) is raised, min(p, p - p_(k+1)) silenced; K values of a row are kept."""
    topk = by_hand.dictionary(64, "topk").float()
    x = pixels_of("embedded:digits:8", aim.live, aim.scale)
    x_BTD = states_by_hand(classifier, aim.scale.to_model(x))[:, 1:]
    pre = x_BTD @ topk.W_enc.T + topk.b_enc
    ordered, p = pre.sort(descending=True).values, pre[..., LATENT]
    kth, next_one = ordered[..., by_hand.K - 1], ordered[..., by_hand.K]
    score, silence = (
        LatentScore(classifier, aim.scale, topk, "blocks.1", LATENT, direction=way)
        for way in ("raise", "silence")
    )
    expected = (p + (p - kth).clamp_max(0)).amax(1)
    assert torch.allclose(score(x), expected, atol=1e-4)
    expected = -torch.minimum(p, p - next_one).clamp_min(0).sum(1)
    assert torch.allclose(silence(x), expected, atol=1e-4)
    # a score of 0 is silence, below it the latent is active
    assert bool(silence.activations(x).any()) == (float(silence(x)) < 0)
    found = pgd(silence, x, Ball("linf", 0.2), 8)
    assert float(found.after) > float(found.before)
    assert bool(silence.activations(found.x).any()) == (float(found.after) < 0)


def test_a_latent_whose_value_is_scaled_by_its_decoder_row(classifier, aim):
    scaled = by_hand.dictionary(64, "jumprelu", rescale_by_decoder_norm=True).float()
    x = pixels_of("embedded:digits:3", aim.live, aim.scale)
    score = LatentScore(classifier, aim.scale, scaled, "blocks.1", LATENT)
    code, pre = score.activations(x), score.preactivations(x)
    active = code > 0
    assert active.any() and torch.allclose(code[active], pre[active], atol=1e-4)


def test_targets_that_cannot_be_attacked_are_refused(aim, classifier, sae):
    with pytest.raises(UsageError, match="one of the 48 latents"):
        aim.latent_score(48, "raise")
    with pytest.raises(UsageError, match="without a dictionary"):
        target_of(classifier).latent_score(3, "raise")
    with pytest.raises(DataError, match="no classification head"):
        target_of(load_model("embedded:digits-vit"))
    with pytest.raises(UsageError, match="does not say which hook"):
        target_of(sae, classifier)
    crosscoder = by_hand.dictionary(128, "topk", parts=(64, 64)).float()
    with pytest.raises(UsageError, match="one hook"):
        target_of(crosscoder, classifier, ["blocks.0", "blocks.1"])  # pyright: ignore[reportArgumentType]
    without = target_of(sae, load_model("embedded:digits-vit"), "blocks.1")
    assert without.names == []
    with pytest.raises(DataError, match="no classification head"):
        without.logits(torch.zeros(1, 1, 8, 8))
    assert replace(aim).number("LABEL_3") == 3 == aim.number("3")
    with pytest.raises(DataError, match="not a class"):
        aim.number("cat")


def test_what_is_a_classifier(tmp_path):
    assert is_classifier("embedded:digits-vit") and is_classifier("google/vit-base-patch16-224")
    assert not is_classifier("saelens:gpt2/x") and not is_classifier(load)
    for name, text in (("ours", '{"model": "sae"}'), ("theirs", '{"model_type": "vit"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    assert is_classifier(tmp_path / "theirs") and not is_classifier(tmp_path / "ours")
