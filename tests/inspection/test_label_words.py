"""Words that are not labels of the data: the error says what they are and what finds them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from made_index import index_of_entries
from test_names import IMAGES, PATCHES, write_images

from saekit.errors import DataError
from saekit.inspection.known import Known
from saekit.inspection.meanings import Meanings
from saekit.inspection.questions.label import of_label
from saekit.store.reader import open_store

EACH = IMAGES // 4
NAMES = [f"{name} #{i}" for name in ("grinning face", "yawning face", "crab", "hammer")
         for i in range(EACH)]  # fmt: skip
LABELS = [label for label in ("face-smiling", "face-hand", "animal-marine", "tool")
          for _ in range(EACH)]  # fmt: skip


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    store = open_store(write_images(folder / "store", NAMES, LABELS))
    rows = np.arange(len(NAMES)) * PATCHES
    index = index_of_entries(
        folder / "index", store, 1, rows, np.zeros(IMAGES, int), np.ones(IMAGES)
    )
    return cast(Known, SimpleNamespace(of_entries=lambda _: index, meanings=Meanings(store, None)))


def test_a_word_of_picture_names_is_said_to_be_one(known):
    with pytest.raises(DataError, match="Face is a word of picture names, not a label") as error:
        of_label(known, "Face", "information")
    assert error.value.hint == (
        'labels that begin so: face-hand, face-smiling; explained="Face" finds latents by the words'
        " of names"
    )
    with pytest.raises(DataError, match="grinning is a word of picture names") as error:
        of_label(known, "grinning", "information")
    assert error.value.hint.startswith('explained="grinning" finds')


@pytest.mark.parametrize(("label", "near"), [("tools", "tool"), ("face-han", "face-hand")])
def test_other_words_keep_the_nearest_labels(known, label, near):
    with pytest.raises(DataError, match="the data have no such label") as error:
        of_label(known, label, "information")
    assert error.value.hint.startswith(f"did you mean {near}")
