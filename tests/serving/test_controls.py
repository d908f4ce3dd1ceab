"""A steered latent beside its controls, as the server tells it: figures and verdict are those of
`saekit.steer`."""

from __future__ import annotations

import pytest

import saekit

PROMPT = {"prompt": "the cat", "max_new_tokens": 5}


def told(client, **question):
    answer = client.send("steer", PROMPT | question)
    assert answer.status == 200, answer.body
    return answer.lines


@pytest.mark.parametrize(
    "options", [{}, {"targets": ["dog", "mat"]}, {"raw": True, "seed": 3}], ids=str
)
def test_doses_and_verdict_are_those_of_steer(client, made, options):
    lines = told(client, latents={"3": 2}, dose=[1, 2], **options)
    expected = saekit.steer(made.run, latents={3: 2.0}, dose=[1.0, 2.0], **PROMPT, **options)
    kinds = [line["kind"] for line in lines]
    assert kinds[-4:] == ["figures", "doses", "doses", "end"]
    first, last = lines[-3], lines[-2]
    assert [len(first["dose"]), first["of"], first["verdict"]] == [1, 2, None]
    for dose, theirs in zip(last["dose"], expected.doses, strict=True):
        for name, value in dose.items():
            assert value == pytest.approx(getattr(theirs, name), rel=1e-6)
    controls = {(row["kind"], row["strength"]): row["effects"] for row in last["controls"]}
    for dose in expected.doses:
        assert controls["random direction", dose.strength] == dose.random_directions
        assert controls["random latent", dose.strength] == dose.random_latents
    assert last["targets"] == expected.targets == options.get("targets", expected.targets)
    assert (last["verdict"], last["scope"]) == (expected.verdict, expected.scope)
    assert expected.verdict


def test_what_a_verdict_tests_depends_on_who_chose_the_targets(made):
    chosen = saekit.steer(made.run, latents={3: 2.0}, dose=[2.0], **PROMPT)
    named = saekit.steer(made.run, latents={3: 2.0}, dose=[2.0], targets=["dog"], **PROMPT)
    without = saekit.steer(made.run, latents={3: 2.0}, **PROMPT)
    for result in (chosen, named):
        assert "not what the latent means" in result.scope
    assert "The largest dose chose them" in chosen.scope and "name a target" in chosen.scope
    assert "this target" in named.scope and "chose" not in named.scope
    assert without.scope == without.verdict == ""


def test_multiples_and_raw_units_are_one_intervention(client):
    """What the switch of units in the page relies on."""
    maximum = client.send("latents/3").json["brief"]["max"]
    scaled = told(client, latents={"3": 2.5})[-2]
    raw = told(client, latents={"3": 2.5 * maximum}, raw=True)[-2]
    assert scaled["steered"]["text"] == raw["steered"]["text"]
    assert scaled["steered"]["kl"] == pytest.approx(raw["steered"]["kl"], rel=1e-5)


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({"latents": {"3": 1, "5": 1}, "dose": [1]}, "“Compare with controls” is of one latent"),
        ({"latents": {"3": 1}, "ablate": [5], "dose": [1]}, "“Compare with controls” is of one"),
        ({"latents": {"3": 1}, "dose": [1] * 10}, "at most 9 doses"),
        ({"latents": {"3": 1}, "targets": ["dog"]}, "“Target” are what doses"),
        ({"latents": {"3": 1}, "dose": [1], "targets": ["nosuch"]}, "“Target” 'nosuch' is"),
        ({"latents": {"3": 1}, "dose": [1], "targets": ["dog"] * 33}, "at most 32 target"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_is_written(client, question, words):
    answer = client.send("steer", PROMPT | question)
    assert answer.status == 400, answer.body
    assert words in answer.json["error"]
