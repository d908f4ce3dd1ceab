"""What a file says of the scales, and which store a bad row is looked for in."""

from __future__ import annotations

import json

import pytest
import torch
from made_stores import damage, make_spec, write_store

import saekit
from saekit.errors import NumericsError
from saekit.models.normalizer import Normalizer
from saekit.store.reader import Store
from saekit.store.stack import StackedStore
from saekit.training.inputs import check_peaks, check_rows


def normalizer(*scales_and_widths):
    parts = [torch.full((width,), scale) for scale, width in scales_and_widths]
    return Normalizer(torch.zeros(sum(map(len, parts))), torch.cat(parts))


def test_hooks_of_equal_scale_each_have_their_own_entry():
    assert normalizer((0.5, 3), (0.5, 2), (2.0, 1), (0.5, 4)).scales((3, 2, 1, 4)) == [
        0.5,
        0.5,
        2.0,
        0.5,
    ]
    assert Normalizer(torch.zeros(3), 0.25).scales() == 0.25


def test_a_crosscoder_of_unscaled_hooks_writes_a_scale_for_each(tmp_path):
    x, y = write_store(tmp_path / "x", 400), write_store(tmp_path / "y", 400, width=6)
    saekit.train(
        x,
        tmp_path / "run",
        stores=(str(y),),
        normalize="none",
        k=4,
        expansion=2,
        batch=64,
        rows=128,
    )
    assert json.loads((tmp_path / "run" / "config.json").read_text())["input_scale"] == [1.0, 1.0]


@pytest.mark.parametrize("bad", ["x", "y", "z"])
def test_of_stores_side_by_side_the_one_with_the_bad_row_is_named(tmp_path, bad):
    paths = {
        name: write_store(tmp_path / name, 200, width=width)
        for name, width in (("x", 16), ("y", 6), ("z", 8))
    }
    damage(Store(paths[bad]), 17)
    stack = StackedStore([Store(path) for path in paths.values()])
    with pytest.raises(
        NumericsError, match=rf"(?m)in the data: {paths[bad]}, shard 00000\.safetensors row 17$"
    ):
        for batch in stack.batches(50):
            check_rows(stack, batch)


def test_a_bad_row_of_no_store_names_model_and_hook():
    class Running:
        spec = make_spec(model="some-model", hook="blocks.4")
        target = None

    found = [torch.tensor([1.0, float("inf")])]
    with pytest.raises(NumericsError, match=r"(?m)in the data: some-model at blocks\.4$"):
        check_peaks(Running(), None, found)
    check_peaks(Running(), None, [torch.ones(2)])
