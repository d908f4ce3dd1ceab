"""The frame of a chart as SVG text: title, two axes with round ticks, a legend, and the map from
data to pixels.

Only presentation attributes, no <style> and no ids, so that one page can hold many charts under any
content policy. Ink is currentColor; a color is a CSS variable with a default that has a contrast
above 3 to 1 on both white and near black. A page may set --series-0 ... --series-9 and --paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

from saekit.errors import DataError

# By a search for the largest minimum distance in OKLab (0.17) among colors of that contrast; the
# first ones suit a few series.
COLORS = (
    "#4878f8",
    "#b83800",
    "#00a830",
    "#b02888",
    "#b88818",
    "#00a0b0",
    "#c070e0",
    "#606800",
    "#f85870",
    "#606088",
)
PAPER = "var(--paper, Canvas)"
FONT = "system-ui, 'Liberation Sans', Arial, sans-serif"
# mean width in pixels of a letter at 12 pixels, a little generous: the renderer's font is not known
LETTER = 7.2
LONGEST_NAME = 28
TOP, BOTTOM = 62, 48


@dataclass
class Frame:
    """The plot area and what is drawn in it. Ranges are (low, high) in data units; y grows
    upwards."""

    title: str
    x_label: str
    y_label: str
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    legend: Sequence[tuple[str, str]] = ()
    """(name, color) of every series; empty: no legend."""
    log_x: bool = False
    equal: bool = False
    """One unit is equally long on both axes, as directions need."""
    width: int = 640
    height: int = 400
    marks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.x_range, self.y_range = _widened(self.x_range, self.log_x), _widened(self.y_range)
        self.y_ticks = linear_ticks(*self.y_range)
        self.left = 24 + round(
            LETTER * max((len(tick_text(t, self.y_ticks)) for t in self.y_ticks), default=0)
        )
        longest = max((len(shortened(name)) for name, _ in self.legend), default=0)
        self.right = self.width - (36 + round(LETTER * longest) if self.legend else 16)
        self.bottom = self.height - BOTTOM
        if self.equal:
            self._equalize()
        self.x_ticks = log_ticks(*self.x_range) if self.log_x else linear_ticks(*self.x_range)

    def _equalize(self) -> None:
        (x0, x1), (y0, y1) = self.x_range, self.y_range
        unit = min((self.right - self.left) / (x1 - x0), (self.bottom - TOP) / (y1 - y0))
        self.right, self.bottom = round(self.left + unit * (x1 - x0)), round(TOP + unit * (y1 - y0))
        self.height = self.bottom + BOTTOM

    def x(self, values: np.ndarray | float) -> np.ndarray:
        low, high = self.x_range
        if self.log_x:
            values, low, high = np.log10(values), math.log10(low), math.log10(high)
        return self.left + (np.asarray(values) - low) / (high - low) * (self.right - self.left)

    def y(self, values: np.ndarray | float) -> np.ndarray:
        low, high = self.y_range
        return self.bottom - (np.asarray(values) - low) / (high - low) * (self.bottom - TOP)

    def draw(self, mark: str) -> None:
        self.marks.append(mark)

    def svg(self, description: str) -> str:
        """The whole picture; `description` follows the title in the label for screen readers."""
        parts = [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}"'
                f' width="{self.width}" height="{self.height}" role="img"'
                f' aria-label="{escape(f"{self.title}. {description}")}" fill="none"'
                f' font-family="{FONT}" font-size="12">'
            ),
            text(16, 24, self.title, 'font-size="15" font-weight="600"'),
            *self._axes(),
            *self.marks,
            *self._legend(),
            "</svg>",
        ]
        return "\n".join(parts)

    def _axes(self) -> list[str]:
        soft, out = 'fill-opacity="0.75"', []
        for tick in self.y_ticks:
            y = float(self.y(tick))
            out.append(line(self.left, y, self.right, y, 0.13))
            out.append(
                text(
                    self.left - 8, y + 4, tick_text(tick, self.y_ticks), f'text-anchor="end" {soft}'
                )
            )
        for tick in self.x_ticks:
            x = float(self.x(tick))
            out.append(line(x, self.bottom, x, self.bottom + 4, 0.5))
            out.append(
                text(
                    x,
                    self.bottom + 18,
                    tick_text(tick, self.x_ticks, self.log_x),
                    f'text-anchor="middle" {soft}',
                )
            )
        out.append(line(self.left, self.bottom, self.right, self.bottom, 0.5))
        # horizontal, above its axis, so that it reads without turning the head
        out.append(text(16, TOP - 16, self.y_label, soft))
        out.append(
            text(
                (self.left + self.right) / 2,
                self.bottom + 38,
                self.x_label,
                f'text-anchor="middle" {soft}',
            )
        )
        return out

    def _legend(self) -> list[str]:
        out = []
        for i, (name, color) in enumerate(self.legend):
            y = TOP + 8 + 19 * i
            out.append(
                f'<rect x="{self.right + 14}" y="{y - 5}" width="10" height="10" rx="2"'
                f' fill="{color}"/>'
            )
            out.append(text(self.right + 30, y + 4, shortened(name)))
        return out


def text(x: float, y: float, content: str, attributes: str = "") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="currentColor" {attributes}>{escape(content)}</text>'
    )


def line(x0: float, y0: float, x1: float, y1: float, opacity: float) -> str:
    return (
        f'<path d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}" stroke="currentColor"'
        f' stroke-opacity="{opacity}"/>'
    )


def color(series: int) -> str:
    assert 0 <= series < len(COLORS)
    return f"var(--series-{series}, {COLORS[series]})"


def shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def extent(values: np.ndarray, what: str) -> tuple[float, float]:
    """(low, high) of the finite values. Raises DataError when there is none."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        raise DataError(f"{what}: no finite value to draw")
    return float(finite.min()), float(finite.max())


def padded(low: float, high: float, share: float = 0.04) -> tuple[float, float]:
    return low - share * (high - low), high + share * (high - low)


def linear_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten that lie in the range, at most `most` of them."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (power, 2 * power, 5 * power, 10 * power, 20 * power):
        # an end of the range that is a tick but for rounding keeps it
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten in the range; only the powers where it spans more than
    three."""
    steps = (1, 2, 5) if high / low <= 1e3 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [t for p in powers for s in steps if low <= (t := s * 10.0**p) <= high]


def tick_text(tick: float, ticks: Sequence[float], log: bool = False) -> str:
    """As many decimals as the step between ticks needs, with thousands separators; in scientific
    form where that would be long."""
    step = tick if log or len(ticks) < 2 else ticks[1] - ticks[0]
    if max(map(abs, ticks)) >= 1e7 or 0 < abs(step) < 1e-4:
        return f"{tick:g}"
    decimals = max(0, -math.floor(math.log10(abs(step)) + 1e-9)) if step else 0
    return f"{tick + 0.0:,.{decimals}f}".replace("-", "−")


def _widened(ends: tuple[float, float], log: bool = False) -> tuple[float, float]:
    """The range, widened where it is a single value."""
    low, high = ends
    if high > low:
        return low, high
    if log:
        return low / 2, high * 2
    half = abs(low) / 2 or 0.5
    return low - half, high + half
