"""The score of latents whose meaning is planted in a store: what is coherent, rare and seen in many
documents comes first; the figures are those of the rows counted one by one."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch
from made_index import index_of_entries
from made_stores import make_spec
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from saekit.indexing.reader import Index
from saekit.inspection.gallery import gallery
from saekit.inspection.meanings import Meanings
from saekit.inspection.records import select_latents
from saekit.inspection.score import (
    DENSITIES,
    NAMED_FROM,
    Meaning,
    Scores,
    score_latents,
    shown_rows,
)
from saekit.inspection.tokens import TokenTexts
from saekit.store.reader import open_store
from saekit.store.shards import StoredExample
from saekit.store.writer import RowBlock, StoreWriter

CONTEXTS, TOKENS, VOCABULARY = 1000, 32, 400
ROWS = CONTEXTS * TOKENS
RARE, COMMON, LONELY = 41, 0, 399  # words
(ON, NOISE, BEFORE, AFTER, LABEL, ON_COMMON, LONE, DENSE, TOP_ONLY, DEAD, TWIN, OTHER) = range(12)
MORE_NOISE = range(12, 42)
LATENTS = 42
DOCUMENT = CONTEXTS // 2 - 10


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """(store, index, meanings, tokens (CONTEXTS,TOKENS)): latents with known rows."""
    rng = np.random.default_rng(0)
    share_V = 1 / np.arange(1, VOCABULARY + 1) ** 0.8
    share_V[LONELY] = 0
    tokens_CT = rng.choice(VOCABULARY, (CONTEXTS, TOKENS), p=share_V / share_V.sum())
    tokens_CT[2 * DOCUMENT : 2 * DOCUMENT + 2, 4:28] = LONELY
    folder = tmp_path_factory.mktemp("planted")
    store = open_store(write_planted(folder / "store", tokens_CT))
    words = [f" word{n}" for n in range(VOCABULARY)]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({w: n for n, w in enumerate(words)}, words[0]))
    )
    index = planted_index(folder / "index", store, tokens_CT, rng)
    return store, index, Meanings(store, TokenTexts(tokenizer)), tokens_CT


def write_planted(path, tokens_CT):
    """Two contexts a document, ten labels."""
    writer = StoreWriter(path, make_spec(context=TOKENS), {"rows": ROWS}, shard_bytes=200_000)
    for first in range(0, CONTEXTS, 50):
        contexts = range(first, first + 50)
        examples = [
            StoredExample(
                c, c // 2, at * TOKENS, TOKENS, ids, f"document {c // 2}", str(c // 2 % 10)
            )
            for at, (c, ids) in enumerate(zip(contexts, tokens_CT[first : first + 50].tolist()))
        ]
        example = torch.tensor(list(contexts)).repeat_interleave(TOKENS)
        x = torch.randn(len(example), 16)
        position = torch.arange(TOKENS).repeat(50).int()
        writer.append(RowBlock(x, example // 2, example, position, examples))
    writer.finish()
    return path


def planted_index(folder, store, tokens_CT, rng) -> Index:
    word = tokens_CT.ravel()
    row = np.arange(ROWS)
    position, label = row % TOKENS, row // TOKENS // 2 % 10
    random_rows = lambda n: rng.choice(ROWS, n, replace=False)
    after = row[(word == RARE) & (position < TOKENS - 1)] + 1
    before = row[(word == RARE) & (position > 0)] - 1
    in_label = rng.permutation(row[label == 3])[:150]
    rows_of = {
        ON: row[word == RARE],
        NOISE: random_rows(120),
        BEFORE: before,
        AFTER: after,
        LABEL: in_label,
        ON_COMMON: rng.permutation(row[word == COMMON])[:200],
        LONE: row[word == LONELY],
        DENSE: rng.permutation(row[label == 5])[: int(0.04 * ROWS)],
        TOP_ONLY: np.concatenate([row[word == RARE + 1][:25], random_rows(60)]),
        TWIN: row[word == RARE],
        OTHER: row[word == RARE + 2],
    }
    rows_of |= {j: random_rows(120) for j in MORE_NOISE}
    sizes = {j: values(j, len(rows), rng) for j, rows in rows_of.items()}
    sizes[TWIN] = 0.9 * sizes[ON]
    latent = np.repeat(list(rows_of), [len(rows) for rows in rows_of.values()])
    rows, sizes = (np.concatenate([of[j] for j in rows_of]) for of in (rows_of, sizes))
    return index_of_entries(folder, store, LATENTS, rows, latent, sizes)


def values(latent: int, n: int, rng) -> np.ndarray:
    size = rng.uniform(0.1, 1.0, n)
    if latent == TOP_ONLY:  # a meaning at the top, none below
        size[:25], size[25:] = rng.uniform(0.8, 1, 25), rng.uniform(0.1, 0.7, n - 25)
    return size.astype(np.float32)


def test_planted_meanings_are_found_and_noise_is_not(planted):
    _, index, meanings, _ = planted
    scores = score_latents(index, meanings)
    found = {j: scores.meanings[j] for j in range(LATENTS)}
    for latent, kind in ((ON, "token"), (BEFORE, "next"), (AFTER, "previous")):
        assert (found[latent].kind, found[latent].text) == (kind, f" word{RARE}")
        assert found[latent].count == found[latent].of and found[latent].coherence == pytest.approx(
            1
        )
        assert scores.of(latent) > 0.6
    assert (found[LABEL].kind, found[LABEL].text, found[LABEL].coherence) == ("label", "3", 1)
    # one of ten labels: half way between 1 % and all
    assert scores.of(LABEL) == pytest.approx(0.5) and found[LABEL].lift == pytest.approx(10)
    share = (planted[3] == RARE).mean()
    assert found[ON].lift == pytest.approx(1 / share)
    noise = [scores.of(j) for j in (NOISE, *MORE_NOISE)]
    assert all(found[j] is None for j in (NOISE, *MORE_NOISE))
    assert float(np.median(noise)) < 0.03 and max(noise) < NAMED_FROM
    assert found[DEAD] is None and scores.of(DEAD) is None
    assert scores.order().tolist()[-1] not in (ON, BEFORE, AFTER, LABEL)


def test_common_words_single_documents_and_dense_latents_come_later(planted):
    _, index, meanings, _ = planted
    scores = score_latents(index, meanings)
    # one meaning, but of a word that every text has
    for latent, word in ((ON_COMMON, COMMON), (ON, RARE)):
        specificity = np.clip((-1 - np.log10((planted[3] == word).mean())) / 2, 0, 1)
        assert scores.of(latent) == pytest.approx(specificity, abs=1e-3)
    assert scores.of(ON_COMMON) < 0.5 * scores.of(ON)
    # one document of the ten that are asked for
    assert scores.meanings[LONE].coherence == pytest.approx(1)
    specificity = (-1 - np.log10((planted[3] == LONELY).mean())) / 2
    assert scores.of(LONE) == pytest.approx(0.1 * specificity)
    # far above 1 %: the density by itself costs what the formula says
    density = float(index.density[DENSE])
    assert density == 4 * DENSITIES[1]
    assert scores.of(DENSE) == pytest.approx((1 - np.log10(4)) / 2)


def test_a_meaning_only_at_the_top_counts_half(planted):
    """Counted row by row, with other shuffles."""
    _, index, meanings, tokens_CT = planted
    alive = np.flatnonzero(index.active > 0)
    rows_AN, weight_AN = shown_rows(index, alive)
    place = alive.tolist().index(TOP_ONLY)
    word = tokens_CT.ravel()
    shares = Counter()
    for row, weight in zip(rows_AN[place], weight_AN[place]):
        if row >= 0:
            shares[word[row]] += float(weight)
    share = shares[RARE + 1]
    pool = [int(word[row]) for row in rows_AN.ravel() if row >= 0]
    random.seed(7)
    drawn = []
    for _ in range(300):
        by_chance = Counter()
        for row, weight in zip(rows_AN[place], weight_AN[place]):
            if row >= 0:
                by_chance[random.choice(pool)] += float(weight)
        drawn.append(max(by_chance.values()))
    # s0 is the largest of four such draws
    most, least = ((share - c) / (1 - c) for c in (np.median(drawn), max(drawn)))
    meaning = score_latents(index, meanings).meanings[TOP_ONLY]
    assert least <= meaning.coherence <= most
    assert NAMED_FROM < meaning.coherence < 0.7


def test_shown_rows_are_the_strongest_and_a_sample_of_each_fifth(planted):
    _, index, _, _ = planted
    rows_AN, weight_AN = shown_rows(index, np.array([ON, LABEL]))
    for j, rows, weights in zip((ON, LABEL), rows_AN, weight_AN):
        top = index.shown.top.of(j)[0][:20]
        assert rows[:20].tolist() == top
        known = dict(zip(*index.shown.sample.of(j)))
        others = [row for row in rows[20:].tolist() if row >= 0]
        assert not set(others) & set(top) and len(set(others)) == len(others)
        fifths = Counter(min(4, int(known[row] / float(index.max[j]) * 5)) for row in others)
        assert max(fifths.values()) <= 5
        assert weights[:20].sum() == pytest.approx(0.5) and weights.sum() == pytest.approx(1)
        for fifth in fifths:
            inside = [
                w
                for row, w in zip(rows[20:].tolist(), weights[20:].tolist())
                if row >= 0 and min(4, int(known[row] / float(index.max[j]) * 5)) == fifth
            ]
            assert sum(inside) == pytest.approx(0.5 / len(fifths), rel=1e-4)


def test_the_gallery_folds_near_duplicates_and_shows_a_meaning_once(planted):
    _, index, meanings, _ = planted
    scores = score_latents(index, meanings)
    directions = torch.eye(LATENTS)
    shown = gallery(range(LATENTS), index, scores, directions)
    indices = [s.index for s in shown]
    first, second = sorted((ON, TWIN), key=lambda j: (-scores.of(j), -float(index.max[j])))
    assert DEAD not in indices and OTHER in indices
    # the same rows: folded, whatever their directions are
    assert second not in indices and shown[indices.index(first)].twins == [second]
    # the same direction is enough as well
    directions[OTHER] = 0.9 * directions[LABEL] + 0.1 * directions[OTHER]
    shown = {s.index: s.twins for s in gallery(range(LATENTS), index, scores, directions)}
    better, worse = sorted((OTHER, LABEL), key=lambda j: -scores.of(j))
    assert worse in shown[better] and worse not in shown
    # only features that the page has
    assert [s.index for s in gallery([NOISE, DEAD], index, scores, None)] == [NOISE]


def test_interesting_selects_by_score_and_mixes_with_numbers(planted):
    _, index, meanings, _ = planted
    scores = score_latents(index, meanings)
    three = select_latents("interesting:3", index, scores)
    varied = scores.varied()
    best = sorted((float(varied[j]) for j in range(LATENTS) if j != DEAD), reverse=True)
    assert [float(varied[j]) for j in three.tolist()] == best[:3]
    every = select_latents("interesting:100", index, scores).tolist()
    assert sorted(every) == [j for j in range(LATENTS) if j != DEAD]
    mixed = select_latents(f"{NOISE},interesting:1,{NOISE}", index, scores)
    assert mixed.tolist() == [NOISE, int(three[0])]


def test_interesting_takes_the_first_of_each_word_before_its_second(planted):
    index, rest = planted[1], LATENTS - 6
    on = lambda word: Meaning("token", word, 20, 20, 1.0)
    meanings = [on(" how"), on("How"), on(" must"), None, on(" how"), None, *[None] * rest]
    filled = lambda *scores: torch.tensor([*scores, *[torch.nan] * rest])
    scores = Scores(filled(0.9, 0.8, 0.5, 0.46, 0.6, 0.44), meanings)
    expected = filled(0.9, 0.4, 0.5, 0.46, 0.2, 0.22)
    torch.testing.assert_close(scores.varied(), expected, equal_nan=True)
    assert select_latents("interesting:4", index, scores).tolist() == [0, 2, 3, 1]


def test_data_without_words_have_no_score(planted):
    _, index, _, _ = planted
    store = planted[0]
    bare = Meanings(store, None)
    bare.kinds = ()
    scores = score_latents(index, bare)
    assert scores.score.isnan().all() and scores.meanings == [None] * LATENTS
    largest = gallery(range(LATENTS), index, scores, None)[0].index
    assert largest == int(index.max.argmax())
