from __future__ import annotations

import pytest
import torch

from saekit.errors import DataError
from saekit.measures.classifier import as_classifier
from saekit.models.catalog import build


def spots(count: int, seed: int):
    """Two classes that no linear reader of the 8 inputs tells apart: the sign of the product of two
    of them."""
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return x, ["same" if product > 0 else "other" for product in (x[:, 0] * x[:, 1]).tolist()]


class Product(torch.nn.Module):
    """An encoder that already knows: its one latent is the product, scaled by a weight that
    training may move."""

    latents = 1

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def encode(self, x):
        return self.weight * (x[:, :1] * x[:, 1:2])

    def initialise_from(self, sample, generator) -> None:
        with torch.no_grad():
            self.weight.zero_()


def test_a_code_that_holds_the_class_is_read_from_few_labels_frozen_or_tuned():
    x, y = spots(400, 0)
    x_test, y_test = spots(300, 1)
    model = Product()
    found = as_classifier(model, x, y, x_test, y_test, per_class=10, seeds=(0, 1))
    assert min(found.frozen) > 0.85 and min(found.tuned) > 0.85
    # from 0 the weight has to be found by way of the head, which the same labels train: between
    # chance and the model that knows
    assert all(0.3 < scratch < 1 for scratch in found.scratch) and len(found.scratch) == 2
    assert model.weight.item() == 1.0, "the model is left as it was"


def test_tuning_moves_the_encoder_and_beats_its_frozen_random_code():
    x, y = spots(2000, 2)
    x_test, y_test = spots(500, 3)
    model = build("dense", 8, {"latents": 2, "hidden": (64,)})
    model.initialise_from(x, torch.Generator().manual_seed(0))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = as_classifier(model, x, y, x_test, y_test, per_class=300, seeds=(0,))
    assert found.tuned[0] > found.frozen[0] + 0.1
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_too_few_rows_of_a_class_are_refused():
    x, y = spots(40, 4)
    with pytest.raises(DataError, match="fewer than 100"):
        as_classifier(Product(), x, y, x, y, per_class=100)
