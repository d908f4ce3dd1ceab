"""A stable order in linear time: 32 bits in two passes of 16, which NumPy sorts by counting. Some
three times faster than comparing millions of values."""

from __future__ import annotations

import numpy as np


def order_of(keys: np.ndarray) -> np.ndarray:
    """(n,) int64: places of the uint32 keys (n,), ascending, the earlier of equal ones first."""
    low, high = (keys & 0xFFFF).astype(np.uint16), (keys >> 16).astype(np.uint16)
    order = np.argsort(low, kind="stable")
    return order[np.argsort(high[order], kind="stable")] if high.any() else order


def bits_of_sizes(values: np.ndarray) -> np.ndarray:
    """(n,) uint32 that are ordered as |values| (n,) are."""
    return np.abs(values.astype(np.float32)).view(np.uint32)
