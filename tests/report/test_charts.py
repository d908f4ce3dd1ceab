from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from saekit.errors import DataError
from saekit.report.axes import COLORS, Frame, linear_ticks, log_ticks, tick_text
from saekit.report.charts import field, histogram, lines, scatter

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg):
    return [t.text for t in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def numbers(path):
    return [float(n) for n in re.findall(r"-?\d+\.?\d*", path)]


def marks(svg, series):
    """Paths in the color of a series, filled or not."""
    return [
        p
        for p in ElementTree.fromstring(svg).iter(f"{SVG}path")
        if f"--series-{series}," in p.get("stroke", "")
    ]


def position_of_tick(svg, label):
    (found,) = [
        t
        for t in ElementTree.fromstring(svg).iter(f"{SVG}text")
        if t.text == label and t.get("font-weight") is None
    ]
    return float(found.get("x")), float(found.get("y"))


def luminance(color):
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("paper", ["#fcfbf9", "#131417"])
def test_every_colour_can_be_seen_on_light_and_on_dark_paper(paper):
    for color in COLORS:
        low, high = sorted((luminance(color), luminance(paper)))
        assert (high + 0.05) / (low + 0.05) >= 3, color


def test_ticks_are_round_and_within_the_range():
    assert linear_ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert linear_ticks(-0.3, 0.31) == pytest.approx([-0.2, 0, 0.2])
    assert linear_ticks(990, 1010) == [990, 995, 1000, 1005, 1010]
    assert log_ticks(1, 50) == [1, 2, 5, 10, 20, 50] and log_ticks(1, 1e6) == [
        10.0**p for p in range(7)
    ]
    for low, high in [(0, 1e-9), (-7, 3.3), (1e6, 1e6 + 3), (0.1, 0.7)]:
        ticks = linear_ticks(low, high)
        assert 2 <= len(ticks) <= 6 and low - 1e-9 <= ticks[0] and ticks[-1] <= high + 1e-9


def test_a_tick_shows_the_decimals_that_tell_it_from_the_next():
    assert tick_text(0.15, [0.1, 0.15, 0.2]) == "0.15" and tick_text(0, [0, 0.5, 1]) == "0.0"
    assert tick_text(-0.2, [-0.2, 0, 0.2]) == "−0.2" and tick_text(20_000, [0, 20_000]) == "20,000"
    assert (
        tick_text(0.01, [0.01, 0.1, 1.0], log=True) == "0.01"
        and tick_text(5, [1, 2, 5], log=True) == "5"
    )
    assert tick_text(2e-7, [0, 2e-7]) == "2e-07"


def test_data_lands_on_its_ticks():
    svg = lines({"a": ([1, 10, 100], [0.0, 0.5, 1.0])}, "t", "rows", "share", log_x=True)
    curve, dots = marks(svg, 0)
    xy = numbers(curve.get("d"))
    for i, (x, y) in enumerate([("1", "0.0"), ("10", "0.4"), ("100", "1.0")]):
        assert xy[2 * i] == pytest.approx(position_of_tick(svg, x)[0], abs=0.1)
        if i != 1:
            # text is set 4 px below its line
            assert xy[2 * i + 1] == pytest.approx(position_of_tick(svg, y)[1] - 4, abs=0.1)
    assert xy[3] == pytest.approx((xy[1] + xy[5]) / 2, abs=0.1)
    assert dots.get("d").count("M") == 3


def test_a_missing_value_breaks_the_line():
    svg = lines({"a": ([1, 2, 3, 4], [1.0, 2.0, math.nan, 4.0])}, "t", "x", "y")
    curve, dots = marks(svg, 0)
    assert re.sub(r"[\d. -]", "", curve.get("d")) == "MLM" and dots.get("d").count("M") == 3


def test_bars_are_as_high_as_their_counts():
    svg = histogram(
        {"normal": [4, 0, 2], "anomalous": torch.tensor([0, 1, 8])},
        [0, 1, 2, 3],
        "errors",
        "squared error",
    )
    (bars,) = marks(svg, 0)
    base = numbers(bars.get("d"))[1]
    tops = [float(v) for v in re.findall(r"V([\d.]+)H", bars.get("d"))]
    eight = position_of_tick(svg, "8")[1] - 4
    assert tops == pytest.approx(
        [base - (base - eight) / 2, base, base - (base - eight) / 4], abs=0.1
    )
    assert {"errors", "squared error", "rows", "normal", "anomalous"} <= set(texts(svg))
    assert "normal 6, anomalous 9 rows" in ElementTree.fromstring(svg).get("aria-label")


def test_each_class_has_its_colour_its_legend_and_its_name_among_the_points():
    points = np.array([[0.0, 0], [1, 0], [2, 0], [10, 5], [11, 5], [12, 9]])
    svg = scatter(points, torch.tensor([0, 0, 0, 10, 10, 10]), "map")
    assert len(list(ElementTree.fromstring(svg).iter(f"{SVG}rect"))) == 2
    assert [marks(svg, i)[0].get("d").count("M") for i in (0, 1)] == [3, 3] and not marks(svg, 2)
    bold = [
        t for t in ElementTree.fromstring(svg).iter(f"{SVG}text") if t.get("font-weight") == "700"
    ]
    assert [t.text for t in bold] == ["0", "10"]
    # the name stands at the median: on the middle point of three in a row
    assert float(bold[0].get("x")) == pytest.approx(numbers(marks(svg, 0)[0].get("d"))[3], abs=0.1)


def test_more_than_ten_classes_leave_the_rarest_grey():
    labels = [name for i, name in enumerate("abcdefghijklm") for _ in range(20 - i)]
    svg = scatter(torch.randn(len(labels), 2), labels, "map")
    assert "3 more" in texts(svg) and "k" not in texts(svg) and "j" in texts(svg)
    (grey,) = [
        p
        for p in ElementTree.fromstring(svg).iter(f"{SVG}path")
        if "color-mix" in p.get("stroke", "")
    ]
    assert grey.get("d").count("M") == 10 + 9 + 8


def test_points_without_labels_have_no_legend():
    svg = scatter(torch.randn(20, 2), None, "map")
    assert (
        not list(ElementTree.fromstring(svg).iter(f"{SVG}rect"))
        and marks(svg, 0)[0].get("d").count("M") == 20
    )


def test_arrows_point_up_where_the_second_value_grows_and_keep_their_ratio():
    at = np.array([[0.0, 0], [1, 0], [0, 1], [1, 1]])
    svg = field(at, np.array([[0.0, 2], [1, 0], [0, 0], [0, -1]]), "pull", background=at)
    arrows = [
        p
        for p in ElementTree.fromstring(svg).iter(f"{SVG}path")
        if p.get("stroke-linecap") == "round" and "l" in p.get("d")
    ]
    shafts = [numbers(s) for s in re.findall(r"M[^M]*", arrows[0].get("d"))]
    # two strokes of a head follow each shaft but the empty one
    shafts = [shafts[i] for i in (0, 3, 6, 7)]
    up, right, none, down = (shaft[2:] for shaft in shafts)
    assert up[0] == 0 and up[1] < 0 and right[0] > 0 and down[1] > 0 and none == [0, 0]
    assert -up[1] == pytest.approx(2 * right[0], abs=0.2) and right[0] == pytest.approx(
        down[1], abs=0.1
    )
    assert "first coordinate (longest arrow: 2)" in texts(svg)


def test_one_unit_is_as_long_on_both_axes_of_a_field():
    frame = Frame("t", "x", "y", (0.0, 4.0), (0.0, 1.0), equal=True)
    assert float(frame.x(1.0) - frame.x(0.0)) == pytest.approx(
        float(frame.y(0.0) - frame.y(1.0)), rel=0.02
    )


def test_names_cannot_leave_their_place():
    hostile = '</svg><script>alert("1")</script>&'
    charts = [
        scatter(torch.randn(4, 2), [hostile, "b", hostile, "b"], hostile, hostile, hostile),
        histogram({hostile: [1], "b": [2]}, [0, 1], hostile, hostile, hostile),
        lines({hostile: ([0, 1], [0, 1])}, hostile, hostile, hostile),
        field(torch.randn(4, 2), torch.randn(4, 2), hostile, None, hostile, hostile),
    ]
    for svg in charts:
        root = ElementTree.fromstring(svg)
        assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
            "svg",
            "text",
            "path",
            "rect",
        }
        assert (
            root.get("role") == "img"
            and root.get("aria-label").startswith(hostile)
            and hostile in texts(svg)
        )


def test_one_value_alone_can_be_drawn():
    for svg in (
        lines({"a": ([3], [7])}, "t", "x", "y"),
        lines({"a": ([3], [0])}, "t", "x", "y", log_x=True),
        scatter([[1.0, 1.0]], ["a"], "t"),
        histogram({"a": [0]}, [0, 1], "t", "x"),
        field([[1.0, 1.0]], [[0.0, 0.0]], "t"),
    ):
        assert "nan" not in svg and "inf" not in svg


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(DataError, match="11 series"):
        lines({str(i): ([0, 1], [0, 1]) for i in range(11)}, "t", "x", "y")
    with pytest.raises(DataError, match="logarithmic axis starts above 0"):
        lines({"a": ([0, 1], [0, 1])}, "t", "x", "y", log_x=True)
    with pytest.raises(DataError, match="2 x and 1 y of a"):
        lines({"a": ([0, 1], [0])}, "t", "x", "y")
    with pytest.raises(DataError, match="no finite value"):
        lines({"a": ([0, 1], [math.nan, math.nan])}, "t", "x", "y")
    with pytest.raises(DataError, match="3 counts of a for 3 edges"):
        histogram({"a": [1, 2, 3]}, [0, 1, 2], "t", "x")
    with pytest.raises(DataError, match=r"\(N,2\) finite"):
        scatter(torch.randn(4, 3), None, "t")
    with pytest.raises(DataError, match="3 labels for 4 points"):
        scatter(torch.randn(4, 2), ["a", "b", "c"], "t")
