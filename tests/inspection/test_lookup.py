"""What a page knows of all latents: counts as in the codes, the latents that `features` names
first, and a bounded size."""

from __future__ import annotations

import base64
import gzip
import json

import numpy as np
import pytest
import torch
from made_codes import planted
from safetensors.torch import load_file, save_file

import saekit
from saekit.inspection import lookup as lookups
from saekit.inspection.gather import meanings_of
from saekit.inspection.lookup import lookup_of
from saekit.inspection.opening import open_pair
from saekit.inspection.word_pairs import WordTable

ROWS, LATENTS, CONTEXT = 960, 60, 16
WORDS = [f"w{n}" for n in range(24)]
LABELS = ["cat", "dog", "owl", "bee"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(run, store, codes, tokens, labels of contexts, decoder rows)"""
    folder = tmp_path_factory.mktemp("lookup")
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, len(WORDS), ROWS)
    labels = rng.permutation(np.arange(ROWS // CONTEXT) // 2 % len(LABELS))
    labels = labels.reshape(-1, 2)[:, :1].repeat(2, 1).ravel()  # two contexts are a document
    z = rng.integers(1, 80, (ROWS, LATENTS)) / 8 * (rng.random((ROWS, LATENTS)) < 0.04)
    for j in range(20):  # some have a token of their own
        z[:, j] += (tokens == j) * (rng.random(ROWS) < 0.7)
    z[:, -1] = 0
    names = [LABELS[n] for n in labels]
    pair = planted(
        folder, torch.from_numpy(z).float(), torch.from_numpy(tokens), CONTEXT, names, WORDS
    )
    weights = load_file(pair.run / "model.safetensors")
    weights["W_dec"] = torch.nn.functional.normalize(
        torch.randn(LATENTS, LATENTS, generator=torch.Generator().manual_seed(0)), dim=1
    )
    save_file(weights, pair.run / "model.safetensors")
    saekit.index(pair.run, pair.store)
    return pair.run, pair.store, z, tokens, labels, weights["W_dec"]


@pytest.fixture(scope="module")
def found(made):
    inspected = open_pair(made[0], made[1])
    words = meanings_of(inspected.store)
    return lookup_of(inspected.index, words, inspected.directions(), paged=[0, 1])


def pairs_of(table: WordTable) -> dict[tuple[str, int], int]:
    words = [table.words[word] for word in table.word_N.tolist()]
    return dict(zip(zip(words, table.latent_N.tolist()), table.both_N.tolist()))


def unpacked(packed: str):
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def test_counts_are_those_of_the_codes(made, found):
    _, _, z, tokens, labels, _ = made
    active = z > 0
    both = {
        (word, j): int((active[:, j] & (tokens == n)).sum())
        for n, word in enumerate(WORDS)
        for j in range(LATENTS)
    }
    kept = pairs_of(found.tokens)
    assert kept and all(count == both[pair] > 0 for pair, count in kept.items())
    assert found.tokens.active_F.tolist() == active.sum(0).tolist()
    assert found.tokens.places == ROWS
    # labels count contexts, each once
    in_context = active.reshape(-1, CONTEXT, LATENTS).any(1)
    kept = pairs_of(found.labels)
    assert kept and found.labels.places == ROWS // CONTEXT
    for (label, j), count in kept.items():
        assert count == in_context[labels == LABELS.index(label), j].sum() > 0


def test_the_best_latents_of_a_word_are_those_of_features(made, found):
    run, store, *_ = made
    for word in ("w3", "w19", "w23"):
        first = [row.index for row in saekit.features(run, store, token=word, top=20)]
        assert 10 <= len(first) <= lookups.BEST
        assert {(word, j) for j in first} <= pairs_of(found.tokens).keys()
    for label in LABELS:
        first = [row.index for row in saekit.features(run, store, label=label, top=50)]
        assert first and {(label, j) for j in first} <= pairs_of(found.labels).keys()


def test_a_latent_keeps_its_commonest_tokens(made, found):
    _, _, z, tokens, *_ = made
    kept = pairs_of(found.tokens)
    for j in (0, 7, 30):
        counts = np.bincount(tokens[z[:, j] > 0], minlength=len(WORDS))
        least = np.sort(counts)[-found.first_tokens]
        assert all((WORDS[n], j) in kept for n in np.flatnonzero(counts > least).tolist())
    assert not any(j == LATENTS - 1 for _, j in kept)  # never active


def test_nearest_rows_are_those_of_features_for_latents_without_a_page(made, found):
    run, store, *_ = made
    assert sorted(found.near) == list(range(2, LATENTS - 1))
    for j in (2, 40):
        rows = saekit.features(run, store, near=j, top=lookups.NEAREST)
        assert [near["index"] for near in found.near[j]] == [row.index for row in rows]


def test_files_hold_the_pairs_and_are_bounded(found, monkeypatch, made):
    packed = unpacked(found.files[0])
    word = packed["words"].index("w3")
    first = sum(packed["pairs"][:word])
    part = slice(first, first + packed["pairs"][word])
    latents = np.cumsum(packed["latent"][part]).tolist()
    own = {j: n for (text, j), n in pairs_of(found.tokens).items() if text == "w3"}
    assert dict(zip(latents, packed["both"][part])) == own
    assert found.bytes == sum(len(text) for text in found.files.values())
    # large dictionaries keep fewer tokens of a latent, and no nearest rows where these take long
    monkeypatch.setattr(lookups, "MOST_OF_LATENTS", 3 * LATENTS)
    monkeypatch.setattr(lookups, "NEAREST_WORK", 1e3)
    inspected = open_pair(made[0], made[1])
    words = meanings_of(inspected.store)
    small = lookup_of(inspected.index, words, inspected.directions(), paged=[])
    assert small.first_tokens == 3 and small.near is None and small.header()["near"] is False
    assert len(small.tokens.latent_N) < len(found.tokens.latent_N)
    assert lookup_of(inspected.index, None, None, paged=[]).files == {}
