"""Sheets of generated images, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saekit.errors import DataError
from saekit.report.images import GAP
from saekit.report.sheets import class_sheet, path_sheet

SHAPE = (2, 2, 1)


def tile(picture, line, column, side=2):
    """The gray value of one image of a sheet, which must be even."""
    pixels = np.asarray(picture)
    y, x = line * (side + GAP), column * (side + GAP)
    values = np.unique(pixels[y : y + side, x : x + side, :3])
    assert len(values) == 1
    return int(values[0])


def test_each_class_has_its_line_in_the_order_of_names_and_gray_where_samples_lack():
    x = torch.tensor([0.0, 0.2, 0.4, 0.6, 1.0]).repeat_interleave(4).view(5, 4)
    picture = class_sheet(x, ["b", "a", "b", "b", "a"], ["a", "b", "c"], SHAPE, per_class=2)
    assert picture.size == (2 * (2 + GAP) - GAP, 3 * (2 + GAP) - GAP)
    found = [[tile(picture, line, column) for column in (0, 1)] for line in (0, 1, 2)]
    assert found == [[51, 255], [0, 102], [128, 128]]


def test_paths_go_from_one_code_to_the_next():
    def decode(z_BF):
        return z_BF[:, :1].repeat(1, 4)

    z = torch.tensor([[0.0], [1.0], [0.6]])
    picture = path_sheet(decode, z, SHAPE, steps=3)
    found = [[tile(picture, line, column) for column in (0, 1, 2)] for line in (0, 1)]
    assert found == [[0, 128, 255], [255, 204, 153]]


def test_a_label_for_each_sample():
    with pytest.raises(DataError, match="2 labels for 3 samples"):
        class_sheet(torch.zeros(3, 4), ["a", "b"], ["a", "b"], SHAPE)
