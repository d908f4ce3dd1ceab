"""The gallery of images: ten cards have ten meanings and no two the same picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_names import PATCHES, write_images

from saekit.inspection.gallery import gallery
from saekit.inspection.meanings import Meanings
from saekit.inspection.scan import Scan, Triples
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
    return Meanings(open_store(path), None)


def shown(words, latents: list[tuple[str, str, list[int]]]) -> list[int]:
    """Of latents (kind, word, images that they are active on, strongest first), best first."""
    triples = []
    for j, (_, _, images) in enumerate(latents):
        rows = torch.tensor(images) * PATCHES
        sizes = torch.linspace(2, 1, len(images))
        triples.append(Triples(rows, torch.full((len(images),), j), sizes))
    together = triples[0]
    for more in triples[1:]:
        together = together.followed_by(more)
    scan = Scan(len(latents))
    scan.rows = IMAGES * PATCHES
    together = together.at(torch.argsort(together.row, stable=True))
    scan.add(together, together.row // PATCHES, torch.Generator().manual_seed(0))
    scan.close()
    meanings: list[Meaning | None] = [
        Meaning(kind, word, 20, 20, 1.0, 2.0) for kind, word, _ in latents
    ]
    score = torch.linspace(1, 0.5, len(latents))
    found = gallery(range(len(latents)), scan, Scores(score, meanings, words), None)
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


def fillers(count: int) -> list[tuple[str, str, list[int]]]:
    """Of words that no image has, on pictures of their own."""
    return [("name", f"other{n}", of(FLAG, 100 + 8 * n, 8)) for n in range(count)]
