"""Class probabilities of a steered image model, against plain torch."""

from __future__ import annotations

import by_hand
import pytest
import torch

from saekit.embedded import digits
from saekit.errors import DataError, UsageError
from saekit.harvesting.classifiers import load_classifier
from saekit.harvesting.images import prepared
from saekit.harvesting.models import load_model
from saekit.intervention.steer_image import steer_image

HOOK, LATENT = "blocks.1", 3


@pytest.fixture(scope="module")
def classifier():
    return load_classifier("embedded:digits-vit")


@pytest.fixture(scope="module")
def sae(classifier):
    return by_hand.dictionary(classifier.module.config.hidden_size, "jumprelu").float()


def log_p(classifier, pixels: torch.Tensor, shift_TD: torch.Tensor) -> torch.Tensor:
    layer = classifier.module.get_submodule("vit.layers.1")
    handle = layer.register_forward_hook(lambda _m, _a, x: x + shift_TD)
    with torch.inference_mode():
        logits = classifier.module(pixel_values=pixels).logits[0]
    handle.remove()
    return logits.double().log_softmax(-1)


def test_probabilities_and_the_map_of_patches_are_those_of_a_shifted_model(
    classifier, sae, tmp_path
):
    digits.image(5).save(tmp_path / "digit.png")
    pixels = prepared([digits.image(5)], classifier.processor)
    options = dict(hook=HOOK, raw=True, model=classifier)
    result = steer_image(sae, tmp_path / "digit.png", {LATENT: 9.0}, positions="patches", **options)
    again = steer_image(sae, pixels[0], {LATENT: 9.0}, positions="patches", **options)
    assert again == result
    H, W = classifier.image_tokens.grid
    tokens, shift_D = 1 + H * W, 9 * sae.W_dec[LATENT]
    at = torch.arange(tokens)
    p = log_p(classifier, pixels, torch.zeros(tokens, 1))
    q = log_p(classifier, pixels, shift_D * (at > 0)[:, None])
    assert [change.label for change in result.classes] == [
        f"LABEL_{number}" for number in p.argsort(descending=True).tolist()
    ]
    assert [change.clean for change in result.classes] == pytest.approx(
        p.sort(descending=True).values.exp().tolist(), abs=1e-5
    )
    assert {change.label: change.steered for change in result.classes} == pytest.approx(
        {f"LABEL_{number}": value for number, value in enumerate(q.exp().tolist())}, abs=1e-5
    )
    assert result.kl == pytest.approx(float((p.exp() * (p - q)).sum()), abs=1e-5)
    assert result.kl > 0.01
    for place in (0, W + 1, H * W - 1):
        only = log_p(classifier, pixels, shift_D * (at == 1 + place)[:, None])
        expected = float((p.exp() * (p - only)).sum())
        assert result.patches[place // W][place % W] == pytest.approx(expected, abs=1e-5)


def test_a_dose_has_its_effect_on_a_class_beside_controls_of_the_same_norm(classifier, sae):
    pixels = prepared([digits.image(5)], classifier.processor)
    told = []
    result = steer_image(
        sae, pixels[0], {LATENT: 9.0}, dose=(-6.0, 0.0, 6.0), seed=5, hook=HOOK, raw=True,
        model=classifier, positions="patches", partial=told.append,
    )  # fmt: skip
    tokens = classifier.image_tokens.count
    row, patches = sae.W_dec[LATENT], (torch.arange(tokens) > 0)[:, None]
    # the class that the largest dose raises most on an image of zeros
    blank = torch.zeros_like(pixels)
    nothing = torch.zeros(tokens, 1)
    raised = log_p(classifier, blank, (6 * row).expand(tokens, -1)) - log_p(
        classifier, blank, nothing
    )
    target = int(raised.argmax())
    assert result.targets == [f"LABEL_{target}"]
    clean = log_p(classifier, pixels, nothing)

    def shifted(direction: torch.Tensor) -> torch.Tensor:
        return log_p(classifier, pixels, direction * patches)

    # the controls, drawn as documented
    generator = torch.Generator().manual_seed(5)
    others = torch.tensor([latent for latent in range(by_hand.LATENTS) if latent != LATENT])
    others = others[torch.randperm(len(others), generator=generator)[:8]]
    directions = torch.randn(8, len(row), generator=generator)
    order = clean.argsort(descending=True)
    for dose in result.doses:
        after = shifted(dose.strength * row)
        assert dose.effect == pytest.approx(float(after[target] - clean[target]), abs=1e-4)
        assert dose.probabilities == pytest.approx(after[order].exp().tolist(), abs=1e-5)
        assert dose.kl == pytest.approx(float((clean.exp() * (clean - after)).sum()), abs=1e-5)
        for rows, values in (
            (directions, dose.random_directions),
            (sae.W_dec[others], dose.random_latents),
        ):
            rows = torch.nn.functional.normalize(rows, dim=1) * row.norm()
            expected = [float((shifted(dose.strength * r) - clean)[target]) for r in rows]
            assert values == pytest.approx(expected, abs=1e-4)
    assert [len(part.doses) for part in told] == [0, 1, 2, 3] and told[-1] == result
    assert result.verdict and result.doses[1].effect == 0
    # another class, named before: by name or by number
    named = (target + 1) % len(after)
    for label in (f"LABEL_{named}", named):
        other = steer_image(
            sae, pixels[0], {LATENT: 9.0}, dose=(6.0,), seed=5, hook=HOOK, raw=True,
            model=classifier, positions="patches", targets=[label],
        )  # fmt: skip
        assert other.targets == [f"LABEL_{named}"] and other.targets_are_named
        assert "name a target" in result.scope and "name a target" not in other.scope
        change = shifted(6 * row)[named] - clean[named]
        assert other.doses[0].effect == pytest.approx(float(change), abs=1e-4)
    with pytest.raises(DataError, match="LABEL_x is not a class"):
        steer_image(
            sae,
            pixels,
            {LATENT: 9.0},
            dose=(6.0,),
            model=classifier,
            hook=HOOK,
            raw=True,
            targets=["LABEL_x"],
        )
    with pytest.raises(UsageError, match="one target class"):
        steer_image(
            sae,
            pixels,
            {LATENT: 9.0},
            dose=(6.0,),
            model=classifier,
            hook=HOOK,
            raw=True,
            targets=[0, 1],
        )
    with pytest.raises(UsageError, match="dose is of one latent"):
        steer_image(sae, pixels, {3: 1.0, 4: 1.0}, dose=(1.0,), hook=HOOK, raw=True)


def test_patches_are_named_by_row_and_column(classifier, sae):
    pixels = prepared([digits.image(5)], classifier.processor)
    options = dict(hook=HOOK, raw=True, model=classifier)
    mask = torch.zeros(classifier.image_tokens.grid, dtype=torch.bool)
    mask[0, 1] = mask[2, 3] = True
    by_name = steer_image(sae, pixels, {LATENT: 9.0}, positions="0,1+2,3", **options)
    assert (
        by_name.classes
        == steer_image(sae, pixels, {LATENT: 9.0}, positions=mask, **options).classes
    )
    for wrong in ("9,0", "0,1+", "1"):
        with pytest.raises(UsageError, match="positions"):
            steer_image(sae, pixels, {LATENT: 9.0}, positions=wrong, **options)


def test_models_without_a_head_and_other_tensors_are_refused(classifier, sae):
    pixels = torch.zeros(1, classifier.image_tokens.channels, 8, 8)
    with pytest.raises(DataError, match="no classification head"):
        steer_image(
            sae, pixels, {3: 1.0}, hook=HOOK, raw=True, model=load_model("embedded:digits-vit")
        )
    with pytest.raises(UsageError, match=r"not \(C,h,w\)"):
        steer_image(sae, pixels[0, 0], {3: 1.0}, hook=HOOK, raw=True, model=classifier)
    with pytest.raises(UsageError, match="positions"):
        steer_image(sae, pixels, {3: 1.0}, hook=HOOK, raw=True, model=classifier, positions="last")
