"""The contour of a picture's strongest patches is seen on any color, in both themes: of the two
tones of its line one always has contrast, and both are painted."""

from __future__ import annotations

import base64
import io

import numpy as np
import page_fixture as fixture
import pytest
from PIL import Image
from test_explorer_browser import Site

from saekit.inspection.page import write_page

pytestmark = pytest.mark.browser

LEAST_CONTRAST = 3  # of what is drawn against what it is drawn on: WCAG 2.2, 1.4.11
COLORS = [(r, g, b) for r in (0, 128, 255) for g in (0, 128, 255) for b in (0, 128, 255)]
PICTURES = {"red": (220, 30, 30), "orange": (240, 122, 24), "black": (0, 0, 0), "white": (255,) * 3}


def luminance(color) -> float:
    share = np.asarray(color, float)[..., :3] / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(a, b):
    low, high = np.minimum(luminance(a), luminance(b)), np.maximum(luminance(a), luminance(b))
    return (high + 0.05) / (low + 0.05)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Site:
    """One latent with a picture of each color, of which the four patches in the middle are on."""
    out = tmp_path_factory.mktemp("contour")
    _, keys, pixels, labels = fixture.digit_images(60)
    (record,) = [r for r in fixture.image_records(3, keys, pixels, labels) if r.index == 1]
    grid = np.zeros((4, 4))
    grid[1:3, 1:3] = record.max
    images = {}
    for example, (name, color) in zip(record.examples, PICTURES.items()):
        stream = io.BytesIO()
        Image.new("RGB", (80, 80), color).save(stream, "PNG")
        images[name * 4] = stream.getvalue()
        example.image, example.values, example.source = name * 4, grid.ravel().tolist(), name
    record.examples = record.examples[: len(PICTURES)]
    assert all(example.group == "top" for example in record.examples)
    write_page([record], fixture.image_meta([record], 3, 960), images, out)
    return Site(out)


@pytest.mark.parametrize("dark", [False, True])
def test_one_tone_of_the_line_has_contrast_with_any_color(tab, site, dark):
    tab.view(1400, 900, dark)
    try:
        tab.open(site.url(1))
        strokes = tab.evaluate(
            "Array.from(document.querySelector('#top .outline').children,"
            " p => getComputedStyle(p).stroke)"
        )
        tones = [[int(n) for n in s.removeprefix("rgb(")[:-1].split(",")] for s in strokes]
        assert len(tones) == 2
        worst = min(max(contrast(tone, color) for tone in tones) for color in COLORS)
        assert worst >= LEAST_CONTRAST
    finally:
        tab.view(1400, 900)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("overlay", ["contour", "spotlight"])
@pytest.mark.parametrize("name", PICTURES)
def test_the_line_is_painted_in_both_tones(tab, site, name, overlay, dark):
    tab.view(1400, 900, dark)
    try:
        tab.open(site.url(1))
        tab.click(f"[data-sets-overlay='{overlay}']")
        place = list(PICTURES).index(name) + 1
        tab.point(f"#top li:nth-child({place}) .frame")
        box = tab.evaluate(
            f"(b => ({{x: b.x + scrollX, y: b.y + scrollY, width: b.width, height: b.height}}))"
            f"(document.querySelector('#top li:nth-child({place}) .frame').getBoundingClientRect())"
        )
        shot = tab.call("Page.captureScreenshot", clip={**box, "scale": 1})["data"]
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(shot))).convert("RGB"))
        # across the left side of the contour, at half the height
        height, width = picture.shape[:2]
        across = picture[height // 2, width // 4 - 5 : width // 4 + 6].astype(int)
        darkest, lightest = (across[f(across.sum(1))] for f in (np.argmin, np.argmax))
        assert contrast(darkest, lightest) > 15
        inside = picture[height // 2, width // 4 + 10]
        assert max(contrast(tone, inside) for tone in (darkest, lightest)) >= LEAST_CONTRAST
    finally:
        tab.view(1400, 900)
