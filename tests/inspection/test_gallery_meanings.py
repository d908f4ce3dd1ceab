"""The gallery of images: ten cards have ten meanings and no two the same picture."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from made_index import index_of_entries
from test_names import PATCHES, write_images

from saekit.inspection.gallery import gallery
from saekit.inspection.meanings import Meanings
from saekit.inspection.score import Meaning, Scores
from saekit.store.reader import open_store

IMAGES = 600
# of each kind as many images as said: label, name
KINDS = [
    ("country-flag", "flag", 200),
    ("face-hand", "yawning face", 100),
    ("face-smiling", "grinning face", 100),
    ("animal-bird", "green parrot", 100),
    ("tool", "green hammer", 100),
]
BEGIN = np.cumsum([0, *(kind[2] for kind in KINDS)])
FLAG, FACE, SMILE, BIRD, TOOL = range(5)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    names = [f"{name} #0" for _, name, count in KINDS for _ in range(count)]
    labels = [label for label, _, count in KINDS for _ in range(count)]
    path = write_images(tmp_path_factory.mktemp("meanings") / "store", names, labels)
    store = open_store(path)
    return Meanings(store, None), store


def shown(given, latents: list[tuple[str, str, list[int]]]) -> list[int]:
    """Of latents (kind, word, images that they are active on, strongest first), best first."""
    rows = np.concatenate([np.array(images) * PATCHES for _, _, images in latents])
    sizes = np.concatenate([np.linspace(2, 1, len(images)) for _, _, images in latents])
    owner = np.repeat(np.arange(len(latents)), [len(images) for _, _, images in latents])
    words, store = given
    with tempfile.TemporaryDirectory() as folder:
        index = index_of_entries(Path(folder) / "index", store, len(latents), rows, owner, sizes)
        meanings: list[Meaning | None] = [
            Meaning(kind, word, 20, 20, 1.0, 2.0) if kind else None for kind, word, _ in latents
        ]
        score = torch.linspace(1, 0.5, len(latents))
        found = gallery(range(len(latents)), index, Scores(score, meanings, words), None)
    return [card.index for card in found]


def of(kind: int, first: int, count: int = 30) -> list[int]:
    return list(range(BEGIN[kind] + first, BEGIN[kind] + first + count))


def test_a_label_and_a_name_of_the_same_images_have_one_card(words):
    latents = [
        ("label", "country-flag", of(FLAG, 0)),
        ("name", "flag", of(FLAG, 40)),
        ("name", "parrot", of(BIRD, 0)),
        ("label", "animal-bird", of(BIRD, 40)),
        ("label", "tool", of(TOOL, 0)),
    ]
    assert shown(words, [*latents, *fillers(6)])[:3] == [0, 2, 4]


def test_labels_that_begin_alike_have_one_card(words):
    latents = [
        ("label", "face-hand", of(FACE, 0)),
        ("label", "face-smiling", of(SMILE, 0)),
        ("label", "tool", of(TOOL, 0)),
    ]
    assert shown(words, [*latents, *fillers(8)])[:2] == [0, 2]


def test_names_that_share_few_images_have_a_card_each(words):
    # half of what is green is a bird: at least half of the rarer one's images would be too many
    latents = [("name", "hammer", of(TOOL, 0)), ("name", "flag", of(FLAG, 0))]
    assert shown(words, [*latents, *fillers(8)])[:2] == [0, 1]
    latents = [("name", "green", of(TOOL, 0)), ("name", "hammer", of(TOOL, 40))]
    assert shown(words, [*latents, *fillers(9)])[0] == 0
    assert 1 not in shown(words, [*latents, *fillers(9)])[:10]


def test_no_two_cards_begin_with_the_same_picture(words):
    # two images a document: 4 and 5 are of one
    same = [BEGIN[FLAG] + 4, *of(BIRD, 0)]
    latents = [
        ("label", "country-flag", [BEGIN[FLAG] + 5, *of(FLAG, 20)]),
        ("label", "animal-bird", same),
        ("label", "tool", of(TOOL, 0)),
    ]
    assert shown(words, [*latents, *fillers(8)])[:2] == [0, 2]
    # where there is nothing else, it follows
    assert shown(words, latents) == [0, 2, 1]


def test_one_without_a_label_comes_after_all_that_have_one(words):
    latents: list[tuple[str, str, list[int]]] = [
        ("", "", of(FLAG, 0)),  # the best scored
        ("label", "face-hand", of(FACE, 0)),
        ("label", "face-smiling", of(SMILE, 0)),  # begins like the one before
    ]
    assert shown(words, latents) == [1, 2, 0]
    assert 0 not in shown(words, [*latents, *fillers(10)])


def fillers(count: int) -> list[tuple[str, str, list[int]]]:
    """Of words that no image has, on pictures of their own."""
    return [("name", f"other{n}", of(FLAG, 100 + 8 * n, 8)) for n in range(count)]
