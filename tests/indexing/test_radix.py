from __future__ import annotations

import numpy as np
import pytest

from saekit.indexing.radix import bits_of_sizes, order_of


@pytest.mark.parametrize("most", [3, 70_000, 2**32 - 1])
def test_the_order_is_that_of_a_stable_sort(most):
    keys = np.random.default_rng(0).integers(0, most, 5000).astype(np.uint32)
    assert np.array_equal(order_of(keys), np.argsort(keys, kind="stable"))
    assert len(order_of(keys[:0])) == 0


def test_sizes_of_floats_are_ordered_by_their_bits():
    values = np.array([0.0, -3e38, 1e-45, 2.5, -2.5, 0.1, -1e-7, 3.4e38], np.float32)
    assert np.array_equal(
        order_of(bits_of_sizes(values)), np.argsort(np.abs(values), kind="stable")
    )
    half = values[3:6].astype(np.float16)
    assert np.array_equal(order_of(bits_of_sizes(half)), [2, 0, 1])
