"""`dose_response` against plain torch, and which responses count."""

from __future__ import annotations

import by_hand
import pytest
import tiny
import torch
from torch.nn.functional import normalize

from saekit.errors import UsageError
from saekit.harvesting.models import load_model
from saekit.intervention.dose_response import dose_response, holds
from saekit.intervention.doses import Response

TEXTS, TARGETS, LATENT, UNIT = ("the cat sat on a", "a dog ran"), [5, 9], 3, 0.7


def test_effects_are_those_of_a_shifted_model(made):
    live_model = load_model(made.model)
    sae = by_hand.dictionary(tiny.WIDTH, "jumprelu").float()
    maxima = torch.full((by_hand.LATENTS,), UNIT)
    maxima[0] = 0.0  # never fires
    doses = (2.0, -1.0, 0.5)
    responses = dose_response(
        live_model, sae, LATENT, TARGETS, TEXTS, doses, hook="blocks.1", maxima=maxima, seed=5
    )

    def log_p(ids: torch.Tensor, shift_D: torch.Tensor | float) -> torch.Tensor:
        layer = live_model.module.model.layers[1]
        handle = layer.register_forward_hook(lambda _m, _a, x: x + shift_D)
        with torch.inference_mode():
            logits = live_model.module(ids, use_cache=False).logits[0]
        handle.remove()
        return logits.double().log_softmax(-1)

    def expected(shift_D: torch.Tensor) -> tuple[float, float]:
        of_texts = []
        for text in TEXTS:
            ids = live_model.tokenizer(text, return_tensors="pt")["input_ids"]
            p, q = log_p(ids, 0.0), log_p(ids, shift_D)
            change = q[:, TARGETS].logsumexp(1) - p[:, TARGETS].logsumexp(1)
            of_texts.append((change.mean(), (p.exp() * (p - q)).sum(1).mean()))
        effect, kl = (sum(values) / len(TEXTS) for values in zip(*of_texts))
        return float(effect), float(kl)

    row_D = UNIT * sae.W_dec[LATENT]
    generator = torch.Generator().manual_seed(5)
    others = torch.tensor([j for j in range(1, by_hand.LATENTS) if j != LATENT])
    others = others[torch.randperm(len(others), generator=generator)[:8]]
    directions = torch.randn(8, tiny.WIDTH, generator=generator)
    assert [response.strength for response in responses] == list(doses)
    for response in responses:
        effect, kl = expected(response.strength * row_D)
        assert response.effect == pytest.approx(effect, abs=1e-5)
        assert response.kl == pytest.approx(kl, abs=1e-5)
        for rows, values in (
            (directions, response.random_directions),
            (sae.W_dec[others], response.random_latents),
        ):
            rows = normalize(rows, dim=1) * row_D.norm() * response.strength
            at_an_end = response.strength != 0.5
            assert values == pytest.approx(
                [expected(control)[0] for control in rows] if at_an_end else [], abs=1e-5
            )


def response(strength: float, effect: float, *controls: float) -> Response:
    return Response(strength, effect, 0.0, list(controls), [-value for value in controls])


@pytest.mark.parametrize(
    ("effects", "control", "expected"),
    [
        ((-0.5, 0.0, 0.2, 1.0), 0.4, True),
        ((-0.3, 0.0, 0.2, 1.0), 0.4, False),  # a control has more at the smallest dose
        ((-0.5, 0.0, 0.2, 0.3), 0.4, False),  # at the largest
        ((-0.5, 0.0, -0.1, 1.0), 0.4, False),  # not monotone
        ((0.5, 0.2, 0.0, -1.0), 0.4, False),  # falls
    ],
)
def test_a_latent_holds_if_it_is_monotone_and_beyond_all_controls_at_both_ends(
    effects, control, expected
):
    low, zero, middle, high = effects
    responses = [
        response(2.0, high, 0.1, control),
        response(-1.0, low, 0.1, control),
        response(0.0, zero),
        response(0.5, middle),
    ]
    assert holds(responses) == expected
    from_zero = [r for r in responses if r.strength >= 0]
    assert holds(from_zero) == (zero <= middle <= high and high > control)


def test_nothing_to_measure_is_refused(made):
    live_model = load_model(made.model)
    for targets, texts, doses in (([], TEXTS, (1.0,)), ([1], (), (1.0,)), ([1], TEXTS, ())):
        with pytest.raises(UsageError, match="give targets, texts and doses"):
            dose_response(live_model, "nothing", 0, targets, texts, doses)
    assert not holds([])
