"""A picture by its name, as every verb takes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from saekit.embedded import digits
from saekit.errors import DataError, MissingError
from saekit.harvesting.named_pictures import named_picture


def test_a_file_and_an_embedded_image_by_number_and_name(tmp_path):
    expected = digits.image(3).tobytes()
    digits.image(3).save(tmp_path / "three.png")
    for name in (tmp_path / "three.png", "embedded:digits:3", "embedded:digits:digit-0003"):
        assert named_picture(name).tobytes() == expected


def test_the_first_of_several_has_their_common_name():
    short, whole = (named_picture(f"embedded:openmoji:crab{end}") for end in ("", " #0"))
    assert short.tobytes() == whole.tobytes()


def test_a_picture_in_memory():
    expected = digits.image(3)
    pixels_HW = np.array(expected)
    rgb_HWC = np.stack([pixels_HW] * 3, 2)
    for given in (expected, pixels_HW, torch.from_numpy(pixels_HW)[None]):
        assert named_picture(given).tobytes() == expected.tobytes()
    for given in (rgb_HWC, rgb_HWC.transpose(2, 0, 1), expected.convert("RGBA")):
        assert np.array_equal(np.array(named_picture(given)), rgb_HWC)
    with pytest.raises(DataError, match="the image is a list, not an image") as error:
        named_picture([1, 2])
    assert "PIL images, arrays or tensors" in error.value.hint


def test_what_is_not_there(tmp_path):
    Image.new("L", (2, 2)).save(tmp_path / "1.png")
    (tmp_path / "no.png").write_text("no picture")
    refusals = [
        ("embedded:digits:digits-0033", DataError, "has no image", "did you mean digit-0033"),
        ("embedded:digits:99999", DataError, "has no image", "below 1,797"),
        ("embedded:pydocs:0", DataError, "holds texts", "give images"),
        (tmp_path / "absent.png", MissingError, "there is no image", "check the path"),
        (tmp_path / "no.png", DataError, "cannot be read as an image", "give another file"),
    ]
    for name, kind, words, hint in refusals:
        with pytest.raises(kind, match=words) as error:
            named_picture(name)
        assert hint in error.value.hint
