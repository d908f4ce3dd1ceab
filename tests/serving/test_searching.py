"""What the box of the page asks is answered as `saekit.features` does, to the last digit."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from made_codes import planted
from served import CPU, Running

import saekit
from saekit.serving.questions import SearchQuestion
from saekit.serving.workbench import open_workbench

TEXT, OTHER = "the cat sat on a mat", "the dog ran far away"


@pytest.fixture(scope="module")
def indexed(made, indexed_run):
    """The dictionary with an index, and its server."""
    with Running(open_workbench(indexed_run, [made.store], device=CPU)) as running:
        yield indexed_run, running.client


def near(run, store) -> int:
    return saekit.features(run, store, text="cat", sort="act")[0].index


@pytest.mark.parametrize(
    "question",
    [
        {"text": TEXT},
        {"text": TEXT, "by": "mean"},
        {"text": TEXT, "versus": OTHER},
        {"text": TEXT, "versus": OTHER, "by": "mean", "max_density": 0.2},
        {"token": "cat"},
        {"token": "cat", "by": "lift"},
        {"token": "dog", "not_bos": True, "min_density": 0.01},
        {"near": None},
        {"near": None, "by": "encoder"},
        {"near": None, "by": "coactivation"},
        {"explained": "cat dogs"},
    ],
    ids=str,
)
def test_answers_are_those_of_features(indexed, made, question):
    run, client = indexed
    question = question | ({"near": near(run, made.store)} if "near" in question else {})
    answer = client.send("search", question)
    assert answer.status == 200, answer.body
    told = answer.json
    order = {"by": "max"} if "text" in question else {}  # what a page without a store can do
    expected = saekit.features(run, made.store, top=64, **(order | question))
    assert expected and told["of"] == len(expected) == len(told["found"])
    has_act = told["asked"] not in ("near", "explained")  # there it is the largest on the store
    for brief, row in zip(told["found"], expected):
        figures = brief["figures"] | told["chance"]
        assert (brief["index"], figures, brief["at"]) == (row.index, row.figures or {}, row.at)
        assert brief["act"] == (row.act if has_act else None)
        assert (brief["max"], brief["density"]) == (row.max, row.density)
    assert told["by"] == question.get("by", [*told["orders"], ""][0])
    assert set(told["chance"]) == ({"chance"} if "token" in question else set())
    assert told["source"] == "index"


def test_a_text_can_be_ordered_by_share_and_score(indexed, made):
    """Share of each latent's largest activation in the store, worked out from `features`."""
    run, client = indexed
    rows = saekit.features(run, made.store, text=TEXT, sort="act", top=64)
    share = {row.index: min(row.act / row.max, 1) for row in rows}
    told = client.send("search", {"text": TEXT, "by": "relative"}).json
    assert told["orders"] == ["max", "mean", "relative", "score"]
    # in the order of `features`
    by_share = saekit.features(run, made.store, text=TEXT, sort="share", top=64)
    assert [b["index"] for b in told["found"]] == [row.index for row in by_share]
    for brief in told["found"]:
        assert brief["figures"]["relative"] == pytest.approx(share[brief["index"]], rel=1e-6)
    told = client.send("search", {"text": TEXT, "by": "score"}).json["found"]
    scores = [brief["score"] for brief in told]
    assert scores == sorted(scores, reverse=True) and {b["index"] for b in told} == set(share)
    # a contrast has neither
    question = {"text": TEXT, "versus": OTHER, "by": "relative"}
    answer = client.send("search", question)
    assert answer.status == 400 and "“Order” 'relative' does not go" in answer.json["error"]


def test_a_label_is_answered_with_both_chances(made, tmp_path):
    """Of a store with labels: a latent that is active in contexts of one of them."""
    generator = torch.Generator().manual_seed(0)
    z_NF = (torch.rand(640, 12, generator=generator) < 0.05) * torch.rand(640, 12)
    labels = ["cat" if doc % 2 else "dog" for doc in range(40)]
    z_NF[:, 3] = torch.tensor([labels[n // 16] == "cat" for n in range(640)]) * 1.5
    words = torch.randint(0, 40, (640,), generator=generator)
    named = [f"w{n}" for n in range(40)]
    store, run = planted(tmp_path, z_NF.float(), words, 16, labels, named, each_document=1)
    saekit.index(run, store)
    bench = open_workbench(run, [store], model=made.model, device=CPU)
    assert bench.about["labels"] == ["cat", "dog"]
    told = bench.searcher.answer(SearchQuestion(label="cat", by="auroc"), 2, lambda _: None)
    expected = saekit.features(run, store, label="cat", by="auroc", top=2)
    assert told["found"][0]["index"] == 3 and told["of"] >= len(told["found"])
    assert [b["figures"] | told["chance"] for b in told["found"]] == [r.figures for r in expected]
    assert set(told["chance"]) == {"chance", "auroc_chance"}


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({}, "exactly one of text, token, label, near"),
        ({"token": "cat", "label": "x"}, "exactly one of"),
        ({"token": "cat", "versus": "x"}, "versus contrasts"),
        ({"token": "cat", "by": "auroc"}, "“Order” 'auroc' does not go with “token:”"),
        ({"token": "Cat"}, "no row of the store is on the token"),
        ({"label": "x"}, "no labels"),
        ({"near": 64}, "this dictionary has 64"),
        ({"explained": "-"}, "has no words"),
        ({"near": "3"}, "must be a whole number"),
        ({"text": ""}, "holds no token"),
        ({"text": "a", "min_density": 2}, "must be between 0 and 1"),
        ({"token": "a" * 20_001}, "at most 20,000"),
    ],
)
def test_what_is_wrong_is_said(indexed, question, words):
    answer = indexed[1].send("search", question)
    assert answer.status == 400, answer.body
    assert words in answer.json["error"]


def test_the_index_is_made_and_without_a_store_it_says_what_is_missing(bare_run, made, tmp_path):
    with Running(open_workbench(bare_run, [made.store], device=CPU)) as running:
        client = running.client
        assert client.send("about").json["index"] is True
        answer = client.send("search", {"token": "cat"})
        assert answer.status == 200 and answer.json["found"] and answer.json["source"] == "index"
        assert saekit.open_index(bare_run, made.store).rows == client.send("about").json["rows"]
    saekit.export_dictionary(made.run, tmp_path / "theirs", format="saelens")
    with Running(open_workbench(tmp_path / "theirs", model=made.model, device=CPU)) as running:
        bare = running.client
        assert bare.send("about").json["index"] is False
        ranked = [b["index"] for b in bare.send("search", {"text": TEXT}).json["found"]]
        # without a store there are no maxima of which to take a share; the page calls it relative
        assert bare.send("search", {"text": TEXT}).json["orders"] == ["max", "mean"]
        by_size = saekit.features(made.run, made.store, text=TEXT, sort="act", top=64)
        assert ranked == [r.index for r in by_size]
        assert bare.send("search", {"text": TEXT, "by": "share"}).status == 400
        answer = bare.send("search", {"near": 3})
        assert answer.status == 400 and "answered from a store" in answer.json["error"]


def test_an_answer_has_at_most_so_many(indexed, monkeypatch):
    from saekit.serving import app

    monkeypatch.setattr(app, "MOST_FOUND", 3)
    told = indexed[1].send("search", {"text": TEXT}).json
    assert len(told["found"]) == 3 < told["of"]


def test_words_find_what_people_and_programs_said(made, indexed_run, tmp_path):
    """And where nobody said anything, the answer says that."""
    with Running(open_workbench(indexed_run, [made.store], device=CPU)) as running:
        bare = running.client.send("search", {"explained": "cat"}).json
        refused = running.client.send("search", {"explained": "telescopes"})
    assert bare["found"] and "no names, notes or explanations" in bare["note"]
    assert refused.status == 400
    assert "no latent is described by “explained:telescopes”" in refused.json["error"]
    assert "no names, notes or explanations" in refused.json["hint"]
    assert "“token:” those of one token" in refused.json["hint"]

    run = shutil.copytree(indexed_run, tmp_path / "run")
    line = {"index": 5, "description": "telescopes on a hill"}
    (run / "explanations.jsonl").write_text(json.dumps(line) + "\n")
    bench = open_workbench(run, [made.store], device=CPU)
    question = SearchQuestion(explained="telescope")
    told = bench.searcher.answer(question, 10, lambda _: None)
    (row,) = saekit.features(run, made.store, explained="telescope")
    (brief,) = told["found"]
    assert (brief["index"], brief["label"]) == (row.index, row.label) == (5, line["description"])
    assert brief["figures"] == row.figures and told["note"] is None


def test_names_and_notes_are_labels_and_words_find_them(made, indexed_run, tmp_path):
    """As the page saves them: the file beside the checkpoint, and the label of `features`."""
    run = shutil.copytree(indexed_run, tmp_path / "run")
    rows = saekit.features(indexed_run, made.store, sort="score", top=64)
    first, second = [row for row in rows if row.label][:2]
    a, b = first.index, second.index
    saved = {
        "names": [{"index": a, "name": "Zoo Keepers"}],
        "notes": [{"index": b, "note": "ask the zookeeper"}],
    }
    (run / "names-topk.json").write_text(json.dumps(saved))
    with Running(open_workbench(run, [made.store], device=CPU)) as running:
        client = running.client
        for words, latents in [("zoo", {a, b}), ("ZOO+KEEPER", {a}), ("the+zookeeper", {b})]:
            found = client.send(f"latents?q={words}").json["found"]
            assert {brief["index"] for brief in found} == latents
        named = client.send(f"latents/{a}").json
        noted = client.send(f"latents/{b}").json
        read = client.send("text", {"text": TEXT}).json["latents"]
        explained = client.send("search", {"explained": "zoo keepers"}).json["found"]
    (row,) = saekit.features(run, made.store, index=[a])
    assert named["brief"]["label"] == row.label == "Zoo Keepers" == explained[0]["label"]
    assert named["brief"]["automatic"] == first.label
    assert named["own_note"] is None and noted["own_note"] == "ask the zookeeper"
    assert noted["brief"]["label"] == noted["brief"]["automatic"] == second.label
    assert all(x["label"] == x["automatic"] for n, x in read.items() if n != str(a))
