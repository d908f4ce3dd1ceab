"""Runs that differ by the seed alone, taken together: means and spread of their figures, and which
settings no other one beats."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

FIGURES = ("fvu", "l0", "dead", "dead_train")


@dataclass(frozen=True)
class MemberResult:
    name: str
    group: str
    path: str
    settings: dict[str, Any]
    metrics: dict[str, float | None] | None
    """As `train` gives them; None: the run failed."""
    error: str | None = None


@dataclass(frozen=True)
class Group:
    name: str
    sparsity: str
    seeds: int
    fvu: float
    """Means over the seeds."""
    l0: float | None
    dead: float | None
    dead_train: float | None
    fvu_spread: float | None
    """Standard deviations over the seeds; None for one."""
    l0_spread: float | None
    best: bool
    """No other setting is as good in fvu and l0 and better in one of them."""


def groups_of(results: Sequence[MemberResult]) -> list[Group]:
    """Members that came to an end, by group, in the order of the grid."""
    names = list(dict.fromkeys(result.group for result in results))
    groups = [
        _group(name, [result for result in results if result.group == name]) for name in names
    ]
    return [dataclasses.replace(group, best=_unbeaten(group, groups)) for group in groups]


def _group(name: str, members: Sequence[MemberResult]) -> Group:
    values = {
        figure: [m.metrics[figure] for m in members if m.metrics.get(figure) is not None]
        for figure in FIGURES
    }
    mean = {figure: statistics.fmean(found) if found else None for figure, found in values.items()}
    spread = {
        figure: statistics.stdev(found) if len(found) > 1 else None
        for figure, found in values.items()
    }
    sparsity = (
        members[0].settings.get("sparsity", "topk")
        if members[0].settings.get("model", "sae") == "sae"
        else members[0].settings["model"]
    )
    return Group(
        name,
        sparsity,
        len(members),
        **mean,
        fvu_spread=spread["fvu"],
        l0_spread=spread["l0"],
        best=False,
    )


def _unbeaten(group: Group, groups: Sequence[Group]) -> bool:
    if group.l0 is None:
        return False
    others = [other for other in groups if other is not group and other.l0 is not None]
    return not any(
        other.l0 <= group.l0
        and other.fvu <= group.fvu
        and (other.l0 < group.l0 or other.fvu < group.fvu)
        for other in others
    )
