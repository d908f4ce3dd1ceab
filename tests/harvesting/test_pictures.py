"""The reader of all pictures: upright, 8 bits, only picture formats."""

from __future__ import annotations

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import saekit
from saekit.errors import DataError, MissingError, SaekitError
from saekit.harvesting.pictures import read_picture
from saekit.harvesting.sources import open_data

CORNER = np.zeros((4, 6, 3), np.uint8)
CORNER[0, 0] = 255  # top left


def encoded(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


# orientation -> where the stored top left corner is seen, (row, column) of the upright picture, and
# its size (w, h); EXIF 2.3, table 6
UPRIGHT = {1: (0, 0, (6, 4)), 2: (0, 5, (6, 4)), 3: (3, 5, (6, 4)), 4: (3, 0, (6, 4)), 5: (0, 0,
(4, 6)), 6: (0, 3, (4, 6)),
           7: (5, 3, (4, 6)), 8: (5, 0, (4, 6))}  # fmt: skip


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_every_orientation_comes_upright_from_a_folder_and_from_a_table(
    tmp_path, form, orientation
):
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(
        Image.fromarray(CORNER), form, exif=exif, **({"lossless": True} if form == "WEBP" else {})
    )
    (tmp_path / "im").mkdir()
    (tmp_path / "im" / f"a.{form.lower()}").write_bytes(data)
    table = Dataset.from_dict(
        {"image": [{"bytes": data, "path": None}]}, features=Features({"image": ImageFeature()})
    )
    table.to_parquet(tmp_path / "t.parquet")
    row, column, size = UPRIGHT[orientation]
    for source in ("im", "t.parquet"):
        (document,) = open_data(str(tmp_path / source), modality="image").documents()
        pixels = np.asarray(document.image.convert("L"))
        assert document.image.size == size
        assert np.argwhere(pixels > 128).tolist() == [[row, column]]


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled(tmp_path, form):
    values = np.array([[0, 257, 25_700, 32_768, 65_535, 65_400]], np.uint16)
    image = read_picture(encoded(Image.fromarray(values), form), "x")
    assert image.mode == "L" and np.asarray(image).tolist() == [[0, 1, 100, 128, 255, 254]]


def test_raw_pixels_keep_refusing_sixteen_bits_from_a_table(tmp_path):
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature

    data = encoded(Image.fromarray(np.full((2, 2), 40_000, np.uint16)), "PNG")
    table = Dataset.from_dict(
        {"image": [{"bytes": data, "path": None}]}, features=Features({"image": ImageFeature()})
    )
    table.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"image 0 has mode I;16"):
        saekit.harvest("raw:pixels", str(tmp_path / "t.parquet"), tmp_path / "s")


def test_modes_whose_values_cannot_be_eight_bits_are_refused_by_name(tmp_path):
    Image.fromarray(np.array([[0.5, 1e5]], np.float32)).save(tmp_path / "deep.tif")
    with pytest.raises(
        DataError, match=r"image .*deep\.tif has mode F: its values do not fit 0 to 255"
    ):
        read_picture(tmp_path / "deep.tif")


@pytest.mark.parametrize(
    "mode,colour",
    [
        ("P", (51, 102, 204)),
        ("CMYK", (51, 102, 204)),
        ("RGBA", (51, 102, 204)),
        ("1", (255, 255, 255)),
    ],
)
def test_other_modes_give_their_colours(mode, colour):
    image = Image.new("RGB", (3, 2), colour).convert(mode)
    pixel = read_picture(encoded(image, "TIFF"), "x").convert("RGB").getpixel((1, 1))
    assert max(abs(a - b) for a, b in zip(pixel, colour)) <= 1


def test_of_an_animation_the_first_frame_is_read(tmp_path):
    frames = [Image.new("L", (4, 4), value) for value in (50, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_picture(tmp_path / "a.gif").convert("L").getpixel((0, 0)) == 50


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "data,words",
    [
        (png(30_000, 30_000, b""), r"is too large a picture: Image size \(900000000 pixels\)"),
        (
            png(9_000, 9_000, bytes(9_000 * 1126)),
            r"is too large a picture: 81,000,000 pixels, almost all alike",
        ),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n",
            r"cannot be read as an image",
        ),
        (b"BM" + b"\xff" * 60, r"cannot be read as an image"),
        (b"", r"cannot be read as an image"),
        (b"P5 two 4 255\n", r"cannot be read as an image"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path, data, words):
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(DataError, match=rf"x\.png {words}") as raised:
        read_picture(tmp_path / "x.png")
    assert "skip_broken=True" in raised.value.hint


def test_a_missing_picture_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(MissingError, match="there is no image at"):
        read_picture(tmp_path / "none.png")
    with pytest.raises(DataError, match="is not a file"):
        read_picture(tmp_path)


def test_mutated_pictures_end_in_user_errors():
    rng = random.Random(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8))
    whole = [encoded(noise, form, exif=exif) for form in ("PNG", "JPEG", "WEBP", "TIFF")] + [
        encoded(noise, form) for form in ("BMP", "GIF")
    ]
    refused = 0
    for _ in range(600):
        data = bytearray(rng.choice(whole))
        for _ in range(rng.choice([1, 2, 6])):
            at = rng.randrange(len(data))
            data[at : at + rng.choice([1, 4])] = rng.choice(
                [b"\xff\xff\xff\x7f", b"\0", b"", b"\x80"]
            )
        try:
            read_picture(bytes(data), "x").convert("RGB")
        except SaekitError:
            refused += 1
    assert refused > 100
