"""Which token a latent predicts, and in which order latents are steered."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from made_language import made_language

from saekit.errors import DataError
from saekit.harvesting.models import load_model
from saekit.inspection import next_token
from saekit.inspection.indexed import index_of
from saekit.inspection.next_token import common_next, next_token_latents, next_tokens, raised_by
from saekit.inspection.opening import open_pair
from saekit.store.reader import open_store


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return made_language(tmp_path_factory.mktemp("next-token"))


def test_the_common_token_is_that_after_most_of_the_rows():
    next_N = torch.tensor([7, 7, 5, -1, 7, 5])
    top_FR = torch.tensor([[0, 1, 4, 2], [2, 5, 3, 0], [3, -1, -1, -1]])
    token_F, share_F = common_next(next_N, top_FR)
    assert token_F.tolist() == [7, 5, -1]  # the last latent's one row ends its context
    assert share_F.tolist() == [0.75, 0.5, 1.0]


def test_the_score_is_in_standard_deviations_over_the_vocabulary():
    W_U_ND = torch.tensor([[3.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [-2.0, -1.0]])
    scores = raised_by(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), W_U_ND, torch.tensor([0, 1]))
    # logits 3, 0, -1, -2: mean 0, variance 14/3; 0, 2, 0, -2: mean 0, variance 8/3
    assert scores.tolist() == pytest.approx([3 / (14 / 3) ** 0.5, 2 / (8 / 3) ** 0.5])


def test_next_tokens_are_those_of_the_contexts(made):
    store = open_store(made.store)
    following = next_tokens(store).tolist()
    positions = store.column("position").tolist()
    for row, position in enumerate(positions):
        tokens = store.example_at(row)[0].tokens
        assert following[row] == (tokens[position + 1] if position + 1 < len(tokens) else -1)
    assert -1 in following


def test_latents_are_ordered_by_what_their_rows_and_weights_say(made, monkeypatch):
    monkeypatch.setattr(next_token, "STRONGEST", 3)
    monkeypatch.setattr(next_token, "MOST_DENSITY", 0.2)
    live_model, store = load_model(made.model), open_store(made.store)
    ordered = next_token_latents(made.run, made.store, live_model)
    index = index_of(open_pair(made.run, made.store), lambda _: None)
    following = next_tokens(store).tolist()
    expected = []
    W_dec_FD = open_pair(made.run, made.store).model.W_dec.detach()
    W_U_VD = live_model.module.lm_head.weight.detach()
    ids = sorted(set(live_model.tokenizer.get_vocab().values()))
    for latent in range(len(W_dec_FD)):
        rows = index.shown.top.of(latent)[0][:3]
        if len(rows) < 3 or index.active[latent] > 0.2 * len(store):
            continue
        ((token, count),) = Counter(following[row] for row in rows).most_common(1)
        if count >= 2 and token >= 0:
            logits = (W_U_VD[ids] @ W_dec_FD[latent]).double()
            score = (logits[ids.index(token)] - logits.mean()) / logits.std()
            expected.append((latent, token, count / 3, pytest.approx(float(score), abs=1e-4)))
    expected.sort(key=lambda entry: -entry[3].expected)
    assert len(expected) > 5
    assert [(e.latent, e.token, e.share, e.score) for e in ordered] == expected
    assert ordered[0].text == live_model.tokenizer.decode([ordered[0].token])


def test_images_have_no_next_token(digits, tmp_path):
    import saekit

    saekit.train(digits, tmp_path / "run", latents=8, k=2, rows=400, batch=100)
    with pytest.raises(DataError, match="text"):
        next_token_latents(tmp_path / "run", digits)
