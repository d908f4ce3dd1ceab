"""How `saekit demo` ends: a sentence of the language model with a latent added, beside its
controls."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_language import made_language
from saekit_cli import demo

import saekit
from saekit.harvesting.models import load_model
from saekit.inspection import next_token
from saekit.inspection.next_token import next_token_latents
from saekit.intervention import controls
from saekit.intervention.steer import steer_text

SEED = 1  # of a dictionary with a latent that holds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    made = made_language(out)
    options = {"latents": 64, "k": 4, "batch": 128, "rows": 12_800}
    saekit.train(made.store, made.run, **options, seed=SEED, overwrite=True)
    return out


@pytest.fixture
def part(folder, monkeypatch):
    """The demo's, of a tiny model with short texts."""
    monkeypatch.setattr(next_token, "STRONGEST", 3)
    monkeypatch.setattr(next_token, "MOST_DENSITY", 0.2)
    monkeypatch.setattr(demo, "PROMPT", "the cat sat on")
    monkeypatch.setattr(demo, "NEW_TOKENS", 4)
    return replace(demo.TEXT, model=str(folder / "model"), page="run")


def test_the_demo_ends_with_the_first_latent_that_holds(folder, part, monkeypatch):
    monkeypatch.setattr(demo, "TRIES", 40)
    monkeypatch.setattr(controls, "CONTROLS", 1)  # the tiny model is random: against 8 none holds
    lines = demo.steer_part(part, folder, quiet=True)

    # the same tries by hand
    run, live_model = folder / "run", load_model(part.model)
    tried = 0
    for latent in next_token_latents(run, folder / "store")[:40]:
        tried += 1
        result = steer_text(
            str(run), "the cat sat on", {latent.latent: 2.0}, dose=(1.0, 2.0),
            targets=[latent.token], model=live_model, max_new_tokens=4,
        )  # fmt: skip
        one, two = result.doses
        if one.is_beyond_controls and two.is_beyond_controls and 0 <= one.effect <= two.effect:
            break
    else:
        pytest.fail("no latent of the tiny model holds: take another seed")
    about, prompt, clean, steered, effect, verdict, report = lines
    number = f"latent {latent.latent}, number {tried} by the rule"
    assert about.startswith(f"{number}: {latent.text!r} follows {latent.share:.0%}")
    assert prompt == "prompt  'the cat sat on'"
    assert clean == f"clean   {result.clean.text!r}" and result.clean.text != result.steered.text
    assert steered == f"steered {result.steered.text!r}"
    largest_control = max(two.random_directions + two.random_latents, key=abs)
    assert effect == (
        f"effect  {two.effect:+.2f} nats on {latent.text!r} at dose +2; the largest of 2 controls"
        f" has {largest_control:+.2f}"
    )
    assert verdict.endswith("larger than that of every control, and monotone in the dose")
    assert report == f"open    {(folder / 'steered' / 'report.html').resolve()}"
    assert repr(result.prompt)[1:-1] in (folder / "steered" / "report.html").read_text()


def test_the_demo_says_that_no_latent_holds(folder, part, monkeypatch):
    monkeypatch.setattr(demo, "TRIES", 2)
    monkeypatch.setattr(demo, "DOSES", (0.0,))  # nothing is added
    about, *_, clean, steered, effect, _, _ = demo.steer_part(part, folder, quiet=True)
    second = next_token_latents(folder / "run", folder / "store")[1]
    assert about.startswith(f"latent {second.latent}, number 2")
    assert about.endswith("none of the 2 tried has an effect of its own")
    assert clean.removeprefix("clean   ") == steered.removeprefix("steered ")
    assert effect.startswith("effect  +0.00 nats")
