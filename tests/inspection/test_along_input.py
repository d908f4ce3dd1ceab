"""What one latent does on every token of a text and every patch of an image, against the codes of a
harvest of only this input."""

from __future__ import annotations

import json

import pytest
import torch
from command import saekit as command
from made_language import made_language

import saekit
from saekit.embedded import digits
from saekit.errors import DataError, UsageError

TEXT = "the cat sat on a mat and the dog ran far away from it"
TWICE = f"{TEXT} {TEXT}"  # two contexts of 15 and 13 tokens, of which the shorter is read first


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return made_language(tmp_path_factory.mktemp("language"))


def test_of_a_text_in_reading_order(language, capsys):
    store = saekit.harvest(
        language.model, [TWICE], hook="blocks.1", ctx=16, batch=1, dtype="float32"
    )
    code_NF = saekit.load(language.run).encode(store.x).to_dense()
    code_NF = torch.cat([code_NF[-15:], code_NF[:-15]])  # a harvest begins with short contexts
    ranked = saekit.features(language.run, language.store, text=TWICE, top=64)
    for expected in ranked[:3]:
        j = expected.index
        (row,) = saekit.features(language.run, language.store, text=TWICE, index=j)
        assert [each["token"].strip() for each in row.values] == TWICE.split()
        values = torch.tensor([each["value"] for each in row.values])
        assert torch.allclose(values, code_NF[:, j], rtol=1e-5)
        assert (values > 0).sum() == (code_NF[:, j] > 0).sum()
        # the rest of the row is that of the ranking
        assert (row.act, row.at, row.max, row.tokens) == (
            expected.act, expected.at, expected.max, expected.tokens,
        )  # fmt: skip
        assert row.act == values.max() and row.values[int(values.argmax())]["token"] == row.at
    assert {row.values for row in ranked} == {None}
    # one that is silent on it
    silent = next(j for j in range(64) if j not in {row.index for row in ranked})
    (row,) = saekit.features(language.run, language.store, text=TWICE, index=silent)
    assert (row.act, row.at, {each["value"] for each in row.values}) == (0.0, None, {0.0})

    asked = ("--store", language.store, "--index", ranked[0].index, "--text", TEXT)
    status, out, err = command(capsys, "features", language.run, *asked, "-q")
    assert status == 0, err
    tokens = out.split("\n\n")[1].splitlines()[1:]
    assert [line.split("'")[1].strip() for line in tokens] == TEXT.split()
    status, out, err = command(capsys, "features", language.run, *asked, "--json")
    (told,) = json.loads(out)
    (row,) = saekit.features(language.run, language.store, index=ranked[0].index, text=TEXT)
    assert told["values"] == row.values


def test_of_an_image_on_its_patches(tmp_path, capsys):
    store, run, file = tmp_path / "store", tmp_path / "run", tmp_path / "one" / "three.png"
    saekit.harvest("embedded:digits-vit", "embedded:digits", store, hook="blocks.1", rows=640)
    saekit.train(store, run, latents=32, k=4, batch=64, rows=640)
    file.parent.mkdir()
    digits.image(3).save(file)
    alone = saekit.harvest(
        "embedded:digits-vit", str(file.parent), hook="blocks.1", dtype="float32"
    )
    code_BF = saekit.load(run).encode(alone.x).to_dense()
    (best, *_) = saekit.features(run, store, image=file)
    (row,) = saekit.features(run, store, image=file, index=best.index)
    # the picture by its name in the data set
    assert saekit.features(run, store, image="embedded:digits:3", index=best.index) == [row]
    patches_HW = torch.tensor(row.values)
    assert patches_HW.numel() == len(code_BF)
    assert torch.allclose(patches_HW.flatten(), code_BF[:, best.index], rtol=1e-5)
    assert patches_HW.max() == best.act
    y, x = map(int, row.at.split(","))
    assert patches_HW[y, x] == best.act
    status, out, err = command(
        capsys, "features", run, "--store", store, "--index", best.index, "--image", file, "-q"
    )
    assert status == 0, err
    grid = [line.split()[1:] for line in out.split("\n\n")[1].splitlines()[1:]]
    shown = [[0.0 if cell == "." else float(cell) for cell in line] for line in grid]
    assert torch.allclose(torch.tensor(shown), patches_HW, rtol=6e-3)


def test_what_does_not_go_with_one_latent_is_refused(language):
    ask = lambda **question: saekit.features(
        language.run, language.store, index=3, text=TEXT, **question
    )
    for question, words in [
        ({"versus": "the dog"}, "nothing to rank"),
        ({"by": "mean"}, "nothing to rank"),
        ({"min_density": 0.1}, "nothing to filter"),
        ({"token": "cat"}, "exactly one of"),
    ]:
        with pytest.raises(UsageError, match=words):
            ask(**question)
    with pytest.raises(DataError, match="feature 64: this model has 64"):
        saekit.features(language.run, language.store, index=64, text=TEXT)
