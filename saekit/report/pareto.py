"""The page of a sweep: error against sparsity, a plot and a table of its settings, and every
member's own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from saekit.measures.pareto import COLUMNS, Group, MemberResult
from saekit.models.metrics import METRICS
from saekit.report.axes import COLORS, PAPER, Frame, color, padded
from saekit.report.page import Panel, cell, document, figure, note, table
from saekit.types import ActivationSpec


def pareto_page(
    spec: ActivationSpec, groups: Sequence[Group], results: Sequence[MemberResult]
) -> str:
    """One HTML file: the plot of fvu against l0, the table, and every member's settings."""
    rows = [
        ("", _cells(group))
        for group in sorted(groups, key=lambda g: (g.l0 is None, g.l0 or 0.0, g.fvu))
    ]
    header = ("setting", "seeds", *COLUMNS.values())
    panels = [Panel("Error against sparsity", _plot(groups) + table(header, rows))]
    failed = [result for result in results if result.error]
    if failed:
        panels.append(
            Panel("Failed", "".join(note(f"{result.name}: {result.error}") for result in failed))
        )
    members = [("", [cell(r.name, "left"), cell(_settings(r.settings), "left")]) for r in results]
    panels.append(Panel("Members", table(("member", "settings"), members, left=2)))
    facts = [
        ("members", str(len(results))),
        ("data", str(spec.dataset)),
        ("model", spec.model),
        ("hook", spec.hook),
    ]
    lead = (
        "Held-out rows. Down and left is better; no other setting is as good as a ringed one in"
        " both and better in one of them."
    )
    numbers = {"groups": [dataclasses.asdict(group) for group in groups]}
    return document(f"Sweep · {spec.model} · {spec.hook}", lead, facts, panels, numbers)


def _cells(group: Group) -> list[str]:
    marked = "fvu" if group.best else None
    return [
        cell(group.name, "left"),
        cell(str(group.seeds)),
        *(
            cell(text, "best" if field == marked else "")
            for field, text in group.texts("–").items()
        ),
    ]


def _settings(settings: dict[str, Any]) -> str:
    return ", ".join(
        f"{name}={value}"
        for name, value in settings.items()
        if name not in ("model", "device", "save_seconds")
    )


def _plot(groups: Sequence[Group]) -> str:
    """A point for each setting with an l0 above 0, with bars of one standard deviation; settings of
    one sparsity have one color."""
    # what is drawn, and in which ranges
    drawn = [group for group in groups if group.l0 and math.isfinite(group.fvu)]
    if not drawn:
        return note("None of these has a number of active latents, so there is nothing to plot.")
    kinds = list(dict.fromkeys(group.sparsity for group in drawn))
    hues = {kind: color(i) if i < len(COLORS) else "currentColor" for i, kind in enumerate(kinds)}
    l0s = [group.l0 for group in drawn if group.l0]
    low, high = min(l0s), max(l0s)
    y_range = padded(
        min(g.fvu - (g.fvu_spread or 0) for g in drawn),
        max(g.fvu + (g.fvu_spread or 0) for g in drawn),
    )
    frame = Frame(
        "FVU against L0",
        "active latents per row (L0)",
        "fvu",
        (low / 1.15, high * 1.15),
        y_range,
        list(hues.items()),
        log_x=True,
    )
    # a line through the settings of each sparsity, and their points
    for kind, hue in hues.items():
        members = sorted(
            (group for group in drawn if group.sparsity == kind), key=lambda group: group.l0 or 0.0
        )
        if len(members) > 1:
            points = " ".join(f"{frame.x(g.l0 or 0.0):.1f},{frame.y(g.fvu):.1f}" for g in members)
            frame.draw(
                f'<polyline points="{points}" stroke="{hue}" stroke-opacity="0.5"'
                ' stroke-width="1.5"/>'
            )
        for group in members:
            frame.draw(_point(frame, group, hue))
    # in words, for screen readers
    described = "; ".join(
        f"{group.name}: l0 {METRICS['l0'].text(group.l0)}, fvu {METRICS['fvu'].text(group.fvu)}"
        for group in drawn
    )
    return figure(frame.svg(described), "Bars: one standard deviation over the seeds.")


def _point(frame: Frame, group: Group, hue: str) -> str:
    x, y = float(frame.x(group.l0 or 0.0)), float(frame.y(group.fvu))
    bars = ""
    if group.fvu_spread:
        top, bottom = (
            float(v)
            for v in frame.y(np.array([group.fvu + group.fvu_spread, group.fvu - group.fvu_spread]))
        )
        bars = f'<path d="M{x:.1f} {top:.1f}V{bottom:.1f}" stroke="{hue}" stroke-width="1.5"/>'
    ring = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7.5" stroke="currentColor" stroke-width="1.2"/>'
        if group.best
        else ""
    )
    return f'{bars}<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{hue}" stroke="{PAPER}"/>{ring}'
