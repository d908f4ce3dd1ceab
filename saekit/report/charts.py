"""Charts as SVG text: scatter, histogram, lines, vector field. Data in, one string out;
saekit.report.axes draws the frame.

Not matplotlib: these few charts need no 50 MB of dependencies, follow the page's light or dark
colors, and stay sharp. Each has at most ten colors, as many as can be told apart; text is escaped,
since names come from data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from saekit.errors import DataError
from saekit.report.axes import COLORS, PAPER, Frame, color, extent, padded, text

Values = Sequence[float] | torch.Tensor | np.ndarray

# classes without a color of their own
OTHERS = "color-mix(in srgb, currentColor 30%, transparent)"
SHORT = 4  # letters of a name that fits among the points


def scatter(
    points: Values,
    labels: Sequence | None,
    title: str,
    x_label: str = "first direction",
    y_label: str = "second direction",
) -> str:
    """Points (N,2), colored by label. Names of up to four letters are also written at the
    median of their points, so that digits can be read without the legend.

    Beyond ten labels the ten most frequent keep a color and the others are gray. Labels None: one
    color, no legend. Raises DataError.
    """
    points = _points(points)
    names = _names(labels, len(points))
    shown = _most_frequent(names)
    legend = [(name, color(i)) for i, name in enumerate(shown)]
    rest = len(set(names)) - len(shown)
    if rest:
        legend.append((f"{rest} more", OTHERS))
    x_range, y_range = (padded(*extent(points[:, i], title)) for i in (0, 1))
    frame = Frame(title, x_label, y_label, x_range, y_range, legend if len(legend) > 1 else ())
    names = np.array(names)
    radius = 5 if len(points) <= 2000 else 3.5
    if rest:
        frame.draw(_dots(frame, points[~np.isin(names, shown)], OTHERS, radius, 1))
    for name, hue in legend[: len(shown)]:
        frame.draw(_dots(frame, points[names == name], hue, radius, 0.85))
    if len(legend) > 1 and max(map(len, shown)) <= SHORT:
        for name in shown:
            x, y = np.median(points[names == name], axis=0)
            halo = (
                f'text-anchor="middle" font-weight="700" font-size="14" stroke="{PAPER}"'
                ' stroke-width="4" paint-order="stroke"'
            )
            frame.draw(text(float(frame.x(x)), float(frame.y(y)) + 5, name, halo))
    return frame.svg(
        f"Scatter of {len(points):,} points in {len(set(names.tolist())):,} classes; {x_label} by"
        f" {y_label}."
    )


def histogram(
    counts: Mapping[str, Values], edges: Values, title: str, x_label: str, y_label: str = "rows"
) -> str:
    """Counts by name over common edges, as overlaid steps. Raises DataError (lengths differ, more
    than ten series)."""
    edges = _vector(edges)
    series = {name: _vector(values) for name, values in counts.items()}
    for name, values in series.items():
        if len(values) != len(edges) - 1:
            raise DataError(f"{title}: {len(values)} counts of {name} for {len(edges)} edges")
    highest = max((float(values.max()) for values in series.values()), default=0.0)
    frame = Frame(
        title,
        x_label,
        y_label,
        extent(edges, title),
        (0.0, 1.05 * highest or 1.0),
        _legend(series, title),
    )
    base = frame.bottom
    for i, values in enumerate(series.values()):
        x, y = frame.x(edges), frame.y(values)
        steps = "".join(f"V{top:.1f}H{right:.1f}" for top, right in zip(y, x[1:]))
        path = f"M{x[0]:.1f} {base}{steps}V{base}"
        frame.draw(
            f'<path d="{path}" fill="{color(i)}" fill-opacity="0.35" stroke="{color(i)}"'
            ' stroke-width="1.5"/>'
        )
    totals = ", ".join(f"{name} {values.sum():,.0f}" for name, values in series.items())
    return frame.svg(f"Histogram of {x_label}: {totals} {y_label}.")


def lines(
    series: Mapping[str, tuple[Values, Values]],
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
) -> str:
    """A line with dots for each name, through its (xs, ys) in the order given; a value that is not
    finite breaks it.

    Raises DataError (lengths differ, more than ten series, x <= 0 on a logarithmic axis).
    """
    drawn = {name: (_vector(xs), _vector(ys)) for name, (xs, ys) in series.items()}
    for name, (xs, ys) in drawn.items():
        if len(xs) != len(ys):
            raise DataError(f"{title}: {len(xs)} x and {len(ys)} y of {name}")
        if log_x and (xs <= 0).any():
            raise DataError(
                f"{title}: x of {name} reaches {xs.min():g}, a logarithmic axis starts above 0",
                "log_x=False",
            )
    legend = _legend(drawn, title)
    x_range = extent(np.concatenate([xs for xs, _ in drawn.values()] or [np.empty(0)]), title)
    y_range = padded(*extent(np.concatenate([ys for _, ys in drawn.values()]), title))
    frame = Frame(title, x_label, y_label, x_range, y_range, legend, log_x=log_x)
    for i, (xs, ys) in enumerate(drawn.values()):
        finite = np.isfinite(xs) & np.isfinite(ys)
        path = "".join(
            f"{'L' if j and finite[j - 1] else 'M'}{x:.1f} {y:.1f}"
            for j, (x, y) in enumerate(zip(frame.x(xs), frame.y(ys)))
            if finite[j]
        )
        frame.draw(
            f'<path d="{path}" stroke="{color(i)}" stroke-width="2" stroke-linejoin="round"/>'
        )
        frame.draw(_dots(frame, np.stack([xs[finite], ys[finite]], 1), color(i), 6, 1))
    return frame.svg(f"{y_label} by {x_label} of {', '.join(drawn)}.")


def field(
    points: Values,
    vectors: Values,
    title: str,
    background: Values | None = None,
    x_label: str = "first coordinate",
    y_label: str = "second coordinate",
) -> str:
    """Arrows (N,2) at points (N,2) over `background` points; one unit is equally long on both axes.

    All lengths have one scale, chosen so that the longest arrow spans a cell of the grid; the axis
    says how long it is. Raises DataError.
    """
    points, vectors = _points(points), _points(vectors)
    if len(points) != len(vectors):
        raise DataError(f"{title}: {len(vectors)} vectors at {len(points)} points")
    dots = np.empty((0, 2)) if background is None else _points(background)
    everything = np.concatenate([points, dots])
    longest = float(np.linalg.norm(vectors, axis=1).max())
    x_range, y_range = (padded(*extent(everything[:, i], title)) for i in (0, 1))
    frame = Frame(
        title,
        f"{x_label} (longest arrow: {longest:.3g})",
        y_label,
        x_range,
        y_range,
        equal=True,
        height=560,
    )
    if len(dots):
        frame.draw(_dots(frame, dots, color(0), 4, 0.8))
    start = np.stack([frame.x(points[:, 0]), frame.y(points[:, 1])], 1)
    # as if on an even grid over their own extent: the side of one cell
    cell = np.sqrt(np.prod(np.ptp(start, axis=0)) / max(len(points) - 1, 1)) or 20.0
    shift = vectors * [1, -1] * (0.95 * cell / longest if longest > 0 else 0.0)
    frame.draw(
        f'<path d="{_arrows(start, shift)}" stroke="currentColor" stroke-opacity="0.85"'
        ' stroke-linecap="round"/>'
    )
    return frame.svg(
        f"{len(points):,} arrows over {len(dots):,} points; the longest is {longest:.3g} long."
    )


def _arrows(start: np.ndarray, shift: np.ndarray) -> str:
    """A path of shafts with two-stroke heads, a third of the arrow and at most 5 pixels long."""
    path = []
    for (x, y), (dx, dy) in zip(start, shift):
        length = float(np.hypot(dx, dy))
        path.append(f"M{x:.1f} {y:.1f}l{dx:.1f} {dy:.1f}")
        if length > 1.5:  # shorter ones would be all head
            head = min(5.0, length / 3) / length
            for side in (0.6, -0.6):
                path.append(
                    f"M{x + dx:.1f} {y + dy:.1f}l{-head * (dx + side * dy):.1f}"
                    f" {-head * (dy - side * dx):.1f}"
                )
    return "".join(path)


def _dots(frame: Frame, points: np.ndarray, hue: str, width: float, opacity: float) -> str:
    """All points as one path of round caps: a fifth of the text of as many circles."""
    path = "".join(
        f"M{x:.1f} {y:.1f}h0" for x, y in zip(frame.x(points[:, 0]), frame.y(points[:, 1]))
    )
    return (
        f'<path d="{path}" stroke="{hue}" stroke-width="{width}" stroke-linecap="round"'
        f' stroke-opacity="{opacity}"/>'
    )


def _legend(series: Mapping[str, object], title: str) -> list[tuple[str, str]]:
    if not 0 < len(series) <= len(COLORS):
        raise DataError(f"{title}: {len(series)} series; a chart tells 1 to {len(COLORS)} apart")
    return [(name, color(i)) for i, name in enumerate(series)]


def _names(labels: Sequence | None, rows: int) -> list[str]:
    if labels is None:
        return [""] * rows
    plain = labels.tolist() if isinstance(labels, (torch.Tensor, np.ndarray)) else labels
    names = [str(label) for label in plain]
    if len(names) != rows:
        raise DataError(f"{len(names)} labels for {rows} points")
    return names


def _most_frequent(names: list[str]) -> list[str]:
    return in_order(name for name, _ in Counter(sorted(names)).most_common(len(COLORS)))


def in_order(names: Iterable[str]) -> list[str]:
    """Labels that are numbers in their order, then words in theirs."""
    return sorted(
        names, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)
    )


def _vector(values: Values) -> np.ndarray:
    values = values.detach().cpu() if isinstance(values, torch.Tensor) else values
    return np.asarray(values, np.float64).reshape(-1)


def _points(values: Values) -> np.ndarray:
    values = values.detach().cpu() if isinstance(values, torch.Tensor) else values
    points = np.asarray(values, np.float64)
    pairs = points.ndim == 2 and points.shape[1] == 2 and len(points) > 0
    if not pairs or not np.isfinite(points).all():
        raise DataError(f"points of shape {points.shape}: expected (N,2) finite numbers")
    return points
