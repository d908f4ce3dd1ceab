"""Reports on a telephone: a wide table scrolls in its frame, says so, keeps its first column."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from saekit.report.page import Panel, cell, document, note, table

pytestmark = pytest.mark.browser
WIDTH, COLUMNS = 375, 14


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    playwright = pytest.importorskip("playwright.sync_api")
    binary = shutil.which("chromium") or shutil.which("chromium-browser")
    if binary is None:
        pytest.skip("no Chromium on the PATH (Debian: apt-get install chromium)")
    header = ["", *(f"figure {n}" for n in range(COLUMNS))]
    names = ("a run", "a control with a long name 2048, k 32", "x" * 60)
    rows = [
        ("run", [cell(name, "left"), *(cell(f"{n}.1234") for n in range(COLUMNS))])
        for name in names
    ]
    small = table(("", "one"), [("run", [cell("a", "left"), cell("1")])])
    panels = [Panel("Figures", table(header, rows) + note("words " * 40)), Panel("Small", small)]
    file = tmp_path_factory.mktemp("narrow") / "report.html"
    file.write_text(document("A report", "lead", [("rows", "3")], panels, {}), encoding="utf-8")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": WIDTH, "height": 800})
        opened.goto(file.as_uri())
        yield opened
        browser.close()


def test_the_page_does_not_scroll_sideways_and_the_table_does(page):
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTH
    frame, content = page.evaluate(
        "(e => [e.clientWidth, e.scrollWidth])(document.querySelector('.wide'))"
    )
    assert frame <= WIDTH - 32 < content
    ends = page.evaluate("""(() => {
      const frame = document.querySelector('.wide');
      frame.scrollLeft = frame.scrollWidth;
      const box = (e) => e.getBoundingClientRect();
      return Array.from(frame.querySelectorAll('tbody tr'), (row) => [
        box(row.firstElementChild).left - box(frame).left,
        box(row.firstElementChild).width,
        box(frame).right - box(row.lastElementChild).right]);
    })()""")
    for first, width, last in ends:  # what the row is stays, and the last figure is reached
        assert abs(first) < 1 and abs(last) < 1 and width < 0.6 * WIDTH


def test_a_shadow_says_that_there_is_more(page):
    def edge(selector: str) -> float:
        """How much darker the last pixels of the frame are than those beside, 0 to 255."""
        box = page.locator(selector).bounding_box()
        clip = {"x": box["x"] + box["width"] - 3, "y": box["y"] + 2, "width": 2, "height": 8}
        inside = {**clip, "x": box["x"] + box["width"] - 60}
        return brightness(page, inside) - brightness(page, clip)

    page.evaluate("document.querySelector('.wide').scrollLeft = 0")
    assert edge("#Figures .wide, #figures .wide") > 10
    page.evaluate("(e => { e.scrollLeft = e.scrollWidth; })(document.querySelector('.wide'))")
    assert edge("#Figures .wide, #figures .wide") < 10
    assert edge("#Small .wide, #small .wide") < 10  # all of it is seen


def brightness(page, clip: dict[str, float]) -> float:
    page.evaluate("window.scrollTo(0, 0)")
    image = Image.open(io.BytesIO(page.screenshot(clip=clip, full_page=True)))
    return float(np.asarray(image.convert("L")).mean())
