"""Runs that differ only by the seed, as groups: means and spread of their metrics, and the settings
that no other setting beats."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from saekit.models.metrics import METRICS

SWEPT = ("fvu", "l0", "dead", "dead_train")  # metrics of which a group has the mean
# columns of a table of groups: field -> heading
COLUMNS = {
    "l0": "l0",
    "l0_spread": "±",
    "fvu": "fvu",
    "fvu_spread": "±",
    "dead": "dead",
    "dead_train": "dead_train",
}


@dataclass(frozen=True)
class MemberResult:
    name: str
    group: str
    path: str
    settings: dict[str, Any]
    metrics: dict[str, float | None] | None
    """Those of `train`; None: the run failed."""
    error: str | None = None


@dataclass(frozen=True)
class Group:
    name: str
    sparsity: str
    seeds: int
    fvu: float
    """fvu, l0, dead and dead_train are means over the seeds."""
    l0: float | None
    dead: float | None
    dead_train: float | None
    fvu_spread: float | None
    """Standard deviations over the seeds, also l0_spread; None for one seed."""
    l0_spread: float | None
    best: bool
    """No other setting is as good in fvu and l0 and better in one of them."""

    def texts(self, missing: str = "-") -> dict[str, str]:
        """The cells of its row under COLUMNS, by field."""
        return {
            field: METRICS[field.removesuffix("_spread")].text(getattr(self, field), missing)
            for field in COLUMNS
        }


def groups_of(results: Sequence[MemberResult]) -> list[Group]:
    """Finished members, by group, in the order of the grid."""
    names = list(dict.fromkeys(result.group for result in results))
    groups = [
        _group(name, [result for result in results if result.group == name]) for name in names
    ]
    return [dataclasses.replace(group, best=_unbeaten(group, groups)) for group in groups]


def _group(name: str, members: Sequence[MemberResult]) -> Group:
    # Mean and standard deviation over the seeds.
    finished = [member.metrics for member in members if member.metrics is not None]
    values = {
        metric: [value for metrics in finished if (value := metrics.get(metric)) is not None]
        for metric in SWEPT
    }
    means = {metric: statistics.fmean(of) if of else None for metric, of in values.items()}
    spread = {
        metric: statistics.stdev(of) if len(of) > 1 else None for metric, of in values.items()
    }
    # Members of a group have the same settings but for the seed.
    sparsity = (
        members[0].settings.get("sparsity", "topk")
        if members[0].settings.get("model", "sae") == "sae"
        else members[0].settings["model"]
    )
    assert means["fvu"] is not None, "finished members have one"
    return Group(
        name,
        sparsity,
        len(members),
        fvu=means["fvu"],
        l0=means["l0"],
        dead=means["dead"],
        dead_train=means["dead_train"],
        fvu_spread=spread["fvu"],
        l0_spread=spread["l0"],
        best=False,
    )


def _unbeaten(group: Group, groups: Sequence[Group]) -> bool:
    if group.l0 is None:
        return False
    others = [(g.l0, g.fvu) for g in groups if g is not group and g.l0 is not None]
    return not any(
        l0 <= group.l0 and fvu <= group.fvu and (l0 < group.l0 or fvu < group.fvu)
        for l0, fvu in others
    )
