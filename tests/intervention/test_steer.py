"""What `steer_text` measures, against plain torch."""

from __future__ import annotations

import math

import by_hand
import pytest
import tiny
import torch

from saekit.errors import DataError, UsageError
from saekit.harvesting.models import load_model
from saekit.intervention.steer import SteerResult, steer_text

PROMPT, TOKENS, HOOK, LATENT, UNIT = "the cat sat on a", 6, "blocks.1", 3, 0.7


@pytest.fixture(scope="module")
def live_model(made):
    return load_model(made.model)


@pytest.fixture(scope="module")
def sae():
    return by_hand.dictionary(tiny.WIDTH, "jumprelu").float()


@pytest.fixture(scope="module")
def maxima() -> torch.Tensor:
    largest = torch.full((by_hand.LATENTS,), UNIT)
    largest[:4] = torch.tensor([0.0, 0.0, 0.0, UNIT])  # the first three never fire
    return largest


def run(live_model, sae, maxima, **options) -> SteerResult:
    options = dict(max_new_tokens=TOKENS, model=live_model, hook=HOOK, maxima=maxima) | options
    return steer_text(sae, PROMPT, options.pop("latents", {LATENT: 2.0}), **options)


def log_p(live_model, ids: torch.Tensor, shift_TD: torch.Tensor | float = 0.0) -> torch.Tensor:
    """(T,V) in nats, with a shift of the states after block 1."""
    handle = live_model.module.model.layers[1].register_forward_hook(lambda _m, _a, x: x + shift_TD)
    with torch.inference_mode():
        logits = live_model.module(ids, use_cache=False).logits[0]
    handle.remove()
    return logits.double().log_softmax(-1)


def written(live_model, prompt: torch.Tensor, shift) -> torch.Tensor:
    ids = prompt
    for _ in range(TOKENS):
        token = log_p(live_model, ids, shift(ids.shape[1]))[-1].argmax()
        ids = torch.cat([ids, token.view(1, 1)], 1)
        if token == live_model.tokenizer.eos_token_id:
            break
    return ids


@pytest.mark.parametrize("positions", ["all", "prompt", "generated", "last"])
def test_texts_kl_perplexity_and_changes_are_those_of_a_shifted_model(
    live_model, sae, maxima, positions
):
    result = run(live_model, sae, maxima, positions=positions, top=3)
    prompt = live_model.tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    P = prompt.shape[1]

    def shift(length: int) -> torch.Tensor:
        column = torch.arange(length)
        chosen = {
            "all": column >= 0, "prompt": column < P,
            "generated": column >= P, "last": column >= P - 1,
        }[positions]  # fmt: skip
        return 2 * UNIT * sae.W_dec[LATENT] * chosen[:, None]

    decode = live_model.tokenizer.decode
    clean, steered = written(live_model, prompt, lambda _: 0.0), written(live_model, prompt, shift)
    for part, ids in ((result.clean, clean), (result.steered, steered)):
        p, q = log_p(live_model, ids), log_p(live_model, ids, shift(ids.shape[1]))
        at = torch.arange(P - 1, ids.shape[1] - 1)
        assert part.text == decode(ids[0, P:])
        assert part.kl == pytest.approx((p.exp() * (p - q)).sum(-1)[at].tolist(), abs=1e-5)
        nll = -p[at, ids[0, P:]]
        assert part.perplexity == pytest.approx(math.exp(nll.mean()), rel=1e-4)
    change = (log_p(live_model, clean, shift(clean.shape[1])) - log_p(live_model, clean))[P - 1]
    assert [token.token for token in result.raised] == [
        decode([token]) for token in change.topk(3).indices.tolist()
    ] or positions == "generated"
    if positions == "generated":  # the first token is not steered
        assert result.steered.kl[0] == pytest.approx(0, abs=1e-6) and change.abs().max() == 0
    first = result.raised[0]
    assert first.steered - first.clean == pytest.approx(float(change.max()), abs=1e-5)
    assert result.edits[0].startswith("add([3], [2.0]") and not result.doses and not result.verdict


def test_a_dose_has_its_effect_beside_controls_of_the_same_norm(live_model, sae, maxima):
    seen = []
    result = run(
        live_model, sae, maxima, dose=(-4.0, 0.0, 4.0), top=2, seed=5, progress=seen.append
    )
    assert [(step.done, step.total) for step in seen] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    module, tokenizer = live_model.module, live_model.tokenizer
    row = UNIT * sae.W_dec[LATENT]
    begin = torch.tensor([[tokenizer.bos_token_id]])
    raised = log_p(live_model, begin, 4 * row)[-1] - log_p(live_model, begin)[-1]
    targets = raised.topk(2).indices
    assert result.targets == [tokenizer.decode([token]) for token in targets.tolist()]
    prompt = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    ids = written(live_model, prompt, lambda _: 0.0)
    at = torch.arange(prompt.shape[1] - 1, ids.shape[1] - 1)

    def effect(shift) -> float:
        after, before = log_p(live_model, ids, shift), log_p(live_model, ids)
        change = after[:, targets].logsumexp(1) - before[:, targets].logsumexp(1)
        return float(change[at].mean())

    # the controls, drawn as documented
    generator = torch.Generator().manual_seed(5)
    others = torch.tensor([j for j in range(4, by_hand.LATENTS)])  # those that fire
    others = others[torch.randperm(len(others), generator=generator)[:8]]
    directions = torch.randn(8, tiny.WIDTH, generator=generator)
    for dose in result.doses:
        assert dose.effect == pytest.approx(effect(dose.strength * row), abs=1e-5)
        for rows, values in (
            (directions, dose.random_directions),
            (sae.W_dec[others], dose.random_latents),
        ):
            rows = torch.nn.functional.normalize(rows, dim=1) * row.norm()
            expected = [effect(dose.strength * control) for control in rows]
            assert values == pytest.approx(expected, abs=1e-5)
    low, zero, high = result.doses
    # at a prompt: both texts and the verdict, on one line; a frame has a row for each dose
    shown = repr(result)
    assert shown.startswith(f"SteerResult({PROMPT!r}, edits=") and "\n" not in shown
    assert repr(result.steered.text) in shown and repr(result.verdict) in shown
    frame = result.to_pandas()
    assert frame["effect"].tolist() == [dose.effect for dose in result.doses]
    controls = high.random_directions + high.random_latents
    assert frame["largest_control"].iloc[2] == max(map(abs, controls))
    assert zero.effect == 0 and zero.text == result.clean.text and zero.kl == pytest.approx(0)
    assert result.is_monotone == (low.effect <= 0 <= high.effect)
    assert next(module.parameters()).grad is None


def test_targets_may_be_fixed_before(live_model, sae, maxima):
    result = run(live_model, sae, maxima, dose=(4.0,), targets=[5, 9])
    assert result.targets == [live_model.tokenizer.decode([token]) for token in (5, 9)]
    prompt = live_model.tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    ids = written(live_model, prompt, lambda _: 0.0)
    at = torch.arange(prompt.shape[1] - 1, ids.shape[1] - 1)
    row = 4 * UNIT * sae.W_dec[LATENT]
    after, before = (log_p(live_model, ids, shift)[at][:, [5, 9]] for shift in (row, 0.0))
    expected = (after.logsumexp(1) - before.logsumexp(1)).mean()
    assert result.doses[0].effect == pytest.approx(float(expected), abs=1e-5)
    with pytest.raises(UsageError, match="targets: token 999 is not below"):
        run(live_model, sae, maxima, dose=(4.0,), targets=[999])


def test_targets_may_be_written(live_model, sae, maxima):
    tokenizer = live_model.tokenizer
    word = next(
        text
        for token in range(5, 60)
        if (text := tokenizer.decode([token])).strip()
        and tokenizer(text, add_special_tokens=False)["input_ids"] == [token]
    )
    by_word = run(live_model, sae, maxima, dose=(4.0,), targets=[word])
    number = tokenizer(word, add_special_tokens=False)["input_ids"][0]
    by_number = run(live_model, sae, maxima, dose=(4.0,), targets=[number])
    assert by_word.targets == [word] and by_word.doses == by_number.doses
    with pytest.raises(UsageError, match="is not one token"):
        run(live_model, sae, maxima, dose=(4.0,), targets=[f"{word} {word}"])
    with pytest.raises(UsageError, match="what doses are measured on"):
        run(live_model, sae, maxima, targets=[word])


def test_texts_are_of_the_models_distribution_whatever_its_generation_config(
    live_model, sae, maxima, monkeypatch
):
    plain = [run(live_model, sae, maxima, temperature=t, seed=3) for t in (0.0, 1.5)]
    config = live_model.module.generation_config
    for name, value in {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "min_p": 0.9}.items():
        monkeypatch.setattr(config, name, value)
    assert plain == [run(live_model, sae, maxima, temperature=t, seed=3) for t in (0.0, 1.5)]


def test_sampled_texts_are_drawn_by_their_seed_and_doses_are_means_over_them(
    live_model, sae, maxima
):
    """Token by token from softmax(logits / temperature), without the caller's random state."""
    options = dict(temperature=1.5, seed=3, seeds=2, dose=(0.0, 4.0), top=2)
    torch.manual_seed(11)
    state = torch.get_rng_state()
    result = run(live_model, sae, maxima, **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert result == run(live_model, sae, maxima, **options)
    decode = live_model.tokenizer.decode
    prompt = live_model.tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    P, row = prompt.shape[1], UNIT * sae.W_dec[LATENT]

    def sampled(seed: int, shift) -> torch.Tensor:
        ids = prompt
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            for _ in range(TOKENS):
                p = (log_p(live_model, ids, shift)[-1].float() / 1.5).softmax(-1)
                ids = torch.cat([ids, torch.multinomial(p, 1)[None]], 1)
                if ids[0, -1] == live_model.tokenizer.eos_token_id:
                    break
        return ids

    clean = [sampled(seed, 0.0) for seed in (3, 4)]
    assert [text.text for text in result.clean_texts] == [decode(ids[0, P:]) for ids in clean]
    steered = [sampled(seed, 2 * row) for seed in (3, 4)]
    assert [text.text for text in result.steered_texts] == [decode(ids[0, P:]) for ids in steered]
    zero, high = result.doses
    assert zero.texts == [text.text for text in result.clean_texts]
    assert zero.perplexity == pytest.approx(
        math.prod(text.perplexity for text in result.clean_texts) ** 0.5, rel=1e-4
    )
    # the effect on each clean text
    vocabulary = [decode([token]) for token in range(tiny.VOCAB)]
    targets = [vocabulary.index(token) for token in result.targets]
    for ids, effect in zip(clean, high.effects):
        at = torch.arange(P - 1, ids.shape[1] - 1)
        after, before = (log_p(live_model, ids, s)[at][:, targets] for s in (4 * row, 0.0))
        expected = (after.logsumexp(1) - before.logsumexp(1)).mean()
        assert effect == pytest.approx(float(expected), abs=1e-5)
    assert high.effect == pytest.approx(sum(high.effects) / 2)


TEMPLATE = (
    "{% for m in messages %}{{ 'the ' + m['role'][0] + ' ' + m['content'] + ' and' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' home' }}{% endif %}"
)


def test_a_chat_prompt_is_a_users_message_in_the_models_template(made, sae, maxima):
    live_model = load_model(made.model)
    with pytest.raises(DataError, match="no chat template"):
        run(live_model, sae, maxima, chat=True)
    live_model.tokenizer.chat_template = TEMPLATE
    result = run(live_model, sae, maxima, chat=True)
    rendered = f"the u {PROMPT} and home"
    prompt = torch.tensor([live_model.tokenizer(rendered, add_special_tokens=False)["input_ids"]])
    assert prompt.shape[1] > len(PROMPT.split()) + 2
    for part, shift in ((result.clean, 0.0), (result.steered, 2 * UNIT * sae.W_dec[LATENT])):
        ids = written(live_model, prompt, lambda _, shift=shift: shift)
        assert part.text == live_model.tokenizer.decode(ids[0, prompt.shape[1] :])


def test_the_verdict_is_none_where_a_control_does_as_much(live_model, sae, maxima):
    result = run(live_model, sae, maxima, dose=(-3.0, 3.0))
    import dataclasses

    strong = [dataclasses.replace(dose, effect=99.0 * dose.strength) for dose in result.doses]
    weak = [strong[0], dataclasses.replace(strong[1], random_latents=[-1e6])]
    falling = [dataclasses.replace(dose, effect=-dose.effect) for dose in strong]
    verdicts = [
        dataclasses.replace(result, doses=doses).verdict for doses in (strong, weak, falling)
    ]
    assert "larger" in verdicts[0] and "and monotone" in verdicts[0]
    assert verdicts[1].startswith("no effect of this latent")
    assert "not monotone" in verdicts[2]


def test_what_cannot_be_steered_is_refused(live_model, sae, maxima, tmp_path):
    with pytest.raises(UsageError, match="dose is of one latent"):
        run(live_model, sae, maxima, latents={3: 1.0, 4: 1.0}, dose=(1.0,))
    with pytest.raises(UsageError, match="positions"):
        run(live_model, sae, maxima, positions="cls")
    with pytest.raises(UsageError, match="largest activation"):
        run(live_model, sae, None)
    with pytest.raises(UsageError, match="does not say which model"):
        run(None, sae, maxima)
    with pytest.raises(DataError, match="writes no text"):
        run(load_model(tiny.save("bert", tmp_path / "bert")), sae, maxima)
