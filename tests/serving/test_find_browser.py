"""The box of the served page: what it understands, its figures beside those of `features`, and its
keys."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import CPU, Running
from served_page import TEXT, Tab, figure

import saekit
from saekit.serving.workbench import open_workbench

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def run(indexed_run) -> Path:
    return indexed_run


@pytest.fixture(scope="module")
def url(run, made) -> Iterator[str]:
    with Running(open_workbench(run, [made.store], device=CPU)) as running:
        yield running.client.url


@pytest.fixture
def tab(browser, url) -> Iterator[Tab]:
    opened = Tab(browser, url)
    yield opened
    assert opened.problems == []
    opened.page.close()


def ask(tab: Tab, text: str, title: str) -> None:
    tab.page.fill("#search", text)
    tab.page.press("#search", "Enter")
    tab.page.wait_for_selector(f'#list-title:has-text("{title}")')


def chosen(tab: Tab, latent: int) -> None:
    """Its row is pressed and the panel has it."""
    tab.page.wait_for_selector(f'#detail:not([aria-busy]) h3:has-text("#{latent}")')
    pressed = tab.page.locator('#latents [aria-pressed="true"] .number')
    assert pressed.text_content() == f"#{latent}"


def numbers(tab: Tab) -> list[int]:
    return [int(text.removeprefix("#")) for text in tab.texts("#latents .number")]


def short(value: float) -> str:
    """Three significant digits, as the page writes them."""
    if value == 0:
        return "0"
    size = f"{abs(value):.2e}" if abs(value) < 1e-4 else f"{abs(value):#.3g}".rstrip(".")
    return f"−{size}" if value < 0 else size


def test_a_token_with_its_figures_and_chance(tab, run, made):
    ask(tab, "token:cat", "On cat")
    expected = saekit.features(run, made.store, token="cat", top=64)
    assert numbers(tab) == [row.index for row in expected]
    assert tab.texts("#latents .value") == [short(r.figures["information"]) for r in expected]
    lifts = [f"lift × {short(row.figures['lift'])}" for row in expected]
    assert tab.texts('#latents [data-fact="lift"]') == lifts
    chance = expected[0].figures["chance"]
    assert short(chance) in tab.texts("#list-note")[0]
    within = [r.figures["information"] <= chance for r in expected]
    assert any(within) and not all(within)
    shown = tab.page.locator("#latents li").evaluate_all(
        "rows => rows.map(row => row.classList.contains('within-chance'))"
    )
    assert shown == within
    # another order; the same question with its blank is another token, which this data has not
    tab.page.select_option("#order", "lift")
    by_lift = [r.index for r in saekit.features(run, made.store, token="cat", by="lift", top=64)]
    tab.page.wait_for_function(
        "first => document.querySelector('#latents .number').textContent === first",
        arg=f"#{by_lift[0]}",
    )
    assert numbers(tab) == by_lift
    tab.page.check("#not-bos")
    kept = saekit.features(run, made.store, token="cat", by="lift", not_bos=True, top=64)
    tab.page.wait_for_function(
        "n => document.querySelectorAll('#latents li').length === n", arg=len(kept)
    )
    assert numbers(tab) == [row.index for row in kept]


def test_a_sentence_and_a_contrast(tab, run, made):
    ask(tab, TEXT, "Strongest in this text")
    by_share = saekit.features(run, made.store, text=TEXT, sort="share", top=64)
    assert numbers(tab) == [row.index for row in by_share]
    assert all(share.endswith(" %") for share in tab.texts("#latents .value"))
    tab.page.select_option("#order", "max")
    tab.page.wait_for_selector("#latents .value:not(:has-text('%'))")
    expected = saekit.features(run, made.store, text=TEXT, sort="act", top=64)
    assert numbers(tab) == [row.index for row in expected]
    assert tab.texts("#latents .value") == [figure(row.act) for row in expected]
    assert tab.texts("#latents .facts .chip") == [r.at.replace(" ", "·") for r in expected]
    ask(tab, "the cat sat versus: the dog ran", "More in the first text")
    contrast = saekit.features(
        run, made.store, text="the cat sat", versus="the dog ran", by="max", top=64
    )
    assert numbers(tab) == [row.index for row in contrast]
    assert tab.texts("#latents .value") == [figure(r.figures["difference"]) for r in contrast]


def test_what_is_near_a_latent_by_keyboard(tab, run, made):
    latent = saekit.features(run, made.store, text="cat", sort="act")[0].index
    tab.page.keyboard.press("/")
    tab.page.keyboard.type(f"near:#{latent}")
    tab.page.wait_for_selector('#list-note:has-text("Press Enter for latents near")')
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector(f'#list-title:has-text("Near #{latent}")')
    expected = saekit.features(run, made.store, near=latent, top=64)
    assert numbers(tab) == [row.index for row in expected]
    assert tab.texts("#latents .value") == [short(r.figures["cosine"]) for r in expected]
    # the list by arrows, a latent by Enter, and back
    tab.page.keyboard.press("ArrowDown")
    tab.page.keyboard.press("ArrowDown")
    assert tab.page.locator(":focus .number").text_content() == f"#{expected[1].index}"
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector(f'#detail:not([aria-busy]) h3:has-text("#{expected[1].index}")')
    tab.page.keyboard.press("ArrowUp")
    tab.page.keyboard.press("ArrowUp")
    assert tab.page.evaluate("document.activeElement.id") == "search"
    # asked and answered: Enter opens the first
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector(f'#detail:not([aria-busy]) h3:has-text("#{expected[0].index}")')
    tab.page.keyboard.press("Escape")
    tab.page.wait_for_selector('#list-title:has-text("Worth reading first")')
    assert tab.page.locator("#orders").is_hidden()


def test_words_of_a_description_and_that_nobody_described_anything(tab, run, made):
    ask(tab, "explained: cat dogs", "Described by cat dogs")
    expected = saekit.features(run, made.store, explained="cat dogs", top=64)
    assert numbers(tab) == [row.index for row in expected]
    assert tab.texts("#latents .value") == [short(r.figures["match"]) for r in expected]
    words = [f"words {r.figures['words']:.0f}" for r in expected]
    assert tab.texts('#latents [data-fact="words"]') == words
    assert "This checkpoint has no names, notes or explanations" in tab.texts("#list-note")[0]
    assert tab.page.locator("#order").is_hidden()  # there is one order
    # the other questions still have theirs
    ask(tab, "token:cat", "On cat")
    assert tab.page.locator("#order").is_visible()


def test_a_word_leads_to_other_questions(tab, run, made):
    tab.page.fill("#search", "dog")
    tab.page.wait_for_selector('#list-note:has-text("Or ask for")')
    tab.page.click('#list-note button:has-text("token “dog”")')
    tab.page.wait_for_selector('#list-title:has-text("On dog")')
    assert tab.page.input_value("#search") == "token:dog"
    expected = saekit.features(run, made.store, token="dog", top=64)
    assert numbers(tab) == [row.index for row in expected]


def test_what_is_wrong_is_said_in_the_note(browser, url):
    tab = Tab(browser, url)
    for text, words in [
        ("token:Dog", "spaces and capitals count"),
        ("near:999", "this dictionary has 64"),
        ("label:cat", "no labels"),
    ]:
        tab.page.fill("#search", text)
        tab.page.press("#search", "Enter")
        tab.page.wait_for_selector(f'#list-note:has-text("{words}")')
    tab.page.fill("#search", "near:cat")
    tab.page.wait_for_selector('#list-note:has-text("takes the number of a latent")')
    # a refusal is a line on the console, and nothing else is
    assert [text for text in tab.problems if "400" not in text] == []
    tab.page.close()


def test_a_number_and_steering_move_the_panel(tab):
    tab.read()
    for latent in (7, 12):
        tab.page.fill("#search", f"#{latent}")
        chosen(tab, latent)
        assert tab.texts("#shading span")[0] == f"#{latent}"
    tab.page.fill("#search", "near:7")
    tab.page.press("#search", "Enter")
    tab.page.wait_for_selector('#list-title:has-text("Near #7")')
    (first, second, *_) = numbers(tab)
    tab.page.locator("#latents .add").nth(1).click()
    chosen(tab, second)
    tab.page.locator("#latents .add").nth(0).click()
    chosen(tab, first)
    # a row that is chosen stays so
    tab.page.click(f'#latents [data-latent="{first}"]')
    chosen(tab, first)
    tab.page.click("#clear-shading")
    assert tab.page.locator('#detail > *, [aria-pressed="true"][data-latent]').count() == 0


def test_names_and_notes_are_shown_and_found(browser, run, made, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    row = saekit.features(run, made.store, sort="score", top=1)[0]
    note = [{"index": row.index, "note": "only at the zoo"}]
    names = [{"index": row.index, "name": "Zoo Keepers"}]
    (folder / "names-topk.json").write_text(json.dumps({"names": names, "notes": note}))
    with Running(open_workbench(folder, [made.store], device=CPU)) as running:
        tab = Tab(browser, running.client.url)
        for words in ("zoo", "zoo keepers", "at the zoo"):
            tab.page.fill("#search", words)
            tab.page.wait_for_selector('#latents .own-label:has-text("Zoo Keepers")')
            assert numbers(tab) == [row.index]
        # two words may be a text too
        assert "Press Enter for latents that this text" in tab.texts("#list-note")[0]
        tab.page.fill("#search", str(row.index))
        chosen(tab, row.index)
        assert tab.texts("#detail .own-label") == ["Zoo Keepers"]
        assert tab.texts("#detail .own-note") == ["only at the zoo"]
        assert tab.texts("#detail .automatic-label span:last-child") == [row.label]
        assert tab.problems == []
        tab.page.close()


@pytest.mark.parametrize("dark", [False, True])
def test_answers_fit_a_phone(browser, url, dark):
    tab = Tab(browser, url, 375, dark)
    ask(tab, "token:cat", "On cat")
    width = tab.page.evaluate("document.documentElement.scrollWidth")
    assert width <= 375
    nameless = tab.page.locator("button, input, select").evaluate_all(
        "nodes => nodes.filter(n => n.checkVisibility() && !(n.ariaLabel || n.textContent.trim()"
        " || n.labels?.[0]?.textContent)).map(n => n.outerHTML)"
    )
    assert nameless == [] and tab.problems == []
    tab.page.close()
