from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from saekit.errors import DataError, NumericsError
from saekit.report.images import CAPTION, GAP, png_data_uri, sheet


def test_every_pixel_is_a_square_and_gaps_are_clear():
    images = torch.tensor([[[0.0, 1.0]], [[0.5, 2.0]], [[-1.0, 0.2]]])  # three of 1 x 2
    picture = np.asarray(sheet(images, columns=2, zoom=3))
    assert picture.shape == (2 * 3 + GAP, 2 * 6 + GAP, 4)
    for (row, column), grey in {
        (0, 0): 0,
        (0, 3): 255,
        (2, 5): 255,
        (0, 6 + GAP): 128,
        (0, 9 + GAP): 255,
        (3 + GAP, 0): 0,
    }.items():
        assert picture[row, column].tolist() == [grey, grey, grey, 255], (row, column)
    assert picture[3 + GAP, 3].tolist() == [51, 51, 51, 255]
    assert (picture[3 : 3 + GAP, :, 3] == 0).all() and (picture[:, 6 : 6 + GAP, 3] == 0).all()
    assert (picture[3 + GAP :, 6 + GAP :, 3] == 0).all()  # the place of a fourth image


def test_colour_stays_and_fewer_images_than_columns_take_less_room():
    picture = np.asarray(sheet(torch.tensor([[[[1.0, 0.0, 0.2]]]]), columns=8, zoom=1))
    assert picture.tolist() == [[[255, 0, 51, 255]]]


def test_captions_widen_their_cells_and_stand_below():
    images = torch.ones(2, 4, 4)
    plain, named = sheet(images, 2, zoom=2), sheet(images, 2, ["a long caption", "b"], zoom=2)
    assert named.width > plain.width and named.height == plain.height + CAPTION + 8
    ink = np.asarray(named)[8:, :, 3] > 0
    half = named.width // 2
    assert ink[:, :half].sum() > ink[:, half:].sum() > 0
    assert not ink[-1].any() and not ink[:, 0].any()  # nothing cut at the rim
    with pytest.raises(DataError, match="1 captions for 2 images"):
        sheet(images, 2, ["a"])


def test_what_is_no_image_is_refused():
    with pytest.raises(DataError, match=r"shape \(2, 9\)"):
        sheet(torch.zeros(2, 9), 2)
    with pytest.raises(DataError, match=r"shape \(2, 3, 3, 2\)"):
        sheet(torch.zeros(2, 3, 3, 2), 2)
    with pytest.raises(NumericsError, match="NaN"):
        sheet(torch.full((1, 2, 2), torch.nan), 1)


def test_the_data_uri_holds_the_picture():
    picture = sheet(torch.rand(2, 3, 3), 2)
    head, body = png_data_uri(picture).split(",")
    assert head == "data:image/png;base64"
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(base64.b64decode(body)))), np.asarray(picture)
    )
