"""`steer` as users call it: the library's verb, the command line and the page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import by_hand
import pytest
import torch
from command import saekit as command
from made_language import Made, made_language
from saekit_cli import screen

import saekit
from saekit.embedded import digits
from saekit.errors import UsageError
from saekit.harvesting.classifiers import load_classifier
from saekit.intervention.steer import SteerResult, steer_text
from saekit.intervention.steer_image import steer_image
from saekit.report.steering import parsed_doses, parsed_strengths

PROMPT, TOKENS = "the cat sat on a", 5


def sections_and_numbers(page: str) -> tuple[list[str], dict]:
    (numbers,) = re.findall(r'id="numbers">(.*)</script>', page)
    return re.findall("<h2>(.*)</h2>", page), json.loads(numbers)["steer"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    return made_language(tmp_path_factory.mktemp("steering"))


@pytest.fixture(scope="module")
def image_run(tmp_path_factory) -> Path:
    """A short run on the embedded classifier, with a picture beside it."""
    folder = tmp_path_factory.mktemp("digits")
    saekit.harvest(
        "embedded:digits-vit", "embedded:digits", folder / "store", hook="blocks.1", rows=2000
    )
    saekit.train(folder / "store", folder / "run", latents=64, k=4, batch=256, rows=2048)
    digits.image(5).save(folder / "digit.png")
    return folder / "run"


def test_strengths_and_doses_are_read_as_written():
    assert parsed_strengths(["12=+4", "3=-.5", "0=2e1"], False) == ({12: 4, 3: -0.5, 0: 20}, False)
    assert parsed_strengths(("12=raw:4", "3=raw:-1"), False) == ({12: 4, 3: -1}, True)
    assert parsed_strengths({5: 1.0}, True) == ({5: 1.0}, True)
    assert parsed_doses("-8:8:9") == (-8, -6, -4, -2, 0, 2, 4, 6, 8)
    assert parsed_doses("1.5:2:2") == (1.5, 2) and parsed_doses("3:9:1") == (3,)
    assert parsed_doses([1, 2]) == (1.0, 2.0) and parsed_doses(()) == ()
    for wrong in ("12", "12=", "a=4", "12=4x", "-1=4", "1=nan", "12=raw"):
        with pytest.raises(UsageError, match="not LATENT=STRENGTH"):
            parsed_strengths([wrong], False)
    with pytest.raises(UsageError, match="given twice"):
        parsed_strengths(["1=2", "1=3"], False)
    with pytest.raises(UsageError, match="some strengths are raw"):
        parsed_strengths(["1=2", "2=raw:3"], False)
    for wrong in ("1:2", "1:2:0", "a:2:3", "1:2:3.5", "1:2:5000"):
        with pytest.raises(UsageError, match="not A:B:N"):
            parsed_doses(wrong)


def test_the_command_prints_what_the_function_returns_and_writes_a_page(capsys, made, tmp_path):
    options = ["--latent", "3=raw:6", "--dose", "-6:6:3", "--max-new-tokens", TOKENS, "--seed", 4]
    out = tmp_path / "steered"
    arguments = ["steer", made.run, "--prompt", PROMPT, *options]
    status, text, err = command(capsys, *arguments, "--json", "-q", "--out", out)
    assert status == 0 and err == ""
    value = json.loads(text)
    result = steer_text(
        str(made.run), PROMPT, {3: 6.0}, raw=True, dose=(-6.0, 0.0, 6.0), seed=4,
        max_new_tokens=TOKENS,
    )  # fmt: skip
    assert value["clean"]["text"] == result.clean.text and value["clean"]["kl"] == result.clean.kl
    (steered,) = value["steered"]
    assert (steered["text"], steered["perplexity"]) == (
        result.steered.text,
        result.steered.perplexity,
    )
    assert [(dose["strength"], dose["effect"]) for dose in value["dose"]] == [
        (dose.strength, dose.effect) for dose in result.doses
    ]
    assert [(c["kind"], c["strength"]) for c in value["controls"]] == [
        (kind, dose) for dose in (-6.0, 0.0, 6.0) for kind in ("random direction", "random latent")
    ]
    assert value["controls"][-1]["effects"] == result.doses[-1].random_latents
    assert (value["verdict"], value["scope"]) == (result.verdict, result.scope)

    # the page: one file without scripts or links to others, with all numbers
    page = (out / "report.html").read_text()
    assert value["report"] == str(out / "report.html")
    sections, numbers = sections_and_numbers(page)
    assert sections == ["Texts", "Dose and response", "KL per token", "Next token"]
    first = f"<td>{result.clean.kl[0]:.4f}</td>"
    assert first in page
    assert all(link.startswith("#") for link in re.findall(r'(?:src|href)="([^"]*)"', page))
    assert [dose["effect"] for dose in numbers["doses"]] == [d.effect for d in result.doses]
    assert page.count("<circle") == 3 * (1 + 8 + 8)

    # the same again is refused, and asked for by its own config file it is the same
    assert command(capsys, *arguments, "--out", out)[0] == 3
    config = ["--config", out / "config.toml", "--json", "-q"]
    again = json.loads(command(capsys, "steer", made.run, *config)[1])
    assert again == {**value, "report": None}


def test_the_terminal_shows_both_texts_and_what_controls_mean(capsys, made, monkeypatch):
    monkeypatch.setattr(screen, "PLAIN_SECONDS", 0)  # it takes less than a line of a log
    arguments = ["--latent", "3=raw:6", "--dose", "0:6:2", "--max-new-tokens", TOKENS]
    status, text, err = command(capsys, "steer", made.run, "--prompt", PROMPT, *arguments)
    assert status == 0
    assert "2/2 doses" in err and "doses" not in text  # progress is not part of the output
    assert re.search(r"^clean +steered$", text, re.MULTILINE)
    assert "an effect that they have too is none of this latent" in text
    assert "random directions" in text and "verdict" in text
    # what a verdict does not say stands right below it
    *_, verdict, scope = text.splitlines()
    assert verdict.startswith("verdict") and "not what the latent means" in scope
    assert "The largest dose chose them" in scope


@pytest.mark.parametrize(
    "arguments, status, cause",
    [
        (["--latent", "3=raw:6"], 2, "exactly one of --prompt, --image"),
        (["--prompt", "a"], 2, "no latent to steer"),
        (["--prompt", "a", "--latent", "3"], 2, "--latent: '3' is not LATENT=STRENGTH"),
        (["--prompt", "a", "--latent", "3=4"], 2, "largest activation of each latent is not known"),
        (["--prompt", "a", "--latent", "64=raw:4"], 3, "latent 64"),
        (["--prompt", "a", "--latent", "3=raw:4", "--target", "a"], 2, "--target"),
        (["--image", "x.png", "--latent", "3=raw:4", "--chat"], 2, "--chat is for texts"),
        (["--image", "x.png", "--ablate", "3", "--seeds", "2"], 2, "--seeds is for texts"),
        (["--prompt", "a", "--ablate", "3", "--seeds", "2"], 2, "greedy texts have no seed"),
        (["--prompt", "a", "--ablate", "3", "--temperature", "-1"], 2, "must be 0 or more"),
        (["--prompt", "a", "--ablate", "3", "--dose", "1:2:3"], 2, "--dose is of one latent"),
    ],
)
def test_what_cannot_be_done_is_refused(capsys, made, arguments, status, cause):
    found, out, err = command(capsys, "steer", made.run, *arguments, "-q")
    assert (found, out) == (status, "") and cause in err


def test_sampled_texts_are_shown_for_each_seed_and_figures_are_their_means(capsys, made, tmp_path):
    options = ["--latent", "3=raw:6", "--dose", "2:6:2", "--max-new-tokens", TOKENS, "--seed", 4]
    options += ["--temperature", "1.5", "--seeds", "3"]
    out = tmp_path / "steered"
    arguments = ["steer", made.run, "--prompt", PROMPT, *options, "-q"]
    value = json.loads(command(capsys, *arguments, "--json", "--out", out)[1])
    assert value["seeds"] == [4, 5, 6]
    assert len({text["text"] for text in value["clean_texts"]}) > 1
    assert len(value["steered"]) == 3 and value["clean"] == value["clean_texts"][0]
    for dose in value["dose"]:
        assert len(dose["effects"]) == len(dose["texts"]) == 3
        assert dose["effect"] == pytest.approx(sum(dose["effects"]) / 3)
    _, text, _ = command(capsys, *arguments)
    for seed in (4, 5, 6):
        assert re.search(rf"^clean, seed {seed} +steered, seed {seed}$", text, re.MULTILINE)
    assert "over seeds" in text
    page = (out / "report.html").read_text()
    assert page.count("<circle") == 2 * (1 + 3 + 8 + 8)
    assert "steered, seed 6" in page and "small points are single texts" in page


def test_an_image_has_doses_with_class_probabilities_a_chart_and_controls(
    capsys, tmp_path, image_run
):
    image = image_run.parent / "digit.png"
    arguments = [
        "steer",
        image_run,
        "--image",
        image,
        "--latent",
        "3=raw:8",
        "--dose",
        "-8:8:3",
        "-q",
    ]
    where = ["--positions", "0,1+2,2"]
    out = tmp_path / "out"
    status, text, err = command(capsys, *arguments, *where, "--json", "--out", out)
    assert status == 0, err
    value = json.loads(text)
    mask = torch.zeros(load_classifier("embedded:digits-vit").image_tokens.grid).bool()
    mask[0, 1] = mask[2, 2] = True
    result = saekit.steer(
        image_run, image=image, latents={3: 8.0}, raw=True, dose=(-8, 0, 8), positions=mask
    )
    assert [dose["strength"] for dose in value["dose"]] == [-8, 0, 8]
    for dose, other in zip(value["dose"], result.doses, strict=True):
        assert dose["effect"] == pytest.approx(other.effect, abs=1e-6)
        assert sum(dose["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert value["targets"] == result.targets and value["verdict"] == result.verdict
    assert [len(control["effects"]) for control in value["controls"]] == [8] * 6
    page = (out / "report.html").read_text()
    sections, numbers = sections_and_numbers(page)
    assert sections == ["Classes", "Dose and response", "Patches"]
    assert page.count("<circle") == 3 * (1 + 8 + 8) and len(numbers["doses"]) == 3
    status, text, _ = command(capsys, *arguments, *where)
    (target,) = value["targets"]
    assert "verdict" in text and f"effect on  {target!r}" in text
    # the target class is shown at each dose, however improbable it is
    header = next(line for line in text.splitlines() if "random directions" in line)
    assert header.split()[-3] == target
    assert f"{value['dose'][0]['probabilities'][target]:.2%}" in text
    assert command(capsys, *arguments, "--positions", "0,99")[0] == 2


@pytest.mark.parametrize("kind", ["text", "image"])
def test_an_interruption_keeps_the_doses_that_are_done(
    capsys, made, tmp_path, monkeypatch, kind, image_run
):
    from saekit.intervention import steer, steer_image

    module = steer if kind == "text" else steer_image
    asked = {
        "text": [made.run, "--prompt", PROMPT, "--max-new-tokens", 2],
        "image": [image_run, "--image", image_run.parent / "digit.png"],
    }[kind]

    measure, calls = module._dose, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(module, "_dose", interrupted)
    arguments = ["--latent", "3=raw:6", "--dose", "1:5:5", "--out", tmp_path / "o", "--json"]
    status, text, err = command(capsys, "steer", *asked, *arguments)
    assert status == 130 and "verdict are those of 2 doses" in err
    assert json.loads(text)["report"] == str(tmp_path / "o" / "report.html")
    assert [dose["strength"] for dose in json.loads(text)["dose"]] == [1, 2]
    _, numbers = sections_and_numbers((tmp_path / "o" / "report.html").read_text())
    assert len(numbers["doses"]) == 2


def test_without_the_error_the_steered_model_sees_the_reconstruction_and_the_clean_one_does_not(
    made,
):
    options = dict(prompt=PROMPT, latents={3: 6.0}, raw=True, max_new_tokens=TOKENS)
    kept = saekit.steer(made.run, **options)
    lost = saekit.steer(made.run, **options, error=False)
    assert isinstance(kept, SteerResult) and isinstance(lost, SteerResult)
    assert lost.clean.text == kept.clean.text and lost.clean.perplexity == kept.clean.perplexity
    # KL of the first token, by hand
    from saekit.harvesting.models import load_model

    live, sae = load_model(made.model), saekit.load(made.run)
    ids = live.tokenizer(PROMPT, return_tensors="pt")["input_ids"]

    def log_p(change=None) -> torch.Tensor:
        layer = live.module.model.layers[1]
        handle = layer.register_forward_hook(lambda _m, _a, x: x if change is None else change(x))
        with torch.inference_mode():
            logits = live.module(ids).logits[0, -1]
        handle.remove()
        return logits.double().log_softmax(-1)

    def reconstructed(x: torch.Tensor) -> torch.Tensor:
        code = sae.encode(x.flatten(0, 1))
        code = code if isinstance(code, torch.Tensor) else code.to_dense()
        code[:, 3] += 6.0
        return sae.decode(code).view_as(x)

    p, q = log_p(), log_p(reconstructed)
    assert lost.clean.kl[0] == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-3, abs=1e-5)
    assert abs(lost.clean.kl[0] - kept.clean.kl[0]) > 1e-3


def test_an_image_has_classes_before_and_after_and_a_map_of_patches(tmp_path):
    classifier = load_classifier("embedded:digits-vit")
    sae = by_hand.dictionary(classifier.module.config.hidden_size, "jumprelu").float()
    digits.image(5).save(tmp_path / "digit.png")
    options = dict(hook="blocks.1", raw=True, positions="patches", model=classifier)
    result = saekit.steer(
        sae, image=tmp_path / "digit.png", latents={3: 9.0}, out=tmp_path / "out", **options
    )
    plain = steer_image(sae, tmp_path / "digit.png", {3: 9.0}, **options)
    assert result.classes == plain.classes and result.patches == plain.patches
    page = (tmp_path / "out" / "report.html").read_text()
    assert sections_and_numbers(page)[0] == ["Classes", "Patches"]
    first = plain.classes[0]
    assert f"{first.label}</td><td>{first.clean:.2%}</td><td>{first.steered:.2%}</td>" in page
