"""How often all rows of a latent have the word of its automatic label, counted again by hand, and
the line of the page that has it beside the figure of the examples."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from made_codes import planted
from test_explorer_browser import text, texts

import saekit
from saekit.inspection import gather

CONTEXT, CONTEXTS = 16, 80
WORDS = ["w0", "Cat", "cat", *(f"w{n}" for n in range(3, 120))]
ON_WORD, ON_LABEL = 0, 1


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(tokens, labels of contexts, codes, page): the strongest rows of ON_WORD are on "cat" and
    "Cat", a third of the weaker ones are not; ON_LABEL fires in contexts of one label, seldom in
    others."""
    folder = tmp_path_factory.mktemp("word")
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, len(WORDS), CONTEXT * CONTEXTS)
    tokens[rng.random(len(tokens)) < 0.03] = 1
    labels = [("tale", "novel", "docs")[n] for n in rng.choice(3, CONTEXTS, p=[0.3, 0.3, 0.4])]
    of_label = np.repeat([label == "tale" for label in labels], CONTEXT)
    on = np.isin(tokens, (1, 2))
    z = np.zeros((len(tokens), 3))
    z[:, ON_WORD] = np.where(on, 5 + rng.random(len(on)), (rng.random(len(on)) < 0.03) * 1.0)
    chance = np.where(of_label, 0.15, 0.01)
    z[:, ON_LABEL] = (rng.random(len(on)) < chance) * (1 + rng.random(len(on)))
    z[:, 2] = rng.random(len(on)) < 0.1
    codes = torch.from_numpy(z).float()
    pair = planted(folder, codes, torch.from_numpy(tokens), CONTEXT, labels, WORDS, 1)
    with pytest.MonkeyPatch.context() as patch:
        # the store's model is none that could be looked for
        patch.setattr(gather, "output_head", lambda *_: (None, "there is no model"))
        saekit.inspect(pair.run, pair.store, folder / "page", jsonl=True)
    return tokens, labels, codes.numpy() > 0, folder / "page"


def record_of(page, latent: int) -> dict:
    lines = map(json.loads, (page / "features.jsonl").read_text().splitlines())
    return next(record for record in lines if record["index"] == latent)


def test_rows_of_a_word_are_counted_in_any_spelling(made):
    tokens, _, active, page = made
    record = record_of(page, ON_WORD)
    assert record["meaning"]["text"].casefold() == "cat" and record["meaning"]["kind"] == "token"
    is_cat = np.isin(tokens, (1, 2))
    rows = active[:, ON_WORD]
    assert record["word"]["count"] == (is_cat & rows).sum() < record["word"]["of"] == rows.sum()
    share = is_cat[rows].mean()
    assert record["word"]["lift"] == pytest.approx(share / is_cat.mean())
    # one base for both lifts
    own = record["meaning"]["count"] / record["meaning"]["of"]
    assert record["meaning"]["lift"] / record["word"]["lift"] == pytest.approx(own / share)


def test_a_label_is_counted_by_contexts(made):
    _, labels, active, page = made
    record = record_of(page, ON_LABEL)
    assert (record["meaning"]["kind"], record["meaning"]["text"]) == ("label", "tale")
    fires = active[:, ON_LABEL].reshape(CONTEXTS, CONTEXT).any(1)
    tales = np.array(labels) == "tale"
    assert record["word"]["count"] == (fires & tales).sum() < fires.sum() == record["word"]["of"]
    assert record["word"]["lift"] == pytest.approx(tales[fires].mean() / tales.mean())
    # as the labels of its contexts have it
    (entry,) = [e for e in record["data_labels"]["labels"] if e["label"] == "tale"]
    assert (entry["examples"], entry["lift"]) == (
        record["word"]["count"],
        pytest.approx(record["word"]["lift"]),
    )


def test_a_latent_without_a_label_has_no_word(made):
    *_, page = made
    record = record_of(page, 2)
    assert record["meaning"] is None and record["word"] is None


def digits(value: float, count: int) -> str:
    """As the page writes a figure that it has at four digits."""
    return f"{float(f'{value:.4g}'):#.{count}g}".removesuffix(".")


@pytest.mark.browser
@pytest.mark.parametrize(("latent", "unit"), [(ON_WORD, "rows"), (ON_LABEL, "contexts")])
def test_both_lifts_stand_in_one_line_and_say_of_what_they_are(tab, made, latent, unit):
    *_, page = made
    record = record_of(page, latent)
    tab.open(f"{(page / 'index.html').as_uri()}#/f/{latent}")
    tab.wait("document.getElementById('word-of-all')")
    meaning, word = record["meaning"], record["word"]
    line = texts(tab, "#automatic .of")
    examples = f"{meaning['count']} of {meaning['of']} examples, "
    assert line[0] == f"{examples}{digits(meaning['lift'], 2)} × chance"
    share, rest = line[1].split(" % of all its ")
    assert float(share) == float(f"{100 * word['count'] / word['of']:.3g}")
    assert rest == f"{unit}, {digits(word['lift'], 3)} × chance"
    tip = tab.evaluate("document.getElementById('word-of-all').dataset.about")
    assert f"{word['count']} of {word['of']}." in tip and "strongest" in tip
    assert text(tab, "#automatic .badge") == "automatic"
    assert tab.problems == []
