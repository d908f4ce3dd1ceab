"""docs/guide.md: its commands run from top to bottom, and print what the page shows."""

from __future__ import annotations

import re

import guide
import pytest

PAGE = guide.PAGE.read_text()
BLOCKS = guide.blocks(PAGE)
NUMBER = re.compile(r"[+-]?\d[\d,]*(?:\.\d+)?")
RELATIVE, ABSOLUTE = 0.05, 0.02  # another processor adds in another order


def numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in NUMBER.findall(text)]


def assert_same(quoted: str, printed: str) -> None:
    """The same words and whole numbers; the same figures within the tolerances."""
    assert NUMBER.sub("#", quoted).split() == NUMBER.sub("#", printed).split()
    for ours, theirs in zip(NUMBER.findall(quoted), NUMBER.findall(printed), strict=True):
        if "." in ours:
            theirs = pytest.approx(float(theirs), rel=RELATIVE, abs=ABSOLUTE)
            assert float(ours) == theirs
        else:
            assert ours == theirs, "a latent, a position or a dose"


@pytest.mark.slow  # harvests, trains and steers a language model: three minutes
@pytest.mark.network_model
def test_the_commands_print_what_the_page_shows(tmp_path):
    for block in BLOCKS:
        output = guide.run(block, tmp_path)
        if block.quoted is not None:
            assert_same(block.quoted, guide.shown(block, output))
    assert "<svg" in (tmp_path / "steered" / "report.html").read_text()


def test_the_blocks_are_all_run():
    fences = re.findall(r"^```(\w+)$", PAGE, re.MULTILINE)
    assert fences.count("sh") + fences.count("python") == len(BLOCKS) > 8
    assert fences.count("text") == sum(block.quoted is not None for block in BLOCKS) > 5


def test_figures_in_the_prose_are_those_of_an_output():
    """Every number with a decimal point is a number of some block, rounded."""
    prose = re.sub(r"^```.*?^```", "", PAGE, flags=re.DOTALL | re.MULTILINE)
    printed = [abs(n) for block in BLOCKS if block.quoted for n in numbers(block.quoted)]
    figures = re.findall(r"\d+\.(\d+)", prose)
    assert len(figures) > 8
    for figure in re.finditer(r"\d+\.(\d+)", prose):
        places = len(figure[1])
        assert any(abs(value - float(figure[0])) <= 0.5001 * 10**-places for value in printed), (
            figure[0]
        )


def test_an_output_may_be_shown_in_part():
    whole = guide.Block("sh", "", "a\n")
    part = guide.Block("sh", "", "a\nb\n...\n")
    assert guide.shown(whole, "1\n2\n3\n") == "1\n2\n3\n"
    assert guide.shown(part, "1\n2\n3\n") == "1\n2\n...\n"


def test_what_a_command_prints_is_compared_with_the_page():
    assert_same("latent 3  +0.384", "latent 3  +0.391")
    with pytest.raises(AssertionError):
        assert_same("latent 3  +0.384", "latent 3  +0.484")
    with pytest.raises(AssertionError):
        assert_same("latent 2290  4", "latent 2291  4")
    with pytest.raises(AssertionError):
        assert_same("verdict no effect", "verdict an effect")
