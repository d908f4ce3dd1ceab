"""`saekit demo` on a tiny language model: what is printed and in which order, and how it ends: with
a sentence that a latent changes, beside its controls."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace

import pytest
from command import saekit as command
from made_language import HARVEST, made_language
from saekit_cli import demo, demo_ending

import saekit
from saekit.harvesting.models import load_model
from saekit.inspection import next_token
from saekit.inspection.next_token import next_token_latents
from saekit.intervention import controls
from saekit.intervention.steer import steer_text

DEEPER = "model.layers.2"  # three quarters of the tiny model's depth
SEED = 1  # of a dictionary with a latent that holds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    made = made_language(out)
    options = {"latents": 64, "k": 4, "batch": 128, "rows": 12_800}
    saekit.train(made.store, made.run, **options, seed=SEED, overwrite=True)
    return out


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Short texts, and rules for them."""
    monkeypatch.setattr(next_token, "STRONGEST", 3)
    monkeypatch.setattr(next_token, "MOST_DENSITY", 0.2)
    monkeypatch.setattr(demo_ending, "PROMPT", "the cat sat on")
    monkeypatch.setattr(demo_ending, "NEW_TOKENS", 4)


@pytest.fixture(scope="module")
def live_model(folder):
    return load_model(str(folder / "model"))


@pytest.fixture
def tiny_text(folder, monkeypatch):
    """The demo's half of text, with the tiny model's data and little training."""
    options = {"latents": 64, "batch": 128, "rows": 2_560}
    runs = {
        "topk": options | {"k": 4},
        "l1": options | {"sparsity": "l1"},
        "pca": {"model": "pca", "latents": 4},
    }
    part = replace(
        demo.TEXT, data=str(folder / "words.txt"), harvest=HARVEST, runs=runs, features="all"
    )
    monkeypatch.setattr(demo, "TEXT", part)
    monkeypatch.setattr(demo_ending, "TRIES", 1)
    return part


def test_the_page_is_there_first_and_every_model_of_the_table_is_explained(
    folder, tiny_text, tmp_path, capsys
):
    out = tmp_path / "out"
    arguments = ("demo", "--out", out, "--no-image", "--text-model", folder / "model")
    status, shown, log = command(capsys, *arguments)
    assert status == 0, log
    lines = shown.splitlines()
    # the path of the page, then the table
    page = out / "text-model" / "page" / "index.html"
    assert lines[0] == f"open    {page}" and page.is_file()
    header, *rows = lines[2:6]
    assert re.split(r" {2,}", header) == list(demo.HEADER) and header.count("dead") == 1
    for row, run in zip(rows, ("topk", "l1", "pca"), strict=True):
        checkpoint, _, latents, *_, dead, _ = re.split(r" {2,}", row)
        metrics = json.loads((out / "text-model" / run / "config.json").read_text())["result"][
            "metrics"
        ]
        expected = metrics.get("dead_train")
        assert checkpoint == str(out / "text-model" / run) and int(latents) in (4, 64)
        assert dead == ("-" if expected is None else f"{expected:.1%}")
    # the model and the data that were asked for, and a sentence for each model of the table
    about = lines[7:12]
    described = (
        f"text-model: {folder / 'model'} on {folder / 'words.txt'}; hidden states at blocks.2."
    )
    assert about[0] == described
    assert [line.split(":")[0] for line in about[1:]] == ["topk", "l1", "pca", "dead"]
    assert all(line.endswith(".") for line in about[1:])
    assert saekit.open_store(out / "text-model" / "store").spec.hook == DEEPER
    # the end, which has a report of its own
    assert lines[13].endswith(" s") and lines[14] == f"open    {page}"
    assert lines[16].startswith("latent ") and lines[22].endswith("report.html")
    # what to type next, on this very folder
    run, rest = out / "text-model" / "topk", f"--store {out / 'text-model' / 'store'}"
    assert lines[23].startswith(f"again   saekit steer {run} --prompt")
    asked, served = lines[26:]
    assert asked == f"  saekit features {run} {rest} --text 'The cat sat on the mat'"
    assert served == f"  saekit serve {run} {rest} --page {out / 'text-model' / 'page'}"


def test_the_demo_takes_a_hook(folder, tiny_text):
    part, live_model = demo._text_part(str(folder / "model"), "blocks.0.mlp")
    assert part.harvest["hook"] == "blocks.0.mlp" and part.runs == tiny_text.runs
    assert part.name == "text-model-blocks.0.mlp"  # beside the demo's own
    assert live_model.name == str(folder / "model")


def test_the_text_of_the_demo_says_which_model_it_is():
    assert demo.TEXT.title.startswith("SmolLM2-135M-Instruct (4-bit weights)")
    block = demo.TEXT.harvest["hook"]
    assert block == f"blocks.{int(demo.DEPTH * 30)}"  # SmolLM2 has 30


def test_models_that_have_no_sentence_have_the_line_of_their_list():
    assert demo._sentence("batchtopk") == "the B k largest of a batch; a threshold afterwards"
    assert demo._kind({"k": 3}) == "topk" and demo._kind({"model": "pca", "latents": 4}) == "pca"


def test_the_demo_ends_with_the_first_latent_that_holds(folder, live_model, monkeypatch, capsys):
    monkeypatch.setattr(demo_ending, "TRIES", 40)
    monkeypatch.setattr(controls, "CONTROLS", 1)  # the tiny model is random: against 8 none holds
    lines = demo_ending.steer(live_model, folder, "run", quiet=True)

    # the same tries by hand
    run = folder / "run"
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
    about, prompt, clean, steered, effect, verdict, report, again = lines
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
    # the command gives the same figures
    program, *words = shlex.split(again.removeprefix("again   "))
    assert program == "saekit"
    printed = json.loads(command(capsys, *words, "--json")[1])
    assert [dose["effect"] for dose in printed["dose"]] == [one.effect, two.effect]
    assert repr(result.prompt)[1:-1] in (folder / "steered" / "report.html").read_text()


def test_the_demo_says_that_no_latent_holds(folder, live_model, monkeypatch):
    monkeypatch.setattr(demo_ending, "TRIES", 2)
    monkeypatch.setattr(demo_ending, "DOSES", (0.0,))  # nothing is added
    lines = demo_ending.steer(live_model, folder, "run", quiet=True)
    about, *_, clean, steered, effect, _, _, _ = lines
    second = next_token_latents(folder / "run", folder / "store")[1]
    assert about.startswith(f"latent {second.latent}, number 2")
    assert about.endswith("none of the 2 tried has an effect of its own")
    assert clean.removeprefix("clean   ") == steered.removeprefix("steered ")
    assert effect.startswith("effect  +0.00 nats")
