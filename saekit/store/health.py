"""The health report of a store: statistics of its rows, and the rounding error of its dtype.

Rounding is reported per dimension, as the root mean square error of the stored values relative to
the standard deviation of the dimension: a value of 3,000 with a standard deviation of 1 is stored
to the nearest 2 in float16 and the nearest 16 in bfloat16. Moments of the rows before rounding are
taken about a pivot near their mean, where sums of squares lose no precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from saekit.errors import opt
from saekit.types import ActivationSpec

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
STATISTICS_CHUNK = 1024
_CHUNK = 256
HIGH_NORM = 10.0  # rows whose norm is above this multiple of the median are counted
ROUNDING_LIMIT = 0.05  # of a dimension's spread; for values that became 0, of all values
PROBE_ROWS = 4096  # rows from which dtype "auto" is chosen
_HEADROOM = 16  # later rows may be this many times larger than those of the probe


class Rounding:
    """The difference between rows and their stored form, summed per dimension."""

    def __init__(self, width: int) -> None:
        self.rows = self.vanished = self.values = 0
        self.pivot: torch.Tensor | None = None
        # squared error; x - pivot; (x - pivot) squared
        self.sums = torch.zeros(3, width, dtype=torch.float64)

    def add(self, x_RD: torch.Tensor, stored_RD: torch.Tensor) -> None:
        """(R,D) before and after storing. Rows that already had the stored dtype lost nothing, and
        are not counted."""
        if not len(x_RD) or x_RD.dtype == stored_RD.dtype:
            return
        wide = torch.float64 if x_RD.dtype == torch.float64 else torch.float32
        if self.pivot is None:
            self.pivot = x_RD[:STATISTICS_CHUNK].to(wide).mean(0)
        pivot = self.pivot.to(wide)
        # One buffer that stays in cache: half the time of a new buffer per term.
        for x, stored in zip(x_RD.split(_CHUNK), stored_RD.split(_CHUNK)):
            x, work = x.to(wide), stored.to(wide, copy=True)
            # rounding creates zeros and never removes one
            self.vanished += int(x.count_nonzero()) - int(work.count_nonzero())
            self.sums[0] += work.sub_(x).square_().sum(0)
            self.sums[1] += torch.sub(x, pivot, out=work).sum(0)
            self.sums[2] += work.square_().sum(0)
        self.rows += len(x_RD)
        self.values += x_RD.numel()

    def tensors(self) -> dict[str, torch.Tensor]:
        """The sums as a shard stores them."""
        assert self.pivot is not None, "no rows were added"
        counts = torch.tensor([self.rows, self.vanished, self.values], dtype=torch.int64)
        return {
            "rounding.sums": self.sums,
            "rounding.pivot": self.pivot.double(),
            "rounding.counts": counts,
        }


def summed(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Statistics from the shards' `Rounding.tensors` as NumPy arrays: rounding (D), its maximum,
    the number of dimensions above the limit, the share of values that became 0."""
    # Sums over the shards; their moments move to the pivot of the first shard.
    rows = sum(int(part["rounding.counts"][0]) for part in parts)
    error = sum(part["rounding.sums"][0] for part in parts) / rows
    pivot = parts[0]["rounding.pivot"]
    first, second = 0.0, 0.0
    for part in parts:
        n, shift = int(part["rounding.counts"][0]), part["rounding.pivot"] - pivot
        first = first + part["rounding.sums"][1] + n * shift
        second = (
            second + part["rounding.sums"][2] + 2 * shift * part["rounding.sums"][1] + n * shift**2
        )
    # Error relative to the spread. In a constant dimension all rows have the same error, which
    # counts as none.
    spread = np.sqrt(np.maximum(second / rows - (first / rows) ** 2, 0))
    rounding = np.divide(np.sqrt(error), spread, out=np.zeros_like(spread), where=spread > 0)
    vanished, values = (sum(int(part["rounding.counts"][i]) for part in parts) for i in (1, 2))
    return {
        "rounding": rounding.tolist(),
        "rounding_max": float(rounding.max()),
        "rounding_dimensions": int((rounding > ROUNDING_LIMIT).sum()),
        "underflow_share": vanished / values,
    }


def rounding_of(x_RD: torch.Tensor, dtype: str) -> dict[str, Any]:
    """The same statistics for rows that would be stored in `dtype`."""
    rounding = Rounding(x_RD.shape[1])
    x_RD = x_RD.to(torch.float64) if x_RD.dtype == DTYPES[dtype] else x_RD
    rounding.add(x_RD, x_RD.to(DTYPES[dtype]))
    return summed([{name: tensor.numpy() for name, tensor in rounding.tensors().items()}])


def choose_dtype(x_RD: torch.Tensor) -> tuple[str, str]:
    """(dtype, reason): the first of float16, bfloat16 and float32 that holds these rows with a
    rounding error below the limit, with room for larger ones."""
    largest = float(x_RD.abs().max())
    against = []
    for dtype in ("float16", "bfloat16"):
        if not largest * _HEADROOM < torch.finfo(DTYPES[dtype]).max:
            against.append(f"{dtype} may overflow (largest value {largest:.3g})")
            continue
        cost = rounding_of(x_RD, dtype)
        if cost["rounding_max"] <= ROUNDING_LIMIT and cost["underflow_share"] <= ROUNDING_LIMIT:
            why = (
                f"{dtype}, whose rounding costs at most {cost['rounding_max']:.1%} of a dimension's"
                f" spread in the first {len(x_RD):,} rows"
            )
            return dtype, "; ".join([why, *against])
        against.append(
            f"{dtype} would cost up to {_share(cost['rounding_max'])} of a dimension's spread"
        )
    return "float32", "; ".join(["float32", *against])


def remarks(stats: dict[str, Any], spec: ActivationSpec) -> list[str]:
    """Lines for the user on the rounding error of the dtype, when it is large."""
    if (
        stats.get("rounding_max", 0.0) <= ROUNDING_LIMIT
        and stats.get("underflow_share", 0.0) <= ROUNDING_LIMIT
    ):
        return []
    count, worst = stats["rounding_dimensions"], int(np.argmax(stats["rounding"]))
    line = (
        f"{spec.dtype} rounds {count:,} of {spec.d_in:,} dimensions by more than 5 % of their"
        f" spread (dimension {worst}: {_share(stats['rounding_max'])})"
    )
    if stats["underflow_share"] > ROUNDING_LIMIT:
        line += f", and {stats['underflow_share']:.0%} of the values became 0"
    if spec.dtype == "float32":
        return [f"{line}; center and scale the data first"]
    advice = f"harvest with {opt('dtype', 'float32')} and {opt('overwrite', True)}"
    return [f"{line}; {advice}"]


def overflow_hint(x_RD: torch.Tensor, dtype: str) -> str:
    """What to do about rows with values that overflow `dtype`."""
    if dtype == "float32" or float(x_RD.abs().max()) > torch.finfo(torch.float32).max:
        return "scale the values down first"
    finite = torch.isfinite(x_RD).all(1)
    cost = rounding_of(x_RD[finite], "bfloat16")["rounding_max"] if int(finite.sum()) > 1 else 1.0
    if cost <= ROUNDING_LIMIT:
        return f"{opt('dtype', 'bfloat16', 'float32')}, with {opt('overwrite', True)}"
    return (
        f"{opt('dtype', 'float32')} and {opt('overwrite', True)} (bfloat16 would round by"
        f" {_share(cost)} of a dimension's spread)"
    )


def _share(value: float) -> str:
    return f"{value:.0%}" if value < 1 else f"{value:.1f} times"


def health_report(path: Any, manifest: Any) -> dict[str, Any]:
    """Per-dimension mean and std, the mean square norm, ||mean||/||std||, the number of rows far
    above the median norm, and the rounding error of the dtype."""
    from saekit.store.shards import ShardFile

    # Sums over the shards.
    width = manifest.spec.d_in
    total, squares, norms, roundings = np.zeros(width), np.zeros(width), [], []
    for shard in manifest.shards:
        arrays = ShardFile(path, shard).arrays
        total, squares = total + arrays["sum"], squares + arrays["sum_of_squares"]
        norms.append(arrays["norm"])
        roundings.append({name: arrays[name] for name in arrays if name.startswith("rounding.")})
    # Statistics. Shards of earlier versions, and shards whose rows had the stored dtype already,
    # have no rounding error.
    n, norm = manifest.rows, np.concatenate(norms)
    mean = total / n
    std = np.sqrt(np.maximum(squares / n - mean**2, 0))
    median = float(np.median(norm))
    roundings = [rounding for rounding in roundings if rounding]
    return (summed(roundings) if roundings else {}) | {
        "mean": mean.tolist(),
        "std": std.tolist(),
        "mean_square_norm": float(squares.sum() / n),
        "mean_to_std": float(np.linalg.norm(mean) / max(np.linalg.norm(std), 1e-30)),
        "median_norm": median,
        "max_norm": float(norm.max()),
        "high_norm_factor": HIGH_NORM,
        "high_norm_rows": int((norm > HIGH_NORM * median).sum()),
        "dropped_rows": sum(shard.dropped for shard in manifest.shards),
    }
