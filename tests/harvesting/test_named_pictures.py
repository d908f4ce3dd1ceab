"""A picture by its name, as every verb takes it."""

from __future__ import annotations

import pytest
from PIL import Image

from saekit.embedded import digits
from saekit.errors import DataError, MissingError
from saekit.harvesting.named_pictures import named_picture


def test_a_file_and_an_embedded_image_by_number_and_name(tmp_path):
    expected = digits.image(3).tobytes()
    digits.image(3).save(tmp_path / "three.png")
    for name in (tmp_path / "three.png", "embedded:digits:3", "embedded:digits:digit-0003"):
        assert named_picture(name).tobytes() == expected


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
