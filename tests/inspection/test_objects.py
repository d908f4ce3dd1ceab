"""Pages and rankings of models in memory are those of their folders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from crosscoder_fixture import tiny_crosscoder
from made_stores import write_store
from PIL import Image

import saekit
from saekit.errors import DataError, MissingError, UsageError
from saekit.harvesting.images import image_processor

TEXTS = ["the cat sat on a mat", "a dog ran far away from it", "the dog sat on a cat and ran"] * 6
SETTINGS = {"latents": 32, "k": 4, "rows": 640, "batch": 64}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(model, store, result): a tiny language model in memory, and an SAE on its hidden states."""
    folder, model = tmp_path_factory.mktemp("objects"), tiny.random_model("llama")
    options = {"hook": "blocks.1", "ctx": 16, "batch": 4, "dtype": "float32"}
    saekit.harvest(model, TEXTS, folder / "store", tokenizer=tiny.tokenizer(), **options)
    return model, folder / "store", saekit.train(folder / "store", folder / "run", **SETTINGS)


def trained_in_memory(store):
    """The same weights as those of `made`, in no folder."""
    return saekit.train(store, **SETTINGS).model


def records(page: Path) -> list[dict]:
    return [json.loads(line) for line in (page / "features.jsonl").read_text().splitlines()]


def test_the_page_of_a_model_in_memory_is_that_of_its_folder(made, tmp_path):
    model, store, result = made
    in_memory = trained_in_memory(store).train()  # its caller may be training it
    for name, checkpoint in (("path", result), ("memory", in_memory)):
        opened = saekit.open_store(store)
        saekit.inspect(checkpoint, opened, tmp_path / name, top=4, live=model, jsonl=True)
    assert records(tmp_path / "memory") == records(tmp_path / "path") != []
    assert in_memory.training
    config = (tmp_path / "memory" / "config.toml").read_text()
    assert "checkpoint" not in config and f'store = "{store}"' in config


def test_features_of_a_model_in_memory_are_those_of_its_folder(made):
    model, store, result = made
    without_folder = trained_in_memory(store)
    for query in ({"text": "the cat ran", "live": model}, {"index": 3}):
        by_path = saekit.features(Path(result.path), store, **query)
        in_memory = saekit.features(without_folder, store, **query)
        assert [row.source for row in (*in_memory[:1], *by_path[:1])] == ["temporary", "index"]
        assert [replace(row, source="index") for row in in_memory] == by_path
    # as the rows of only that text have them
    options = {"hook": "blocks.1", "ctx": 16, "batch": 4, "dtype": "float32"}
    alone = saekit.harvest(model, ["the cat ran"], tokenizer=tiny.tokenizer(), **options)
    expected = result.model.encode(alone.x).to_dense().amax(0)
    for row in saekit.features(result, store, text="the cat ran", live=model):
        assert row.act == pytest.approx(float(expected[row.index]), rel=1e-5)


def test_a_loaded_model_has_the_index_of_its_folder_while_it_is_as_loaded(made):
    _, store, result = made
    loaded = saekit.load(result.path)
    assert loaded.origin == result.path
    saekit.features(result.path, store, index=3)
    assert saekit.features(loaded, store, index=3)[0].source == "index"
    with torch.no_grad():
        loaded.b_dec += 1
    assert saekit.features(loaded, store, index=3)[0].source == "temporary"
    # fewer active latents are another code
    cut = saekit.load(result.path, k=2)
    assert saekit.features(cut, store, index=3)[0].source == "temporary"


def test_a_live_model_is_left_as_it_was(made):
    model, store, result = made
    model.train()
    saekit.features(result, store, text="the cat ran", live=model)
    assert model.training
    model.eval()


def test_what_is_missing_is_named(made, tmp_path):
    _, store, result = made
    x_ND = torch.cat([batch.x for batch in saekit.open_store(store).batches(512)])
    for verb, given in (
        (saekit.inspect, {"out": tmp_path / "page"}),
        (saekit.features, {"index": 0}),
    ):
        with pytest.raises(UsageError, match="rows in memory do not say which token") as refused:
            verb(result, x_ND, **given)
        assert "store" in refused.value.hint
    with pytest.raises(MissingError, match="was an object in memory"):
        saekit.features(result, store, text="the cat ran")
    with pytest.raises(DataError, match=r"takes 32 values per row.* holds 16"):
        saekit.inspect(result.model, write_store(tmp_path / "s", 200), tmp_path / "page")


def test_an_image_is_read_by_a_live_model_with_its_processor(tmp_path):
    processor = image_processor(tiny.save("vit", tmp_path / "vit"))[0]
    pixels_NHWC = np.random.default_rng(0).integers(0, 256, (6, 24, 20, 3), dtype=np.uint8)
    model, out = tiny.random_model("vit"), tmp_path / "store"
    saekit.harvest(model, list(pixels_NHWC), out, hook="blocks.1", processor=processor)
    sae = saekit.train(out, latents=16, k=2, rows=128, batch=32).model
    Image.fromarray(pixels_NHWC[0]).save(tmp_path / "first.png")
    query = {"image": tmp_path / "first.png", "live": model}
    ranked = saekit.features(sae, out, processor=processor, **query)
    # the first image's rows in the store hold the same values
    first = torch.cat([b.x[b.doc_id == 0] for b in saekit.open_store(out).batches(512)]).float()
    largest = sae.encode(first).to_dense().amax(0)
    assert ranked and all(
        row.act == pytest.approx(float(largest[row.index]), rel=2e-2) for row in ranked
    )
    with pytest.raises(MissingError, match="has no image processor"):
        saekit.features(sae, out, **query)


def test_a_crosscoder_in_memory_takes_the_scales_of_its_stores(tmp_path):
    run, *stores = tiny_crosscoder(tmp_path)
    in_memory = saekit.load(run)
    in_memory.origin = None  # as one that was trained without a folder
    pages = {"path": run, "memory": in_memory}
    for name, checkpoint in pages.items():
        saekit.inspect(checkpoint, stores, tmp_path / name, features="top:20", top=2, jsonl=True)
    by_path, in_memory = (records(tmp_path / name) for name in pages)
    for left, right in zip(by_path, in_memory, strict=True):
        # the folder has the scales of the training rows, the stores those of all rows
        assert right["hook_shares"] == pytest.approx(left["hook_shares"], abs=0.02)
        assert right["examples"] == left["examples"]
    with pytest.raises(DataError, match=r"takes 64 values per row, .* holds 32"):
        saekit.features(pages["memory"], stores[:1], index=0)


def test_features_are_sorted_by_score(made):

    from saekit.inspection.gather import scores_of

    model, store, result = made
    rows = saekit.features(result, store, sort="score", top=5)
    scores = scores_of(saekit.open_store(store), saekit.open_index(result, store))
    assert [row.index for row in rows] == scores.order()[:5].tolist()
    assert [row.score for row in rows] == [scores.of(row.index) for row in rows]
    for row in rows:
        meaning = scores.meanings[row.index]
        assert row.label == (None if meaning is None else row.label)
        assert meaning is None or meaning.text.strip() in row.label
    # of those that a text activates
    by_size = saekit.features(result, store, text="the cat ran", sort="act", live=model, top=100)
    by_score = saekit.features(result, store, text="the cat ran", live=model, top=100, sort="score")
    assert {row.index for row in by_score} == {row.index for row in by_size}
    known = [row.score for row in by_score]
    assert known == sorted(known, reverse=True)
    described = {row.index: (row.score, row.label) for row in by_score}
    assert {row.index: (row.score, row.label) for row in by_size} == described
    with pytest.raises(UsageError, match="give exactly one of index, text, image") as refused:
        saekit.features(result, store)
    assert 'sort="score"' in refused.value.hint


def test_a_dense_code_has_no_score(made, tmp_path):
    _, store, _ = made
    saekit.train(store, tmp_path / "pca", model="pca", latents=4)
    with pytest.raises(DataError, match=r"no latent of .* has a score"):
        saekit.features(tmp_path / "pca", store, sort="score")
    # a page of it opens on the largest
    saekit.inspect(
        tmp_path / "pca", store, tmp_path / "page", features="interesting:1000", top=2, jsonl=True
    )
    assert all(record["score"] is None for record in records(tmp_path / "page"))
    sizes = [record["max"] for record in records(tmp_path / "page")]
    assert sizes == sorted(sizes, reverse=True)
