"""The map of decoder directions in a browser: points are where the decoder says, pointer and keys
find them, filters dim them, and a large one is drawn within a frame or two."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import page_fixture as fixture
import pytest
import torch
from test_explorer_browser import Site, assert_quiet, number, shown_latent, text, wait_for
from test_filters_browser import choose

from saekit.inspection.map import DirectionMap, direction_map
from saekit.inspection.page import write_page

pytestmark = pytest.mark.browser
LATENTS, PAGED, WIDTH = 400, 12, 16


@dataclasses.dataclass(frozen=True)
class MappedSite(Site):
    map: DirectionMap
    starts: list[int]

    def pixel(self, tab, latent: int) -> tuple[float, float]:
        """Where a point stands in the window while the whole map is shown."""
        box = tab.evaluate(
            "(b => [b.x, b.y, b.width, b.height])(document.getElementById('map')"
            ".getBoundingClientRect())"
        )
        edge = tab.evaluate("document.getElementById('map').clientLeft")
        x, y, width, height = (*(n + edge for n in box[:2]), *(n - 2 * edge for n in box[2:]))
        xy = self.map.xy_N2
        low, high = xy.min(0), xy.max(0)
        scale = 0.94 * min(width / (high - low)[0], height / (high - low)[1])
        own = xy[self.map.latents.tolist().index(latent)] - (low + high) / 2
        return x + width / 2 + own[0] * scale, y + height / 2 - own[1] * scale

    def lonely(self) -> int:
        """The latent whose nearest other point is farthest away."""
        apart = np.linalg.norm(self.map.xy_N2[:, None] - self.map.xy_N2[None], axis=2)
        np.fill_diagonal(apart, np.inf)
        return int(self.map.latents[apart.min(1).argmax()])


def mapped(out: Path, latents: int, single_file: bool = False) -> MappedSite:
    records = list(fixture.text_records(range(PAGED), latents))
    starts = list(range(20, 60))
    meta = dataclasses.replace(
        fixture.text_meta(latents, range(PAGED)),
        score=[round(j / latents, 3) for j in range(latents)],
        starts=starts,
    )
    W = torch.randn(latents, WIDTH, generator=torch.Generator().manual_seed(0))
    found = direction_map(W * torch.linspace(2, 1, WIDTH), torch.tensor(meta.max) > 0, "pca")
    write_page(records, meta, {}, out, single_file=single_file, direction_map=found)
    return MappedSite(out, found, starts)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> MappedSite:
    return mapped(tmp_path_factory.mktemp("map"), LATENTS)


def open_map(tab, site: Site, latent: int | None = None) -> None:
    tab.open(site.url() + ("#/map" if latent is None else f"#/map/{latent}"))
    tab.wait("document.getElementById('map') && performance.getEntriesByName('map').length")


def move(tab, kind: str, x: float, y: float) -> None:
    buttons = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
    tab.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **buttons)


def current(tab) -> int:
    return int(text(tab, "#map-open").removeprefix("#"))


def test_points_are_where_the_decoder_says_and_open_their_latent(tab, site):
    open_map(tab, site)
    shares = [100 * share for share in site.map.shares]
    words = text(tab, "#map-lead").split("axes hold ")[1].replace(" % and ", " ").split(" % of")[0]
    assert [float(word) for word in words.split()] == [float(f"{share:.3g}") for share in shares]
    assert text(tab, "#map-lead").startswith(f"The {len(site.map.latents)} latents that fire")
    latent = site.lonely()
    move(tab, "mouseMoved", *site.pixel(tab, latent))
    assert current(tab) == latent
    line = text(tab, "#map-at")
    record = fixture.shape_of(latent)[0] / fixture.ROWS
    shown = number(line.split("density ")[1])
    assert shown == pytest.approx(float(f"{100 * float(f'{record:.4g}'):.4g}"), rel=1e-12)
    assert float(line.split("score ")[1]) == float(f"{round(latent / LATENTS, 3):.2g}")
    assert text(tab, "#tip").startswith(f"#{latent}")
    for kind in ("mousePressed", "mouseReleased"):
        move(tab, kind, *site.pixel(tab, latent))
    tab.wait(f"location.hash === '#/f/{latent}'")
    assert_quiet(tab, site)


def test_a_drag_moves_the_map_and_opens_nothing(tab, site):
    open_map(tab, site)
    latent = site.lonely()
    x, y = site.pixel(tab, latent)
    move(tab, "mousePressed", x, y)
    move(tab, "mouseMoved", x + 30, y + 10)
    move(tab, "mouseMoved", x + 60, y + 20)
    move(tab, "mouseReleased", x + 60, y + 20)
    assert tab.evaluate("location.hash") == "#/map"
    move(tab, "mouseMoved", x + 60, y + 20)
    assert current(tab) == latent  # it went along
    tab.click("#map-all")
    move(tab, "mouseMoved", *site.pixel(tab, latent))
    assert current(tab) == latent


def test_the_wheel_keeps_what_is_under_the_pointer(tab, site):
    open_map(tab, site)
    latent = site.lonely()
    x, y = site.pixel(tab, latent)
    tab.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=-400)
    move(tab, "mouseMoved", x + 1, y)
    assert current(tab) == latent


def test_arrows_go_to_the_nearest_point_and_enter_opens_it(tab, site):
    open_map(tab, site)
    tab.evaluate("document.getElementById('map').focus()")
    xy = dict(zip(site.map.latents.tolist(), site.map.xy_N2))
    tab.press("ArrowRight")
    before = current(tab)
    for key, (right, up) in {
        "ArrowRight": (1, 0), "ArrowUp": (0, 1), "ArrowLeft": (-1, 0), "ArrowDown": (0, -1),
    }.items():  # fmt: skip
        tab.press(key)
        dx, dy = xy[current(tab)] - xy[before]
        along, across = dx * right + dy * up, abs(dx * up) + abs(dy * right)
        assert along > 0 and across <= along
        before = current(tab)
    assert f"#{before}" in text(tab, "#tip")
    tab.press("Enter")
    tab.wait(f"location.hash === '#/f/{before}'")
    assert tab.evaluate("document.querySelector('.columns') !== null")


def test_filters_of_the_list_dim_points(tab, site):
    open_map(tab, site)
    everyone = site.map.latents.tolist()
    assert text(tab, "#map-shown") == f"{len(everyone)} of {len(everyone)} latents"
    tab.click("#not-bos")
    left = [j for j in everyone if j not in site.starts]
    assert text(tab, "#map-shown") == f"{len(left)} of {len(everyone)} latents"
    tab.evaluate(
        "(e => { e.value = '0.9'; e.dispatchEvent(new Event('input', {bubbles: true})); })"
        "(document.getElementById('least-score'))"
    )
    left = [j for j in left if round(j / LATENTS, 3) >= 0.9]
    assert text(tab, "#map-shown") == f"{len(left)} of {len(everyone)} latents"
    assert tab.evaluate("location.hash").startswith("#/map?")
    # a dimmed point is not pointed at, and keys pass over it
    move(tab, "mouseMoved", *site.pixel(tab, next(j for j in everyone if j not in left)))
    tab.evaluate("document.getElementById('map').focus()")
    for key in ("ArrowRight", "ArrowRight", "ArrowUp"):
        tab.press(key)
        assert current(tab) in left


def near_color(tab, site: MappedSite, latent: int, name: str) -> bool:
    """Whether a ring of this color of the theme is drawn round a point."""
    return colored(tab, site, latent, name) > 0


def colored(tab, site: MappedSite, latent: int, name: str) -> int:
    """Pixels near a point that have this color of the theme."""
    x, y = site.pixel(tab, latent)
    return tab.evaluate(
        "(() => { const map = document.getElementById('map');"
        " const probe = document.createElement('span');"
        f" probe.style.color = 'var(--{name})'; document.body.append(probe);"
        " const color = getComputedStyle(probe).color.match(/\\d+/g).slice(0, 3).map(Number);"
        " probe.remove(); const box = map.getBoundingClientRect();"
        " const scale = map.width / map.clientWidth;"
        f" const at = [{x} - box.x - map.clientLeft, {y} - box.y - map.clientTop];"
        " const data = map"
        ".getContext('2d').getImageData(at[0] * scale - 12, at[1] * scale - 12, 24, 24).data;"
        " let found = 0;"
        " for (let i = 0; i < data.length; i += 4)"
        " if (data[i + 3] > 150 && color.every((c, k) => Math.abs(c - data[i + k]) < 24))"
        " found += 1;"
        " return found; })()"
    )


@pytest.mark.parametrize("dark", [False, True])
def test_what_a_search_finds_stands_out_of_the_cloud(tab, site, dark):
    tab.view(1400, 900, dark)
    try:
        latent = site.lonely()
        open_map(tab, site)
        drawn = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        assert not near_color(tab, site, latent, "heat")
        choose(tab, "search", f"#{latent}")
        tab.evaluate(drawn)
        found = [j for j in site.map.latents.tolist() if str(j).startswith(str(latent))]
        assert text(tab, "#map-shown") == f"{len(found)} of {len(site.map.latents)} latents found"
        # a disc of 10 pixels with a ring of ink; the others have lost their color
        assert near_color(tab, site, latent, "heat") and near_color(tab, site, latent, "ink")
        assert colored(tab, site, latent, "heat") > 50
        x, y = site.pixel(tab, latent)
        apart = lambda j: np.hypot(*np.subtract(site.pixel(tab, j), (x, y)))
        other = next(j for j in site.map.latents.tolist() if apart(j) > 60 and j not in found)
        assert not near_color(tab, site, other, "cool")
        choose(tab, "search", "")
        tab.evaluate(drawn)
        assert near_color(tab, site, other, "cool") and not near_color(tab, site, latent, "heat")
    finally:
        tab.view(1400, 900)


def test_a_feature_is_marked_with_its_nearest_directions(tab, site):
    latent = 3
    tab.open(site.url(latent))
    wait_for(tab, latent)
    tab.click("#on-map")
    tab.wait("document.getElementById('map-open')")
    assert current(tab) == latent and tab.evaluate("location.hash") == f"#/map/{latent}"
    near = [n["index"] for n in next(fixture.text_records([latent], LATENTS)).neighbours]
    on_map = [j for j in near if j in site.map.latents.tolist()]
    assert on_map
    tab.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert near_color(tab, site, latent, "heat")
    assert all(near_color(tab, site, j, "link") for j in on_map)
    assert text(tab, ".map-legend").endswith(f"#{latent}its nearest directions, by cosine")


def test_the_list_is_the_map_in_text(tab, site):
    open_map(tab, site)
    tab.evaluate("document.getElementById('map-to-list').focus()")
    tab.press("Enter")
    assert tab.evaluate("document.activeElement.classList.contains('row')")
    label = tab.evaluate("document.getElementById('map').getAttribute('aria-label')")
    assert f"{len(site.map.latents)} latents" in label and "Arrows" in label
    tab.press("m")
    assert tab.evaluate("location.hash") == "#/map"


def test_the_map_of_a_single_file(tab, tmp_path):
    site = mapped(tmp_path, LATENTS, single_file=True)
    open_map(tab, site)
    latent = site.lonely()
    move(tab, "mouseMoved", *site.pixel(tab, latent))
    assert current(tab) == latent
    assert_quiet(tab, site)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [375, 1400])
def test_it_fits_and_is_drawn_in_the_colors_of_the_theme(tab, site, width, dark):
    tab.view(width, 800, dark)
    try:
        open_map(tab, site)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert near_color(tab, site, site.lonely(), "cool")
        buttons = tab.evaluate(
            "Array.from(document.querySelectorAll('.map-buttons button'), b => b.offsetHeight)"
        )
        assert min(buttons) >= 24
        if width == 375:  # the views are where a thumb is, list open or not
            links = (
                "Array.from(document.querySelectorAll('.thumb-bar > *:not([hidden])'), e =>"
                " [e.textContent, e.getBoundingClientRect().bottom, e.offsetHeight])"
            )
            for _ in range(2):
                shown = tab.evaluate(links)
                assert [name for name, *_ in shown] == ["Features", "Gallery", "Map"]
                assert all(740 < bottom <= 800 and height >= 44 for _, bottom, height in shown)
                tab.click("#open-list")
            tab.click("#open-list")
            tab.click(".thumb-bar a[href='#/map']")  # where one is already: it closes the list
            assert not tab.evaluate("document.body.classList.contains('list-open')")
        assert_quiet(tab, site)
    finally:
        tab.view(1400, 900)


def test_a_page_without_a_map_has_no_button(tab, tmp_path):
    records = list(fixture.text_records(range(3), 50))
    write_page(records, fixture.text_meta(50, range(3)), {}, tmp_path)
    site = Site(tmp_path)
    tab.open(site.url() + "#/map")
    assert tab.evaluate("document.getElementById('map-button').hidden")
    assert "without a map" in text(tab, "#feature")
    tab.open(site.url(1))
    assert shown_latent(tab) == 1 and tab.evaluate("document.getElementById('on-map') === null")


def frame_times(tab, frames: int = 12) -> list[float]:
    """Milliseconds of each redraw while the map is zoomed in and out."""
    tab.evaluate("document.getElementById('map').focus()")
    script = """(async () => {
      const times = [];
      for (let n = 0; n < FRAMES; n += 1) {
        const key = n % 4 < 2 ? '+' : '-';
        const press = new KeyboardEvent('keydown', { key, bubbles: true });
        document.getElementById('map').dispatchEvent(press);
        await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
        times.push(performance.getEntriesByName('map')[0].duration);
      }
      return times;
    })()"""
    return tab.evaluate(script.replace("FRAMES", str(frames)))


@pytest.mark.parametrize(
    "latents, most",
    [(12_000, 60), pytest.param(262_144, 120, marks=pytest.mark.slow)],
)
def test_a_large_map_is_drawn_at_once(tab, tmp_path, latents, most):
    site = mapped(tmp_path, latents)
    open_map(tab, site)
    times = frame_times(tab)
    assert min(times) < most, json.dumps(times)
    size = (tmp_path / "map" / "000.js").stat().st_size
    assert size < 6 * latents
