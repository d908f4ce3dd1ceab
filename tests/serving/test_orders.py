"""In which order the latents of an input are listed."""

from __future__ import annotations

import numpy as np
import torch

from saekit.inspection.score import Scores
from saekit.serving.orders import Orders

ACT = np.array([90.0, -8.0, 3.0, 4.0, 5.0], np.float32)
BY_SIZE = np.argsort(-np.abs(ACT))
MAXIMA = torch.tensor([900.0, 16.0, 1.0, 4.0, 0.0])


def test_a_massive_activation_is_not_first_by_its_share():
    orders = Orders(MAXIMA, None)
    # .1, .5, 1 (3 of 1), 1, and one that never fired
    assert orders.figure(ACT, "relative").tolist() == [np.float32(0.1), 0.5, 1, 1, 0]
    # equal ones by the size of their activation
    assert orders.ordered(BY_SIZE, ACT, "relative").tolist() == [3, 2, 1, 0, 4]
    assert orders.names == ("relative",)


def test_the_maximum_of_a_few_rows_is_behind():
    orders = Orders(MAXIMA, None, np.array([10, 500, 9, 10, 0]))
    # shares .1, .5, 1, 1 of latents that are active in 10, 500, 9 and 10 rows: .033, .48, .31, .33
    assert orders.ordered(BY_SIZE, ACT, "relative").tolist() == [1, 3, 2, 0, 4]


def test_by_score_those_without_one_are_last():
    scores = Scores(torch.tensor([0.1, torch.nan, 0.7, 0.7, 0.0]), [None] * 5)
    orders = Orders(None, scores)
    assert orders.names == ("score",)
    assert orders.ordered(BY_SIZE, ACT, "score").tolist() == [3, 2, 0, 1, 4]
    assert Orders(None, Scores(torch.full((5,), torch.nan), [None] * 5)).names == ()
