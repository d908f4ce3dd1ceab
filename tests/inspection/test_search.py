"""Search against the whole code matrix: latents with planted rows come first, and their figures are
those counted from the matrix or given by scikit-learn."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command import saekit as command
from made_language import made_language
from made_search import (
    BEGIN,
    CONTEXTS,
    DEAD,
    DENSE,
    LABEL,
    LATENTS,
    OFTEN,
    ON,
    PART,
    ROWS,
    TOKENS,
    WEAK,
    WORD,
    made_search,
)
from sklearn.metrics import mutual_info_score, roc_auc_score

import saekit
import saekit.inspection.query
from saekit.errors import DataError, UsageError, opt
from saekit.harvesting.models import FromFolder
from saekit.harvesting.sources import Document
from saekit.indexing.association import information, label_figures, token_figures
from saekit.inspection.beyond_top import together
from saekit.inspection.feature_rows import FIRST, FeatureRows
from saekit.inspection.inputs import input_models, input_rows
from saekit.inspection.on_input import OnInput, Place
from saekit.inspection.questions import QUESTIONS
from saekit.inspection.questions.asked import Answer
from saekit.inspection.questions.inputs import on_first_token
from saekit.inspection.search import Ranking
from saekit.inspection.tokens import token_texts
from saekit.options import options_of


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return made_search(tmp_path_factory.mktemp("search"))


def in_memory(run):
    """The model as one that was trained without a folder."""
    model = saekit.load(run)
    model.origin = None
    return model


def entropy(share: float) -> float:
    return -share * np.log(share) - (1 - share) * np.log(1 - share)


def test_a_token_leads_to_the_latents_that_tell_it_best(made):
    run, store, z, word, _ = made
    on = word == WORD
    rows = saekit.features(run, store, token=f"w{WORD}", top=100)
    assert [row.index for row in rows[:3]] == [ON, WEAK, OFTEN]
    active = z != 0
    for row in rows:
        j, figures = row.index, row.figures
        assert row.source == "index" and row.act == z[on, j].max() and row.max == z[:, j].max()
        assert row.density == active[:, j].mean()
        assert figures["mean"] == z[on, j].mean() and figures["share"] == active[on, j].mean()
        lift = active[on, j].mean() / active[:, j].mean()
        assert figures["lift"] == pytest.approx(lift, rel=1e-12) and lift > 1
        told = mutual_info_score(active[:, j], on) / entropy(on.mean())
        assert figures["information"] == pytest.approx(told, rel=1e-9)
    told = [row.figures["information"] for row in rows]
    assert told == sorted(told, reverse=True) and told[0] == pytest.approx(1)
    # what chance reaches: planted latents are far above, the others about there
    chance = rows[0].figures["chance"]
    assert told[2] > 4 * chance and all(value < 2 * chance for value in told[3:])
    assert {token.strip() for token in rows[0].tokens} == {f"w{WORD}"}


@pytest.mark.parametrize("by", ["mean", "share", "lift"])
def test_a_token_by_other_figures(made, by):
    run, store, *_ = made
    rows = saekit.features(run, store, token=f"w{WORD}", by=by, top=100)
    values = [row.figures[by] for row in rows]
    assert values == sorted(values, reverse=True)
    assert {row.index for row in rows} >= {ON, WEAK, OFTEN} and DEAD not in {r.index for r in rows}


def test_information_of_tables_worked_out_by_hand():
    # of 8 places 2 are of the kind: decides it, independent of it, excludes it, all, none
    both, active = np.array([2, 1, 0, 2, 0]), np.array([2, 4, 4, 8, 0])
    found = information(both, active, 2, 8)
    assert found[0] == pytest.approx(1) and found[1] == pytest.approx(0, abs=1e-12)
    excluded = mutual_info_score([0, 0, 0, 0, 0, 0, 1, 1], [1, 1, 1, 1, 0, 0, 0, 0]) / entropy(
        1 / 4
    )
    assert found[2] == pytest.approx(-excluded) and (np.abs(found[3:]) < 1e-12).all()
    assert not information(np.array([8]), np.array([8]), 8, 8).any()


def test_a_label_leads_to_the_latents_that_tell_its_contexts(made):
    run, store, z, _, label = made
    largest = z.reshape(CONTEXTS, TOKENS, LATENTS).max(1)
    index = saekit.open_index(run, store)
    figures = label_figures(index, index.origin.labels.index("cat"))
    cat = label == "cat"
    for j in range(LATENTS):
        active = largest[:, j] > 0
        sign = -1 if active[cat].mean() < active.mean() else 1
        told = sign * mutual_info_score(active, cat) / entropy(cat.mean())
        assert figures.information[j] == pytest.approx(told, rel=1e-9, abs=1e-12)
        assert figures.auroc[j] == pytest.approx(roc_auc_score(cat, largest[:, j]), rel=1e-12)
        assert figures.both[j] == active[cat].sum() and figures.share[j] == active[cat].mean()
    rows = saekit.features(run, store, label="cat", top=100)
    assert [row.index for row in rows[:2]] == [LABEL, PART]
    assert rows[1].figures["information"] > figures.chance > 0
    assert all(row.figures["information"] < 2 * figures.chance for row in rows[2:])
    assert 0.5 < figures.auroc_chance < 0.75 < figures.auroc[LABEL]
    by_area = saekit.features(run, store, label="cat", by="auroc", top=100)
    areas = [row.figures["auroc"] for row in by_area]
    assert areas == sorted(areas, reverse=True) and by_area[0].index == LABEL
    assert by_area[0].act == largest[cat, LABEL].max()


def test_chance_is_that_of_the_best_latent_on_moved_rows(made):
    run, store, z, word, _ = made
    index = saekit.open_index(run, store)
    rows = np.flatnonzero(word == WORD)
    active, best = z != 0, []
    for shift in np.random.default_rng(5).integers(1, ROWS, 4).tolist():
        moved = np.zeros(ROWS, bool)
        moved[(rows + shift) % ROWS] = True
        told = [
            mutual_info_score(active[:, j], moved) / entropy(moved.mean())
            for j in range(LATENTS)
            if active[moved, j].mean() >= active[:, j].mean()
        ]
        best.append(max(told))
    assert token_figures(index, rows, seed=5).chance == pytest.approx(max(best), rel=1e-9)


def test_near_latents_by_what_they_do(made):
    run, store, z, _, _ = made
    rows = saekit.features(run, store, near=ON, by="coactivation", top=100)
    assert rows[0].index == WEAK and ON not in [row.index for row in rows]
    norms = np.linalg.norm(z, axis=0)
    for row in rows:
        cosine = z[:, ON] @ z[:, row.index] / (norms[ON] * norms[row.index])
        assert row.figures["cosine"] == pytest.approx(cosine, rel=1e-12)
        assert row.figures["together"] == ((z[:, ON] > 0) & (z[:, row.index] > 0)).sum()
        assert row.act == z[:, row.index].max()
    jaccard = [row.figures["jaccard"] for row in rows]
    assert jaccard == sorted(jaccard, reverse=True)
    # the order and the figures of the page
    page = together(saekit.open_index(run, store), ON)["coactivation"]
    names = ("jaccard", "together", "pmi")
    assert [[near["index"], *(near[n] for n in names)] for near in page] == [
        [row.index, *(row.figures[n] for n in names)] for row in rows[: len(page)]
    ]


def test_filters(made):
    run, store, z, *_ = made
    density = (z != 0).mean(0)
    ask = lambda **filters: [
        row.index for row in saekit.features(run, store, sort="score", top=100, **filters)
    ]
    every = ask()
    assert {ON, DENSE, BEGIN} <= set(every)
    assert ask(max_density=0.1) == [j for j in every if density[j] <= 0.1]
    assert ask(min_density=0.1) == [j for j in every if density[j] >= 0.1]
    assert ask(not_bos=True) == [j for j in every if j != BEGIN]
    on = saekit.features(run, store, token=f"w{WORD}", max_density=0.02, top=100)
    assert [r.index for r in on][:1] == [WEAK] and all(r.density <= 0.02 for r in on)


def test_every_question_has_its_option_and_its_orders():
    options = options_of(saekit.inspection.query.features)
    assert set(QUESTIONS) - {""} <= set(options)
    orders = {order for question in QUESTIONS.values() for order in question.orders}
    assert orders == set(options["by"].choices)
    with pytest.raises(UsageError) as error:
        saekit.features("run", "store")
    assert all(opt(name) in error.value.cause for name in QUESTIONS if name)


def test_what_cannot_be_asked(made):
    run, store, *_ = made
    refusals = [
        (UsageError, "exactly one of", {"token": "w1", "label": "cat"}),
        (UsageError, "exactly one of", {}),
        (UsageError, "index=1 names the latents", {"index": 1, "not_bos": True}),
        (UsageError, 'by="auroc" does not go with token', {"token": "w1", "by": "auroc"}),
        (UsageError, "versus contrasts", {"token": "w1", "versus": "x"}),
        (UsageError, "min_density=2 must be between", {"token": "w1", "min_density": 2}),
        (DataError, "no row of the store is on the token 'W1'", {"token": "W1"}),
        (DataError, "no row of the store is on the token 'w999'", {"token": "w999"}),
        (DataError, "the data have no such label", {"label": "cats"}),
        (DataError, "feature 24: this model has 24", {"near": 24}),
        (DataError, f"feature {DEAD} never fired", {"near": DEAD}),
    ]
    hints = {}
    for kind, words, question in refusals:
        with pytest.raises(kind, match=words) as error:
            saekit.features(run, store, **question)
        hints[words] = error.value.hint
    assert hints["no row of the store is on the token 'W1'"].startswith('token="w1"')
    assert hints["the data have no such label"].startswith("did you mean cat?")


def test_without_an_index_it_is_made(made, tmp_path):
    run, store, *_ = made
    bare = Path(shutil.copytree(run, tmp_path / "bare", ignore=shutil.ignore_patterns("index")))
    for checkpoint, source in ((bare, "index"), (in_memory(run), "temporary")):
        for question in ({"token": "w1"}, {"label": "cat"}, {"near": ON, "by": "coactivation"}):
            rows = saekit.features(checkpoint, store, **question)
            assert rows and {row.source for row in rows} == {source}
            expected = saekit.features(run, store, **question)
            assert [replace(row, source="index") for row in rows] == expected
    rows = saekit.features(in_memory(run), store, sort="score", not_bos=True)
    assert rows == [replace(r, source="temporary") for r in saekit.features(
        run, store, sort="score", not_bos=True)]  # fmt: skip
    assert saekit.open_index(bare, store).rows == saekit.open_index(run, store).rows


def test_a_dense_code_is_not_asked_where_it_is_active(made, tmp_path):
    _, store, *_ = made
    saekit.train(store, tmp_path / "pca", model="pca", latents=4)
    for question in ({"token": "w1"}, {"label": "cat"}, {"near": 1, "by": "coactivation"}):
        with pytest.raises(DataError, match=r"the code of .*pca is dense"):
            saekit.features(tmp_path / "pca", store, **question)
    assert len(saekit.features(tmp_path / "pca", store, near=1)) == 3
    assert saekit.open_index(tmp_path / "pca", store).dense


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return made_language(tmp_path_factory.mktemp("language"))


def test_a_text_is_answered_by_the_share_of_each_latents_own_maximum(language):
    run, store = language.run, language.store
    ask = lambda **question: saekit.features(run, store, top=64, text="cat sat", **question)
    by_act = ask(sort="act")  # makes the index
    index = saekit.open_index(run, store)
    weighed = {
        row.index: abs(row.act) / index.max[row.index] * n / (n + 20)
        for row in by_act
        if (n := index.active[row.index]) >= 0
    }
    rows = ask()
    assert rows.by == "share" and [row.index for row in rows] == sorted(
        weighed, key=lambda j: -weighed[j]
    )
    assert [r.index for r in rows] != [r.index for r in ask(sort="act")]
    for row in rows:
        assert row.share_of_max == pytest.approx(abs(row.act) / row.max, rel=1e-12)
    for question in ({"by": "share"}, {"sort": "share"}, {"sort": "share", "by": "share"}):
        assert ask(**question) == rows
    assert ask(sort="act") == ask(by="max") == ask(by="max", sort="act")
    # of differences
    other = ask(versus="the dog")
    least = {r.index: r.figures["difference"] / r.max for r in other}
    counted = {j: share * index.active[j] / (index.active[j] + 20) for j, share in least.items()}
    assert list(counted.values()) == sorted(counted.values(), reverse=True)
    for question in ({"sort": "share", "by": "max"}, {"sort": "act", "by": "share"}):
        with pytest.raises(UsageError, match="are two orders"):
            ask(**question)
    with pytest.raises(UsageError, match='sort="share" orders what a text or an image activates'):
        saekit.features(run, store, token="cat", sort="share")


def test_latents_of_the_first_token_are_told(language):
    places = [Place(at, [7, 8, 9], None) for at in (1, 2)]  # the BOS is not in the store
    read = OnInput(torch.ones(6), torch.tensor([0, 0, 0, 1, 0, 0]), torch.ones(6), places)
    answer = Answer(Ranking(np.arange(6)), read)
    assert "not_bos" in on_first_token(answer, [0, 1, 2], False)
    assert on_first_token(answer, [0, 1, 2], True) == ""
    assert on_first_token(answer, [0, 1], False) == on_first_token(answer, [0, 1, 3], False) == ""
    one = Answer(answer.ranking, OnInput(read.largest, read.place, read.mean, places[:1]))
    assert on_first_token(one, [0, 1, 2], False) == ""  # there is no other
    rows = saekit.features(language.run, language.store, text="cat sat", top=2)
    assert FeatureRows(rows, note="a warning").__repr__().splitlines()[-1] == "a warning"


def test_rows_are_one_line_each_in_python(language):
    rows = saekit.features(language.run, language.store, text="cat sat", top=5)
    rows = FeatureRows(
        [replace(row, at="\n   ", label="two\nlines", raises="\n") for row in rows], quoted=True
    )
    header, *lines = repr(rows).splitlines()
    assert len(lines) == 5 and all(repr("\n   ") in line and "two lines" in line for line in lines)
    names = header.split()
    assert names[:8] == list(FIRST) and "source" not in names
    frame = rows.to_pandas()
    assert set(frame["at"]) == {"\n   "} and set(frame["source"]) == {"index"}


def test_text_by_maximum_mean_and_contrast(language, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    run, store = language.run, language.store
    ask = lambda **question: saekit.features(run, store, top=64, **question)
    largest = {row.index: row.act for row in ask(text="cat sat")}
    by_act = [abs(row.act) for row in ask(text="cat sat", sort="act")]
    assert by_act == sorted(map(abs, largest.values()), reverse=True)
    mean = ask(text="cat sat", by="mean")
    assert {row.index for row in mean} == set(largest)
    means = [row.figures["mean"] for row in mean]
    assert means == sorted(means, reverse=True) and all(
        0 < m < largest[r.index] for r, m in zip(mean, means) if m < largest[r.index]
    )
    other = {row.index: row.act for row in ask(text="the dog")}
    contrast = ask(text="cat sat", versus="the dog")
    expected = {j: a - other.get(j, 0.0) for j, a in largest.items() if a > other.get(j, 0.0)}
    assert {row.index for row in contrast} == set(expected)
    for row in contrast:
        assert row.figures["difference"] == pytest.approx(expected[row.index], rel=1e-6)
        assert row.figures["versus"] == pytest.approx(other.get(row.index, 0.0), rel=1e-6)
    by_size = ask(text="cat sat", versus="the dog", by="max")
    steps = [row.figures["difference"] for row in by_size]
    assert steps == sorted(steps, reverse=True) and len(by_size) == len(contrast)
    assert {row.source for row in contrast} == {"index"}
    # as a table
    status, out, err = command(
        capsys, "features", run, "--store", store, "--text", "cat sat", "--versus", "the dog", "-q"
    )
    assert status == 0, err
    assert out.splitlines()[0].split()[:9] == [
        "feature", "act", "at", "max", "of", "max", "density", "difference", "versus",
    ]  # fmt: skip
    status, out, _ = command(capsys, "features", run, "--store", store, "--token", "cat", "-q")
    assert status == 0 and any(line.startswith("chance 0.") for line in out.splitlines())


def test_where_in_a_text_the_largest_value_is(language):
    run, store = language.run, language.store
    text = "the cat sat on the mat"
    spec, sae = saekit.open_store(store).spec, saekit.load(run)
    models = input_models([spec], None, FromFolder(str(Path(store) / "tokenizer")))
    (given,) = input_rows(Document(0, "input", text), [spec], models)
    code_BF = sae.encode(given.x_BD).to_dense()
    texts = token_texts(saekit.open_store(store))(given.token_ids)
    rows = saekit.features(run, store, text=text, top=64)
    assert len({row.at for row in rows}) > 1
    for row in rows:
        first = int((code_BF[:, row.index] == row.act).nonzero()[0])
        assert row.at == texts[given.positions[first]], row
    assert {row.at for row in saekit.features(run, store, sort="score")} == {None}


def test_figures_do_not_depend_on_where_the_index_is(language, tmp_path):
    store = language.store
    saekit.train(store, tmp_path / "run", latents=64, k=4, batch=128, rows=1280)
    model = in_memory(tmp_path / "run")
    near = saekit.features(tmp_path / "run", store, text="cat")[0].index
    questions = [{"text": "cat sat on"}, {"sort": "score"}, {"text": "dog", "sort": "score"}]
    questions += [{"near": near, "by": by} for by in ("decoder", "encoder")]
    questions += [{"index": near}, {"index": (near, 5)}]
    for question in questions:
        rows = saekit.features(tmp_path / "run", store, **question)
        assert rows and {row.source for row in rows} == {"index"}
        if "text" not in question:  # the store's tokenizer is not known to a model in memory
            alone = saekit.features(model, store, **question)
            assert {row.source for row in alone} == {"temporary"}
            assert [replace(row, source="index") for row in alone] == rows
    cosine = torch.cosine_similarity(model.W_dec[near], model.W_dec).detach()
    for row in saekit.features(tmp_path / "run", store, near=near):
        assert row.figures["cosine"] == pytest.approx(float(cosine[row.index]), abs=1e-6)


def test_latents_are_described_with_label_and_score(language, capsys):
    run, store = language.run, language.store
    best = saekit.features(run, store, sort="score", top=3)
    assert best[0].label and best[0].score > 0
    for row in best:
        (own,) = saekit.features(run, store, index=row.index)
        assert own == row
    asked = (best[2].index, best[0].index)
    assert saekit.features(run, store, index=asked) == [best[2], best[0]]
    assert saekit.features(run, store, index=asked, sort="score") == [best[0], best[2]]
    numbers = ",".join(map(str, asked))
    status, out, err = command(capsys, "features", run, "--store", store, "--index", numbers, "-q")
    assert status == 0, err
    header, *lines = out.splitlines()
    assert "score" in header and "label" in header and len(lines) >= 2
    assert all(f"{row.score:.2f}" in out and row.label in out for row in (best[0], best[2]))
