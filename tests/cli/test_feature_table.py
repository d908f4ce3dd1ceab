"""The table of `features` in terminals of different widths."""

from __future__ import annotations

import pytest
from saekit_cli.feature_table import feature_lines

from saekit.inspection.feature_rows import FeatureRow, FeatureRows

FIGURES = {"mean": 29.7, "share": 1.0, "lift": 533.0, "information": 0.656, "chance": 0.134}


def made_row(index: int, information: float, **more) -> FeatureRow:
    tokens = [" King", " king", " queen", " Captain", " kings"]
    figures = FIGURES | {"information": information}
    below = ["information"] if information <= FIGURES["chance"] else []
    row = {"label": "on ' King'", "labeled_by": "automatic", **more}
    return FeatureRow(
        index, 43.41, 43.41, 0.00188, row.pop("label"), tokens, 0.5, figures,
        below_chance=below, **row,
    )  # fmt: skip


ROWS = FeatureRows(
    [made_row(17472, 0.656), made_row(11, 0.3, raises=" Queen"), made_row(3, 0.1)], "information"
)


@pytest.mark.parametrize("width", [70, 80, 100, 120])
def test_it_fits(width):
    lines = "\n".join(feature_lines(ROWS, False, False, width)).splitlines()
    assert max(map(len, lines)) <= width
    header, first, second, *rest = lines
    # what the latent is, and what orders the rows, whatever the width
    assert "automatic label" in header and "information" in header and "on ' King'" in first
    assert "0.656" in first and second.startswith("11 ")
    assert not any(line.startswith("3 ") for line in rest)
    assert "1 of 3 latents not shown: no larger information than by chance" in rest
    assert ("lift" in header) == (width >= 100)
    missing = [name for name in ("max", "mean", "share", "lift") if name not in header.split()]
    assert not missing or rest[-1].startswith(f"no room for {', '.join(missing)}")


def test_a_pipe_gets_all_of_it():
    lines = "\n".join(feature_lines(ROWS, True, False, None)).splitlines()
    assert lines[0].split() == [
        "feature", "act", "max", "density", "score", "mean", "share", "lift", "information",
        "automatic", "label", "fires", "most", "on",
    ]  # fmt: skip
    assert "on ' King', raises ' Queen'" in lines[2]
    assert lines[2].endswith("' King'  ' king'  ' queen'  ' Captain'  ' kings'")


def test_who_says_it():
    rows = FeatureRows([made_row(1, 0.5), made_row(2, 0.4, label="kings", labeled_by="name")])
    header, first, second, *_ = feature_lines(rows, False, False, None)[0].splitlines()
    assert "automatic" not in header and "on ' King' (automatic)" in first
    assert "kings  " in second and "automatic" not in second


def test_a_figure_that_chance_reaches_is_marked():
    rows = FeatureRows([made_row(1, 0.5), made_row(2, 0.1)], "lift")
    lines = "\n".join(feature_lines(rows, False, False, None)).splitlines()
    assert "0.5 " in lines[1] and "0.1*" in lines[2] and lines[-1].startswith("* no larger")
