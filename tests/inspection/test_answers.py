"""What a row of `features` says of its latent, which rows are no better than chance, and what is
said where there are none."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command import saekit as command
from made_language import made_language
from made_search import BEGIN, ON, WEAK, WORD, made_search
from transformers import AutoModelForCausalLM

import saekit
from saekit.errors import UsageError
from saekit.inspection import raised
from saekit.inspection.indexed import bytes_of_index
from saekit.inspection.opening import open_pair
from saekit.inspection.questions.label import _nearest
from saekit.inspection.tokens import token_texts
from saekit.store.files import folder_bytes

TOKEN = f"w{WORD}"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return made_search(tmp_path_factory.mktemp("answers"))


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)


def ask(capsys, run, store, *arguments):
    status, out, err = command(capsys, "features", run, "--store", store, *arguments)
    assert status == 0, err
    return out, err


def test_every_row_says_what_its_latent_is_and_who_says_so(made, tmp_path):
    run, store, *_ = made
    named = Path(shutil.copytree(run, tmp_path / "named"))
    names = {"names": [{"index": ON, "name": "the seventh word"}], "notes": []}
    (named / "names.json").write_text(json.dumps(names))
    told = [{"index": j, "description": f"told of {j}"} for j in (ON, WEAK)]
    (named / "explanations.jsonl").write_text("\n".join(map(json.dumps, told)))
    for question in ({"token": TOKEN}, {"label": "cat"}, {"near": BEGIN}):
        rows = saekit.features(run, store, top=100, **question)
        assert any(row.label for row in rows)
        for row in rows:
            (alone,) = saekit.features(run, store, index=row.index)
            assert (row.label, row.labeled_by) == (alone.label, alone.labeled_by)
            assert row.labeled_by == ("automatic" if row.label else None)
    own = {row.index: row for row in saekit.features(named, store, token=TOKEN, top=100)}
    assert (own[ON].label, own[ON].labeled_by) == ("the seventh word", "name")
    assert (own[WEAK].label, own[WEAK].labeled_by) == (f"told of {WEAK}", "explanation")
    (bare,) = saekit.features(run, store, index=ON)
    assert TOKEN in bare.label and bare.labeled_by == "automatic"


def test_what_is_no_better_than_chance_is_named_and_not_printed(made, capsys):
    run, store, *_ = made
    for question, orders in (("token", TOKEN), ["information"]), (
        ("label", "cat"), ["information", "auroc"],
    ):  # fmt: skip
        name, value = question
        rows = saekit.features(run, store, **{name: value}, top=100)
        chances = {"information": "chance", "auroc": "auroc_chance"}
        for row in rows:
            told = row.figures
            assert row.below_chance == [n for n in orders if told[n] <= told[chances[n]]]
        for order in orders:
            rows = saekit.features(run, store, **{name: value}, by=order, top=100)
            better = [row.index for row in rows if order not in row.below_chance]
            assert 0 < len(better) < len(rows)
            asked = (f"--{name}", value, "--by", order, "--top", 100)
            out, _ = ask(capsys, run, store, *asked, "-q")
            lines = out.splitlines()
            printed = [int(line.split()[0]) for line in lines if "%" in line]
            assert printed == better
            left_out = len(rows) - len(better)
            assert f"{left_out} of {len(rows)} latents not shown: no larger {order}" in out
            data = json.loads(ask(capsys, run, store, *asked, "--json")[0])
            assert [row["index"] for row in data] == [row.index for row in rows]


def test_other_orders_mark_what_chance_reaches(made, capsys):
    run, store, *_ = made
    rows = saekit.features(run, store, token=TOKEN, by="share", top=100)
    out, _ = ask(capsys, run, store, "--token", TOKEN, "--by", "share", "--top", 100, "-q")
    marked = [bool(re.search(r"\d\*", line)) for line in out.splitlines()[1 : len(rows) + 1]]
    assert marked == [bool(row.below_chance) for row in rows] and 0 < sum(marked) < len(rows)
    assert out.splitlines()[-1].startswith("* no larger")


def test_filters_that_leave_nothing_say_which_and_by_how_much(made, capsys):
    run, store, z, *_ = made
    among = [row.index for row in saekit.features(run, store, token=TOKEN, top=100)]
    density = (z != 0).mean(0)[among]
    rare, dense = density.min(), density.max()
    for question, name, nearest in (
        ({"max_density": rare / 2}, "max_density", rare),
        ({"min_density": dense * 1.2, "not_bos": True}, "min_density", dense),
    ):
        rows = saekit.features(run, store, token=TOKEN, **question)
        excluded = {"max_density": density > rare / 2, "min_density": density < dense * 1.2}[name]
        assert rows == [] and repr(rows) == rows.note
        assert f"of {len(among)} that answer, {name}=" in rows.note
        assert f"excludes {excluded.sum()}" in rows.note
        bound = float(re.search(rf"the nearest one passes {name}=(\S+)$", rows.note)[1])
        assert bound == pytest.approx(nearest, rel=0.01)
        (first, *_) = saekit.features(run, store, token=TOKEN, **{name: bound})
        assert first.density == nearest
    asked = ("--token", TOKEN, "--max-density", rare / 2)
    out, err = ask(capsys, run, store, *asked, "-q")
    assert out == "" and err.startswith("note    no latent is left") and "--max-density" in err
    assert json.loads(ask(capsys, run, store, *asked, "--json")[0]) == []
    with pytest.raises(UsageError, match=r"min_density=0.2 is above max_density=0.1"):
        saekit.features(run, store, token=TOKEN, min_density=0.2, max_density=0.1)


def test_labels_near_one_that_is_not_there():
    names = ["animal-mammal", "cat-face", "math", "Category", "flag"]
    assert _nearest("cat", names) == "did you mean cat-face, Category? "
    assert _nearest("cat-fcae", names) == "did you mean cat-face? "
    assert _nearest("zzz", names) == _nearest(" ", names) == ""


def test_an_index_is_announced_with_its_size_before_it_is_made(made, tmp_path, capsys):
    run, store, *_ = made
    bare = Path(shutil.copytree(run, tmp_path / "bare", ignore=shutil.ignore_patterns("index")))
    expected = bytes_of_index(open_pair(bare, store))
    out, err = ask(capsys, bare, store, "--token", TOKEN, "--json")
    assert len(json.loads(out)) > 0
    made_first, kept = [line for line in err.splitlines() if line.startswith("note")]
    folder = bare / "index"
    assert "made first: about" in made_first and str(folder) in made_first
    assert "is kept for the next time" in kept
    assert folder_bytes(next(folder.iterdir())) == pytest.approx(expected, rel=0.3)
    assert ask(capsys, bare, store, "--token", TOKEN, "--json") == (out, "")


def test_what_a_latent_raises(tmp_path, monkeypatch):
    language = made_language(tmp_path)
    run, store = language.run, language.store
    W_U_VD = AutoModelForCausalLM.from_pretrained(language.model).get_output_embeddings().weight
    texts, W_dec_FD = token_texts(saekit.open_store(store)), saekit.load(run).W_dec
    for chance, every in ((0.0, True), (np.inf, False)):
        monkeypatch.setattr(raised, "standing_out_by_chance", lambda _, c=chance: (c, c))
        rows = saekit.features(run, store, text="cat sat")
        for row in rows:
            logits_V = (W_dec_FD[row.index] @ W_U_VD.T).detach()
            best = int(logits_V[torch.tensor(texts.ids())].argmax())
            assert row.raises == (texts.alone(texts.ids()[best]) if every else None)
    monkeypatch.setattr(raised, "standing_out_by_chance", lambda _: (0.0, 0.0))
    (without,) = saekit.features(run, store, index=rows[0].index)
    (asked,) = saekit.features(run, store, index=rows[0].index, raises=True)
    assert without.raises is None and asked.raises is not None
    assert saekit.features(run, store, text="cat sat", raises=False)[0].raises is None
