"""Values of an index as float16: half the space of float32, an error that index.json states."""

from __future__ import annotations

import dataclasses

import numpy as np

from saekit.errors import NumericsError, opt
from saekit.indexing.manifest import Rounding
from saekit.indexing.runs import Entries

HALF = np.finfo(np.float16)


def in_half(entries: Entries) -> Entries:
    """The entries with the values that float16 has nearest to theirs. One that would become 0 takes
    the smallest size instead, so that counts of active rows stay exact. Raises NumericsError for a
    value that float16 does not have."""
    value = entries.value
    largest = float(np.abs(value).max(initial=0.0))
    if largest > float(HALF.max):
        raise NumericsError(
            f"an activation of {largest:.4g} is above {HALF.max:,.0f}, the largest of float16",
            opt("values", "float32"),
        )
    rounded = value.astype(np.float16).astype(np.float32)
    lost = rounded == 0
    rounded[lost] = np.copysign(np.float32(HALF.smallest_subnormal), value[lost])
    error = rounded.astype(np.float64) - value
    rounding = Rounding(
        float(np.abs(error).max(initial=0.0)),
        float(np.square(error).sum()),
        float(np.square(value, dtype=np.float64).sum()),
        int(lost.sum()),
    )
    return dataclasses.replace(entries, value=rounded, rounding=rounding)
