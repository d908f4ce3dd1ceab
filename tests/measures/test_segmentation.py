from __future__ import annotations

import pytest
import torch

from saekit.errors import DataError
from saekit.measures.segmentation import iou


def test_pooled_and_mean_per_image_by_hand():
    mask = torch.tensor([[[1.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]])
    prediction = torch.tensor([[[0.9, 0.4], [0.6, 0.1]], [[0.0, 0.0], [0.2, 0.8]]])
    # first image: 1 of 3 pixels in both; second: 1 of 1
    result = iou(prediction, mask)
    assert (
        result.pooled == pytest.approx(2 / 4)
        and result.mean == pytest.approx((1 / 3 + 1) / 2)
        and result.images == 2
    )


def test_the_threshold_moves_the_mask_and_is_itself_background():
    mask = torch.tensor([[True, True, False]])
    prediction = torch.tensor([[0.3, 0.5, 0.2]])
    assert iou(prediction, mask, threshold=0.25).pooled == 1.0
    assert iou(prediction, mask, threshold=0.3).pooled == pytest.approx(1 / 2)
    assert iou(prediction, mask, threshold=0.5).pooled == 0.0


def test_nothing_found_where_nothing_is_is_right():
    blank = torch.zeros(2, 4)
    assert iou(blank, blank).pooled == 1.0 and iou(blank, blank).mean == 1.0
    mask = torch.tensor([[0.0] * 4, [1.0] * 4])
    assert iou(blank, mask).mean == 0.5 and iou(blank, mask).pooled == 0.0


def test_shapes_that_differ_are_refused():
    with pytest.raises(DataError, match=r"shape \(2, 3\) for masks of shape \(2, 4\)"):
        iou(torch.zeros(2, 3), torch.zeros(2, 4))
