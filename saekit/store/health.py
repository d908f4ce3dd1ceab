"""The health report of a store: what its rows are like, and what its dtype cost.

Rounding is told per dimension, as the root mean square error of the stored values in units of the
dimension's own spread: a value of 3,000 with a spread of 1 is stored to the nearest 2 in float16
and the nearest 16 in bfloat16. Moments of the rows before rounding are kept about a pivot near
their mean, where sums of squares lose nothing.
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
ROUNDING_LIMIT = 0.05  # of a dimension's spread; and of all values, for those that became 0
PROBE_ROWS = 4096  # of dtype "auto"
_HEADROOM = 16  # later rows may be larger than those of the probe


class Rounding:
    """What is lost between rows and their stored form, summed per dimension."""

    def __init__(self, width: int) -> None:
        self.rows = self.vanished = self.values = 0
        self.pivot: torch.Tensor | None = None
        # squared error; x - pivot; (x - pivot) squared
        self.sums = torch.zeros(3, width, dtype=torch.float64)

    def add(self, x_RD: torch.Tensor, stored_RD: torch.Tensor) -> None:
        """(R,D) as they came and as they are stored. Rows that came in the stored dtype lost
        nothing, and are not counted."""
        if not len(x_RD) or x_RD.dtype == stored_RD.dtype:
            return
        wide = torch.float64 if x_RD.dtype == torch.float64 else torch.float32
        if self.pivot is None:
            self.pivot = x_RD[:STATISTICS_CHUNK].to(wide).mean(0)
        pivot = self.pivot.to(wide)
        # One buffer that stays in cache: half the time of a new one for each term.
        for x, stored in zip(x_RD.split(_CHUNK), stored_RD.split(_CHUNK)):
            x, work = x.to(wide), stored.to(wide, copy=True)
            # rounding makes zeros and unmakes none
            self.vanished += int(x.count_nonzero()) - int(work.count_nonzero())
            self.sums[0] += work.sub_(x).square_().sum(0)
            self.sums[1] += torch.sub(x, pivot, out=work).sum(0)
            self.sums[2] += work.square_().sum(0)
        self.rows += len(x_RD)
        self.values += x_RD.numel()

    def tensors(self) -> dict[str, torch.Tensor]:
        """As a shard keeps them."""
        assert self.pivot is not None, "rows were added"
        counts = torch.tensor([self.rows, self.vanished, self.values], dtype=torch.int64)
        return {
            "rounding.sums": self.sums,
            "rounding.pivot": self.pivot.double(),
            "rounding.counts": counts,
        }


def summed(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shards' `Rounding.tensors`, as NumPy arrays, as figures: rounding (D), its largest,
    dimensions above the limit, underflow."""
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
    spread = np.sqrt(np.maximum(second / rows - (first / rows) ** 2, 0))
    # A dimension that is constant has nothing to lose but its value, which every row loses alike.
    rounding = np.divide(np.sqrt(error), spread, out=np.zeros_like(spread), where=spread > 0)
    vanished, values = (sum(int(part["rounding.counts"][i]) for part in parts) for i in (1, 2))
    return {
        "rounding": rounding.tolist(),
        "rounding_max": float(rounding.max()),
        "rounding_dimensions": int((rounding > ROUNDING_LIMIT).sum()),
        "underflow_share": vanished / values,
    }


def rounding_of(x_RD: torch.Tensor, dtype: str) -> dict[str, Any]:
    """The same figures for rows that would be stored in `dtype`."""
    rounding = Rounding(x_RD.shape[1])
    x_RD = x_RD.to(torch.float64) if x_RD.dtype == DTYPES[dtype] else x_RD
    rounding.add(x_RD, x_RD.to(DTYPES[dtype]))
    return summed([{name: tensor.numpy() for name, tensor in rounding.tensors().items()}])


def choose_dtype(x_RD: torch.Tensor) -> tuple[str, str]:
    """(dtype, why): the first of float16, bfloat16 and float32 that holds these rows at a cost
    below the limit, with room for larger ones."""
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
    """Lines for the user on what the dtype cost, where it is much."""
    if (
        stats.get("rounding_max", 0.0) <= ROUNDING_LIMIT
        and stats.get("underflow_share", 0.0) <= ROUNDING_LIMIT
    ):
        return []
    count, worst = stats["rounding_dimensions"], int(np.argmax(stats["rounding"]))
    what = (
        f"{spec.dtype} rounds {count:,} of {spec.d_in:,} dimensions by more than 5 % of their"
        " spread"
    )
    line = f"{what} (dimension {worst}: {_share(stats['rounding_max'])})"
    if stats["underflow_share"] > ROUNDING_LIMIT:
        line += f", and {stats['underflow_share']:.0%} of the values became 0"
    if spec.dtype == "float32":
        return [f"{line}; center and scale the data first"]
    advice = f"harvest with {opt('dtype', 'float32')} and {opt('overwrite', True)}"
    return [f"{line}; {advice}"]


def overflow_hint(x_RD: torch.Tensor, dtype: str) -> str:
    """What to store rows in that `dtype` does not hold."""
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
    """Per-dimension mean and std, the mean square norm, ||mean||/||std||, the rows far above the
    median norm, and what the dtype cost."""
    from saekit.store.shards import ShardFile

    total, squares, norms, roundings = 0.0, 0.0, [], []
    for shard in manifest.shards:
        arrays = ShardFile(path, shard).arrays
        total, squares = total + arrays["sum"], squares + arrays["sum_of_squares"]
        norms.append(arrays["norm"])
        roundings.append({name: arrays[name] for name in arrays if name.startswith("rounding.")})
    n, norm = manifest.rows, np.concatenate(norms)
    mean = total / n
    std = np.sqrt(np.maximum(squares / n - mean**2, 0))
    median = float(np.median(norm))
    # Neither shards of earlier versions nor those whose rows came in the stored dtype say what was
    # rounded.
    told = [rounding for rounding in roundings if rounding]
    rounding = summed(told) if told else {}
    return rounding | {
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
