"""Images: the latents of the patch under the cursor are those of the index; labels with their lift;
captions that fit."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import page_fixture as fixture
import pytest
import torch
from made_codes import planted
from made_index import index_of_entries
from test_explorer_browser import Site, assert_quiet, number, text, texts

import saekit
from saekit.inspection.labels import LEAST_IMAGES, LabelCounts
from saekit.inspection.page import write_page
from saekit.inspection.patches import KEPT, PatchLatents
from saekit.store.folder_kinds import PAGE
from saekit.store.reader import open_store

IMAGES, PATCHES, LATENTS = 60, 16, 12
LABELED = 3  # the latent of one label
NAME = "woman in motorized wheelchair facing right"
GROUPS = ["face-hand", "country-flag", "red"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(index, site, codes (rows, latents), labels): a page of digits whose patches have planted
    codes."""
    folder = tmp_path_factory.mktemp("patches")
    rng = np.random.default_rng(0)
    z = rng.integers(1, 80, (IMAGES * PATCHES, LATENTS)) / 7
    z *= rng.random(z.shape) < rng.random(LATENTS) / 2 + 0.2
    labels = [GROUPS[int(n)] for n in rng.choice(3, IMAGES, p=[0.2, 0.3, 0.5])]
    face = np.repeat([label == GROUPS[0] for label in labels], PATCHES)
    z[:, LABELED] = (rng.random(len(z)) < np.where(face, 0.1, 0.005)) * z[:, 0].clip(1)
    tokens = torch.zeros(len(z), dtype=torch.int64)
    spec = {"modality": "image", "grid": (4, 4)}
    codes = torch.from_numpy(z).float()
    pair = planted(folder, codes, tokens, PATCHES, labels, None, **spec)
    saekit.index(pair.run, pair.store)
    index = saekit.open_index(pair.run, pair.store)

    images, keys, pixels, digits = fixture.digit_images(IMAGES)
    records = fixture.image_records(LATENTS, keys, pixels, digits)
    records[0].examples[1].source = f"{NAME} #2"
    counts = LabelCounts(index)
    for record in records:
        record.data_labels = counts(record.index)
    meta = fixture.image_meta(records, LATENTS, IMAGES * PATCHES)
    meta = dataclasses.replace(meta, max=codes.amax(0).tolist())
    latents = PatchLatents(index, open_store(pair.store))
    write_page(records, meta, images, folder / "page", patches=latents)
    return index, Site(folder / "page"), z, labels


def shown_patch(tab) -> tuple[int, list[int], list[float], list[float]]:
    """(number of the patch, its latents, their values, lengths of their bars in percent)."""
    place = int(tab.evaluate("document.getElementById('patch-latents').dataset.place"))
    latents = [int(t.removeprefix("#")) for t in texts(tab, "#patch-latents li > :first-child")]
    bars = "Array.from(document.querySelectorAll('#patch-latents .bar-fill'), b => b.style.width)"
    widths = [float(width.removesuffix("%")) for width in tab.evaluate(bars)]
    return place, latents, [number(t) for t in texts(tab, "#patch-latents .value")], widths


def of_matrix(z, image: int, patch: int) -> list[tuple[int, float]]:
    row = z[image * PATCHES + patch].astype(np.float32)
    order = sorted(np.flatnonzero(row).tolist(), key=lambda j: (-row[j], j))[:KEPT]
    return [(j, float(f"{row[j]:.3g}")) for j in order]


def test_the_patch_under_the_cursor_says_its_latents(tab, made):
    _, site, z, _ = made
    record = site.records[1]
    example = record.examples[0]
    tab.open(site.url(1))
    tab.click("#top .frame")
    tab.wait("document.querySelector('#patch-latents li')")
    # at first the patch of the activation that the example is shown for
    largest = z.max(0)
    for patch in (example.position, *range(PATCHES)):
        if patch != example.position or shown_patch(tab)[0] != patch:
            point_at(tab, patch)
        place, latents, values, widths = shown_patch(tab)
        assert place == patch
        expected = of_matrix(z, example.example_id, patch)
        assert list(zip(latents, values)) == expected
        shares = [100 * value / float(f"{largest[j]:.4g}") for j, value in expected]
        assert widths == pytest.approx(shares, rel=1e-3)
        assert f"row {patch // 4}, column {patch % 4}" in text(tab, "#patch-latents h3")
    # what is modal covers the page, not the tip
    assert tab.evaluate("document.getElementById('tip').closest('dialog').id") == "zoom"
    tab.press("Escape")
    tab.wait("!document.getElementById('tip').closest('dialog')")
    assert_quiet(tab, site)


def point_at(tab, patch: int, kind: str = "mouseMoved") -> None:
    box = tab.evaluate(
        "(b => [b.x, b.y, b.width, b.height])(document.querySelector('.zoomed .frame')"
        ".getBoundingClientRect())"
    )
    x = box[0] + (patch % 4 + 0.5) / 4 * box[2]
    y = box[1] + (patch // 4 + 0.5) / 4 * box[3]
    for event in [kind] if kind == "mouseMoved" else ["mousePressed", "mouseReleased"]:
        tab.call("Input.dispatchMouseEvent", type=event, x=x, y=y, button="left", clickCount=1)


def test_a_click_keeps_a_patch_and_its_latents_lead_to_their_pages(tab, made):
    _, site, z, _ = made
    image = site.records[1].examples[0].example_id
    tab.open(site.url(1))
    tab.click("#top .frame")
    tab.wait("document.querySelector('#patch-latents li')")
    point_at(tab, 5)
    point_at(tab, 5, "click")
    point_at(tab, 9)
    assert shown_patch(tab)[0] == 5
    assert len(texts(tab, ".zoomed .kept")) == 1
    # a click on another one keeps that, a second click frees it
    point_at(tab, 9, "click")
    assert shown_patch(tab)[0] == 9
    point_at(tab, 9, "click")
    point_at(tab, 2)
    assert shown_patch(tab)[0] == 2 and texts(tab, ".zoomed .kept") == []
    first = of_matrix(z, image, 2)[0][0]
    tab.click("#patch-latents a")
    tab.wait(f"document.getElementById('feature').dataset.latent === '{first}'")
    assert tab.evaluate("document.getElementById('zoom').open") is False


def test_the_arrows_read_an_enlarged_picture(tab, made):
    _, site, _, _ = made
    tab.open(site.url(1))
    tab.press("Tab")
    tab.evaluate("document.querySelector('#top .frame').focus()")
    tab.press("Enter")
    tab.wait("document.querySelector('#patch-latents li')")
    at = shown_patch(tab)[0]
    step = ("ArrowRight", 1) if at < PATCHES - 1 else ("ArrowLeft", -1)
    tab.press(step[0])
    assert shown_patch(tab)[0] == at + step[1]
    tab.press("Escape")


def test_all_four_arrows_go_on_from_a_picture_that_a_click_enlarged(tab, made):
    _, site, z, _ = made
    example = site.records[1].examples[0]
    tab.open(site.url(1))
    tab.click("#top .frame")
    tab.wait("document.querySelector('#patch-latents li')")
    assert tab.evaluate("document.activeElement.matches('.zoomed .frame')")
    point_at(tab, 5)
    steps = {"ArrowDown": 9, "ArrowRight": 10, "ArrowUp": 6, "ArrowLeft": 5}
    for key, expected in steps.items():
        tab.press(key)
        place, latents, values, _ = shown_patch(tab)
        assert place == expected
        assert list(zip(latents, values)) == of_matrix(z, example.example_id, expected)
    assert len(texts(tab, ".zoomed .at")) == 1
    # no row above the first: it stays
    tab.press("ArrowUp")
    tab.press("ArrowUp")
    assert shown_patch(tab)[0] == 1
    tab.press("Escape")
    assert_quiet(tab, site)


def tap(tab, patch: int) -> None:
    box = tab.evaluate(
        "(b => [b.x, b.y, b.width, b.height])(document.querySelector('.zoomed .frame')"
        ".getBoundingClientRect())"
    )
    at = {
        "x": box[0] + (patch % 4 + 0.5) / 4 * box[2],
        "y": box[1] + (patch // 4 + 0.5) / 4 * box[3],
    }
    tab.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[at])
    tab.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])


def test_a_tap_keeps_a_patch(tab, made):
    _, site, _, _ = made
    tab.call("Emulation.setTouchEmulationEnabled", enabled=True)
    try:
        tab.open(site.url(1))
        tab.click("#top .frame")
        tab.wait("document.querySelector('#patch-latents li')")
        for patch in (6, 13):
            tap(tab, patch)
            tab.wait(f"document.getElementById('patch-latents').dataset.place === '{patch}'")
            tab.wait("document.querySelectorAll('.zoomed .kept').length === 1")
        tap(tab, 13)
        tab.wait("!document.querySelector('.zoomed .kept')")
        tab.press("Escape")
    finally:
        tab.call("Emulation.setTouchEmulationEnabled", enabled=False)
    assert_quiet(tab, site)


@pytest.mark.parametrize(("width", "height"), [(375, 667), (1400, 500)])
def test_the_button_that_closes_an_enlarged_picture_is_in_view(tab, made, width, height):
    tab.open(made[1].url(0))
    tab.view(width, height)
    try:
        tab.click("#top .frame")
        tab.wait(
            "document.getElementById('zoom').open && document.querySelector('#patch-latents li')"
        )
        box = "(e => e.getBoundingClientRect())(document.querySelector('#zoom form button'))"
        inside = f"document.elementFromPoint({box}.x + 5, {box}.y + 5)?.textContent"
        for end in ("0", "1e6"):
            tab.evaluate(f"document.getElementById('zoom').scrollTop = {end}")
            assert tab.evaluate(f"{box}.bottom") <= height and tab.evaluate(inside) == "Close"
        tab.click("#zoom form button")
        assert not tab.evaluate("document.getElementById('zoom').open")
    finally:
        tab.view(1400, 900)


def test_a_page_of_pictures_speaks_of_labels(tab, made):
    _, site, _, _ = made
    tab.open(site.url())
    assert tab.evaluate("document.getElementById('search').placeholder") == "Index or label"
    assert "no common word" not in tab.evaluate("document.body.innerText")
    assert "no common label" in text(tab, "#feature")


def test_about_opens_at_its_top_and_the_header_fits(tab, made):
    _, site, _, _ = made
    box = "document.getElementById('{}').getBoundingClientRect()".format
    try:
        tab.view(1300, 400)
        tab.open(site.url())
        tab.evaluate("for (const b of document.querySelectorAll('.view-button')) b.hidden = false")
        assert tab.evaluate(f"{box('metrics')}.right <= {box('gallery-button')}.left") is True
        tab.click("#about-button")
        about = "document.getElementById('about')"
        assert tab.evaluate(f"{about}.scrollHeight > {about}.clientHeight") is True
        assert tab.evaluate(f"{about}.scrollTop") == 0
        tab.press("Escape")
        # with less room the last figures go, not the title
        tab.evaluate("document.getElementById('title').style.flex = '0 0 600px'")
        tab.wait("document.querySelector('#metrics > :last-child').style.visibility === 'hidden'")
        assert tab.evaluate(f"{box('metrics')}.right <= {box('gallery-button')}.left") is True
    finally:
        tab.view(1400, 900)


def test_labels_come_with_their_share_and_lift(tab, made):
    index, site, z, labels = made
    images = np.flatnonzero(z[:, LABELED].reshape(IMAGES, PATCHES).any(1)).tolist()
    found, every = Counter(labels[i] for i in images), Counter(labels)
    lift = {name: found[name] / len(images) / (every[name] / IMAGES) for name in found}
    chance = {name: every[name] * len(images) / IMAGES for name in found}
    told = [n for n in found if found[n] >= 3 and found[n] - chance[n] >= 3 * chance[n] ** 0.5]
    assert told == [GROUPS[0]]
    best = z[:, LABELED].reshape(IMAGES, PATCHES).max(1)
    top = sorted(images, key=lambda i: (-best[i], i))[:20]
    expected = {
        "labels": [
            {
                "label": GROUPS[0],
                "examples": found[GROUPS[0]],
                "strongest": sum(labels[i] == GROUPS[0] for i in top),
                "lift": pytest.approx(lift[GROUPS[0]]),
            }
        ],
        "examples": len(images),
        "strongest": len(top),
        "least": LEAST_IMAGES,
    }
    assert LabelCounts(index)(LABELED) == expected
    tab.open(site.url(LABELED))
    assert texts(tab, "#data-labels .data-label") == [GROUPS[0]]
    share, times = texts(tab, "#data-labels .value")
    assert number(share) == pytest.approx(100 * found[GROUPS[0]] / len(images), rel=5e-3)
    assert number(times.removeprefix("× ")) == pytest.approx(lift[GROUPS[0]], rel=5e-3)
    about = tab.evaluate("document.querySelector('#data-labels li').dataset.about")
    assert about.startswith(f"{found[GROUPS[0]]} of {len(images)} images, ")
    # a latent of chance has no such label
    by_chance = LabelCounts(index)(0)
    assert by_chance is not None and by_chance["labels"] == []
    tab.open(site.url(0))
    assert tab.evaluate("document.getElementById('data-labels')") is None


def test_labels_of_too_few_images_are_not_told(tab, made, tmp_path):
    """Latent 0 fires on one image fewer than are needed, latent 1 on as many; all have a label that
    few others have."""
    _, site, _, labels = made
    assert 0.5**LEAST_IMAGES <= 0.001 < 0.5 ** (LEAST_IMAGES - 1)
    faces = [i for i, label in enumerate(labels) if label == GROUPS[0]]
    few, enough = faces[: LEAST_IMAGES - 1], faces[:LEAST_IMAGES]
    latent = np.repeat([0, 1], [len(few), len(enough)])
    store = open_store(site.out.parent / "store")
    row = np.array([*few, *enough]) * PATCHES
    made_of = index_of_entries(tmp_path / "index", store, 2, row, latent, np.ones(len(row)))
    counts = LabelCounts(made_of)
    silent, told = counts(0), counts(1)
    assert silent is not None and told is not None
    assert (silent["labels"], silent["examples"]) == ([], LEAST_IMAGES - 1)
    assert [entry["label"] for entry in told["labels"]] == [GROUPS[0]]
    assert told["labels"][0]["examples"] == told["examples"] == LEAST_IMAGES

    images, keys, pixels, digits = fixture.digit_images(60)
    records = fixture.image_records(3, keys, pixels, digits)
    top = [e.label for e in records[2].examples if e.group == "top"]
    of_digits = told | {"labels": [told["labels"][0] | {"label": top[0]}]}
    for record, found in zip(records, (silent, told, of_digits)):
        record.data_labels = found
    write_page(records, fixture.image_meta(records, 3, 960), images, tmp_path / "page")
    tab.open(Site(tmp_path / "page").url(0))
    said = f"Too few images to say: it is active in {len(few)}, and {LEAST_IMAGES} are needed."
    assert text(tab, "#data-labels .note") == said
    assert texts(tab, "#data-labels .data-label") == []
    tab.open(Site(tmp_path / "page").url(1))
    assert texts(tab, "#data-labels .data-label") == [GROUPS[0]]
    # the sentence counts the pictures that are above it
    tab.open(Site(tmp_path / "page").url(2))
    assert len(texts(tab, "#top li .data-label")) == len(top) > top.count(top[0]) > 0
    assert text(tab, "#label-figures") == (
        f"Active in {told['examples']} images; of the {len(top)} top examples shown,"
        f" {top.count(top[0])} have the first label."
    )
    assert_quiet(tab, Site(tmp_path / "page"))


@pytest.mark.parametrize("width", [375, 1400])
def test_captions_have_two_lines_and_fit_their_picture(tab, made, width):
    _, site, _, _ = made
    tab.view(width, 800)
    try:
        tab.open(site.url(0))
        caption = "document.querySelector('#top li:nth-child(2) .data-label')"
        assert tab.evaluate(f"{caption}.textContent") == NAME
        lines = f"{caption}.clientHeight / parseFloat(getComputedStyle({caption}).lineHeight)"
        assert 1.5 < tab.evaluate(lines) <= 2.1
        edges = (caption, f"{caption}.closest('li')")
        right = [f"{edge}.getBoundingClientRect().right" for edge in edges]
        assert tab.evaluate(" <= ".join(right)) is True
        # the enlarged picture has the whole name, and stays in the window
        tab.click("#top li:nth-child(2) .frame")
        assert text(tab, "#zoom-title") == NAME
        inside = "document.getElementById('zoom').getBoundingClientRect().right <= innerWidth"
        assert tab.evaluate(inside) is True
        tab.press("Escape")
    finally:
        tab.view(1400, 900)


def test_a_page_without_an_index_says_so(tab, tmp_path):
    images, keys, pixels, digits = fixture.digit_images(60)
    records = fixture.image_records(2, keys, pixels, digits)
    write_page(records, fixture.image_meta(records, 2, 960), images, tmp_path)
    tab.open(Site(tmp_path).url(0))
    tab.click("#top .frame")
    tab.wait("document.querySelector('#patch-latents .note')")
    assert "without an index" in text(tab, "#patch-latents .note")
    tab.press("Escape")
    assert_quiet(tab, Site(tmp_path))


def test_every_file_of_the_page_is_one_that_inspect_may_replace(made):
    _, site, _, _ = made
    names = [path.relative_to(site.out).as_posix() for path in site.out.rglob("*")]
    files = [name for name in names if (site.out / name).is_file()]
    assert "patches/000.js" in files and "patches/001.js" in files
    assert [name for name in files if not PAGE.files.fullmatch(name)] == []
