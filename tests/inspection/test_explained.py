"""Latents found by words: of names, explanations, automatic labels and the tokens of their rows,
ranked as BM25 worked out here says."""

from __future__ import annotations

import gzip
import json
import shutil
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from command import saekit as command
from made_codes import planted

import saekit
from saekit.errors import DataError, UsageError
from saekit.inspection.opening import open_pair
from saekit.inspection.questions.explained import words_of

TOKENS, ROWS, LATENTS, VOCABULARY = 16, 1280, 8, 20
FRUIT, PAIR, NAMED, NOTED, EXPLAINED, DEAD = range(6)
APPLE, AFTER = 3, 4  # the word of FRUIT, the word after it in every context that has it


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint whose latents FRUIT and PAIR are active on one and on two words."""
    rng = np.random.default_rng(0)
    token = rng.integers(5, VOCABULARY, ROWS)
    token[::TOKENS], token[1::TOKENS] = APPLE, AFTER
    z = np.where(rng.random((ROWS, LATENTS)) < 0.03, rng.integers(1, 9, (ROWS, LATENTS)) / 8, 0)
    z[:, FRUIT] = (token == APPLE) * rng.integers(8, 80, ROWS) / 8
    z[:, PAIR] = np.isin(token, [AFTER, 5]) * np.where(token == 5, 4, 2)
    z[:, DEAD] = 0
    names = [f"w{n}" for n in range(VOCABULARY)]
    names[APPLE], names[AFTER], names[5] = "Apples", "pear", "plum"
    folder = tmp_path_factory.mktemp("explained")
    return planted(
        folder, torch.from_numpy(z).float(), torch.from_numpy(token), TOKENS, None, names
    )


@pytest.fixture
def run(made, tmp_path):
    saekit.index(made.run, made.store, overwrite=True)
    return Path(shutil.copytree(made.run, tmp_path / "run"))


def identity(made) -> str:
    return open_pair(made.run, made.store).weights_digest()[:16] + "-" + "0" * 16


def write_names(
    run: Path, made, names: dict[int, str], notes: dict[int, str] | None = None
) -> None:
    """As the page saves them."""
    listed = lambda texts, key: [{"index": j, key: text} for j, text in texts.items()]
    saved = {"title": "t", "identity": identity(made), "names": listed(names, "name")}
    saved |= {"favorites": [1], "notes": listed(notes or {}, "note")}
    (run / "names.json").write_text(json.dumps(saved))


def test_words_are_compared_without_case_and_plural():
    assert words_of("Python Keywords, class_names: buses") == [
        "python", "keyword", "class", "name", "buse",
    ]  # fmt: skip
    assert words_of("as is, gas 's") == ["as", "is", "gas", "s"]


def test_tokens_of_the_strongest_rows_and_those_after_them_are_words(run, made):
    rows = saekit.features(run, made.store, explained="apple", top=20)
    assert rows[0].index == FRUIT and rows[0].figures["words"] == 1
    assert rows[0].label == "on 'Apples'" and rows[0].score is not None
    ask = lambda word: [r.index for r in saekit.features(run, made.store, explained=word, top=20)]
    assert ask("plums")[0] == PAIR
    found = ask("pear")  # the word after FRUIT's rows
    assert FRUIT in found
    matches = [row.figures["match"] for row in rows]
    assert matches == sorted(matches, reverse=True) and min(matches) > 0
    assert DEAD not in found


def test_the_ranking_is_bm25_of_what_people_said(run, made, monkeypatch):
    from saekit.inspection import known
    from saekit.inspection.questions import explained

    # without what the rows say
    monkeypatch.setattr(explained, "_add_rows", lambda *_: None)
    monkeypatch.setattr(known.Known, "scores", known.no_scores(LATENTS))
    texts = {NAMED: "python keywords", FRUIT: "words about python code", PAIR: "something else"}
    write_names(run, made, texts, {NOTED: "perhaps a keyword"})
    (run / "explanations.jsonl").write_text(
        json.dumps({"index": str(EXPLAINED), "description": "Python statement", "layer": "9"})
        + "\n\n"
    )
    rows = saekit.features(run, made.store, explained="Python keyword", top=20)
    weighted = {j: 4.0 * np.array([len(words_of(text))]) for j, text in texts.items()}
    length = {NAMED: 8.0, FRUIT: 16.0, PAIR: 8.0, NOTED: 6.0, EXPLAINED: 8.0}
    assert all(weighted[j][0] == length[j] for j in weighted)
    mean = sum(length.values()) / 5
    idf = lambda n: log(1 + (5 - n + 0.5) / (n + 0.5))
    part = lambda j, count, n: (
        idf(n) * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * length[j] / mean))
    )
    expected = {
        NAMED: part(NAMED, 4, 3) + part(NAMED, 4, 2),
        FRUIT: part(FRUIT, 4, 3),
        EXPLAINED: part(EXPLAINED, 4, 3),
        NOTED: part(NOTED, 2, 2),
    }
    order = sorted(expected, key=lambda j: -expected[j])
    assert [row.index for row in rows] == order and order[0] == NAMED
    for row in rows:
        assert row.figures["match"] == pytest.approx(expected[row.index], rel=1e-12)
        assert row.figures["words"] == (2 if row.index == NAMED else 1)


def test_a_name_is_the_label_and_is_found(run, made, capsys):
    write_names(run, made, {NAMED: "Parts of <speech>"})
    (row,) = saekit.features(run, made.store, explained="speech")
    assert (row.index, row.label) == (NAMED, "Parts of <speech>")
    (own,) = saekit.features(run, made.store, index=NAMED)
    assert own.label == "Parts of <speech>"
    status, out, err = command(
        capsys, "features", run, "--store", made.store, "--explained", "speech", "--json", "-q"
    )
    assert status == 0, err
    (value,) = json.loads(out)
    assert value["index"] == NAMED and set(value["figures"]) == {"match", "words"}
    assert set(value) == {
        "index", "act", "max", "density", "label", "tokens", "score", "figures", "source",
        "at", "values", "labeled_by", "raises", "below_chance",
    }  # fmt: skip
    assert value["labeled_by"] == "name"
    # filters and the order by score go with it
    assert saekit.features(run, made.store, explained="speech", max_density=0.0) == []
    assert saekit.features(run, made.store, explained="speech", sort="score")[0].index == NAMED


def test_explanations_of_neuronpedia_are_read_packed(run, made):
    lines = [{"index": str(j), "description": f"things of kind {j}"} for j in (2, 4)]
    packed = gzip.compress("\n".join(map(json.dumps, lines)).encode())
    (run / "explanations-batch-0.jsonl.gz").write_bytes(packed)
    rows = saekit.features(run, made.store, explained="things", top=20)
    assert sorted(row.index for row in rows) == [2, 4]
    assert {row.label for row in rows} == {"things of kind 2", "things of kind 4"}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("explanations.jsonl", b'{"index": 99, "description": "x"}', "describes latent 99"),
        ("explanations.jsonl", b'{"description": "x"}', "line 1 of .* has no latent with its desc"),
        ("explanations.jsonl", b'{"index": true, "description": "x"}', "has no latent"),
        ("explanations.jsonl", b"nothing", "line 1 of .* is not JSON"),
        ("explanations.jsonl", b"\xff\xfe", "is damaged"),
        ("explanations.jsonl.gz", b"not packed", "is damaged"),
        ("names.json", b"[1]", "is not an object"),
        ("names.json", b'{"names": {"1": "x"}}', "has no list of names"),
        ("names.json", b'{"identity": "0000-1", "names": []}', "names of another checkpoint"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(run, made, name, content, words):
    (run / name).write_bytes(content)
    with pytest.raises(DataError, match=words) as error:
        saekit.features(run, made.store, explained="python")
    assert str(run) in str(error.value) and error.value.hint


def test_what_no_latent_is_described_by(run, made):
    with pytest.raises(DataError, match='described by explained="aple"') as error:
        saekit.features(run, made.store, explained="aple")
    assert error.value.hint.startswith("did you mean apple?")
    with pytest.raises(UsageError, match="has no words"):
        saekit.features(run, made.store, explained="?!")
    with pytest.raises(UsageError, match="does not go with this question"):
        saekit.features(run, made.store, explained="apple", by="max")


def test_a_dense_code_is_found_by_what_people_said(made, tmp_path):
    saekit.train(made.store, tmp_path / "pca", model="pca", latents=4)
    with pytest.raises(DataError, match="no latent is described"):
        saekit.features(tmp_path / "pca", made.store, explained="apple")
    lines = '{"index": 2, "description": "the first letter"}'
    (tmp_path / "pca" / "explanations.jsonl").write_text(lines)
    (row,) = saekit.features(tmp_path / "pca", made.store, explained="letters")
    assert (row.index, row.label, row.density) == (2, "the first letter", None)
