"""Image models with their head, and which class a label of the data is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoModelForImageClassification

from saekit.errors import DataError
from saekit.harvesting.classifiers import class_numbers, load_classifier


def named(*names: str) -> Any:
    config = SimpleNamespace(id2label=dict(enumerate(names)))
    return SimpleNamespace(module=SimpleNamespace(config=config))


def test_a_label_is_a_class_by_its_name_or_the_number_of_a_placeholder():
    assert class_numbers(named("cat", "dog"), {"dog", "cat"}) == {"cat": 0, "dog": 1}
    assert class_numbers(named("LABEL_0", "LABEL_1"), {"1"}) == {"1": 1}
    # not every label is a class: then none is used
    assert class_numbers(named("cat", "dog"), {"dog", "cow"}) is None
    assert class_numbers(named("cat", "dog"), {"dog", None}) is None
    assert class_numbers(named("cat", "dog"), {"1"}) is None
    # ImageNet has two classes named crane
    assert class_numbers(named("crane", "dog", "crane"), {"crane", "dog"}) is None
    assert class_numbers(named("crane", "dog", "crane"), {"dog"}) == {"dog": 1}


@torch.no_grad()
def test_the_head_is_that_of_the_file(tmp_path):
    folder = tiny.save("vit", tmp_path / "vit")
    with pytest.raises(DataError, match="has no classification head"):
        load_classifier(folder)
    module = AutoModelForImageClassification.from_pretrained(folder).eval()
    module.save_pretrained(folder)
    live, pixels = load_classifier(folder), torch.randn(2, 3, tiny.SIDE, tiny.SIDE)
    logits = live.forward({"pixel_values": pixels}).logits
    assert torch.equal(logits, module(pixels).logits) and live.kind == "vision"
    with pytest.raises(DataError, match="has no classification head"):
        load_classifier(tiny.save("dinov3", tmp_path / "dinov3"))
