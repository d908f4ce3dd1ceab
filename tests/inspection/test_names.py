"""Images that are called "red heart #2": the words of their names are meanings of their rows, and a
latent of one word is found among latents of chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made_stores import make_spec

from saekit.inspection.meanings import NONE, Meanings
from saekit.inspection.scan import Scan, Triples
from saekit.inspection.score import NAMED_FROM, score_latents
from saekit.store.reader import open_store
from saekit.store.shards import StoredExample
from saekit.store.writer import RowBlock, StoreWriter

IMAGES, PATCHES = 600, 4
ROWS = IMAGES * PATCHES
THINGS = [f"{first}{last}" for first in ("lo", "mi", "nu", "pa", "ra") for last in ("bel", "dor")]
COLORS = ("red", "blue", "green")
WHEEL, NOISE = 0, range(1, 30)


def write_images(path, names, labels=None):
    writer = StoreWriter(
        path,
        make_spec(modality="image", context=None, grid=(2, 2)),
        {"rows": ROWS},
        shard_bytes=40_000,
    )
    for first in range(0, IMAGES, 100):
        images = range(first, first + 100)
        examples = [
            StoredExample(
                i, i // 2, at * PATCHES, PATCHES, None, names[i], labels[i] if labels else None
            )
            for at, i in enumerate(images)
        ]
        example = torch.tensor(list(images)).repeat_interleave(PATCHES)
        position = torch.arange(PATCHES).repeat(100).int()
        writer.append(
            RowBlock(torch.randn(len(example), 16), example // 2, example, position, examples)
        )
    writer.finish()
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """(names, meanings): a fifth of the names have a wheel, among other words."""
    rng = np.random.default_rng(0)
    names = [
        f"{rng.choice(COLORS)} {rng.choice(THINGS)}{', with Wheel' * (i % 5 == 0)}"
        f"{': medium-dark skin tone' * (i % 4 == 1)} #{i % 4}"
        for i in range(IMAGES)
    ]
    names[7], names[8] = "folder/wheel.png", "wheel 8"  # not numbered
    store = open_store(write_images(tmp_path_factory.mktemp("images") / "store", names))
    assert len(store.shards) > 1
    return names, Meanings(store, None)


def test_every_word_of_a_name_counts_once(images):
    names, meanings = images
    assert meanings.kinds == ("name",)
    words_NW = meanings(np.arange(ROWS))["name"]
    for row in range(0, ROWS, 7):
        said = {meanings.text(word) for word in words_NW[row] if word != NONE}
        name = names[row // PATCHES]
        if row // PATCHES in (7, 8):
            assert said == set()
        else:
            expected = set(name.split(" #")[0].replace(",", "").replace(":", "").lower().split())
            expected -= {"with", "medium-dark", "skin", "tone"}  # not Unicode's modifier
            assert said == expected
            assert (words_NW[row] != NONE).sum() == len(expected)


def test_a_latent_of_one_word_is_named_and_chance_is_not(images):
    names, meanings = images
    rng = np.random.default_rng(1)
    with_wheel = np.array(["Wheel" in name for name in names]).repeat(PATCHES)
    # one in ten of its rows has no wheel
    planted = np.concatenate(
        [
            rng.choice(np.flatnonzero(with_wheel), 36, False),
            rng.choice(np.flatnonzero(~with_wheel), 4, False),
        ]
    )
    rows_of = {WHEEL: planted} | {j: rng.choice(ROWS, 40, replace=False) for j in NOISE}
    row = np.concatenate(list(rows_of.values()))
    latent = np.repeat(list(rows_of), [len(rows) for rows in rows_of.values()])
    triples = Triples(
        torch.from_numpy(row),
        torch.from_numpy(latent),
        torch.from_numpy(rng.uniform(0.1, 1, len(row))).float(),
    )
    triples = triples.at(torch.argsort(triples.row, stable=True))
    scan = Scan(len(rows_of))
    scan.rows = ROWS
    scan.add(triples, triples.row // PATCHES, torch.Generator().manual_seed(0))
    scan.close()

    scores = score_latents(scan, meanings)
    found = scores.meanings[WHEEL]
    assert (found.kind, found.text) == ("name", "wheel")
    assert found.of - 4 <= found.count <= found.of < 40 + 1
    assert all(scores.meanings[j] is None for j in NOISE)
    # of the nine tenths that have the word, chance would have a fifth to two fifths
    assert NAMED_FROM < found.coherence < 1
