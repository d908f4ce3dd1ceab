"""Steering in the served page: units, controls, what stays after an error, and a narrow screen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from served import Client
from served_page import TEXT, Tab, figure

import saekit

pytestmark = pytest.mark.browser
LATENT = 3


@pytest.fixture
def tab(browser, client) -> Iterator[Tab]:
    opened = Tab(browser, client.url)
    yield opened
    # a refused question is a line on the console, and nothing else is
    assert [text for text in opened.problems if "400" not in text] == []
    opened.page.close()


def add(tab: Tab, latent: int = LATENT) -> None:
    tab.page.fill("#search", str(latent))
    tab.page.click(f'#latents li:has([data-latent="{latent}"]) .add')
    tab.page.fill("#prompt", "the cat")
    tab.page.fill("#new-tokens", "5")


def strength(tab: Tab) -> float:
    return float(tab.page.input_value("#edits input[type=number]"))


def end_of_slider(tab: Tab) -> float:
    return float(tab.page.get_attribute("#edits input[type=range]", "max"))


def maximum(client: Client) -> float:
    return client.send(f"latents/{LATENT}").json["brief"]["max"]


def written(tab: Tab) -> list[str]:
    """The texts and all figures of an answer."""
    tab.status("steer", "Done")
    return tab.texts(".written, #figures table, #figures .value")


def test_another_unit_is_the_same_edit(tab, client):
    largest = maximum(client)
    add(tab)
    tab.page.fill("#edits input[type=number]", "2.5")
    tab.page.click("#run")
    before, asked = written(tab), tab.requests.count(tab.page.url + "steer")
    tab.page.check("#raw")
    assert strength(tab) == pytest.approx(2.5 * largest, rel=1e-4)
    assert figure(largest)[:4] in tab.texts("#edits .unit")[0]
    tab.page.wait_for_timeout(400)  # longer than a slider rests before it runs
    assert tab.requests.count(tab.page.url + "steer") == asked
    tab.page.click("#run")
    tab.page.wait_for_selector('#figures .note:has-text("raw=True")')
    assert written(tab) == before
    tab.page.uncheck("#raw")
    assert strength(tab) == 2.5


def test_a_slider_fits_its_unit_and_a_number_may_be_beyond_it(tab, client):
    largest = maximum(client)
    add(tab)
    tab.page.uncheck("#live")
    assert (strength(tab), end_of_slider(tab)) == (1, 8)
    tab.page.check("#raw")
    assert 8 * largest <= end_of_slider(tab) < 8.3 * largest
    assert strength(tab) == pytest.approx(largest, rel=1e-4)
    tab.page.fill("#edits input[type=number]", "1000")
    assert float(tab.page.input_value("#edits input[type=range]")) == 1000 == strength(tab)
    # what is typed is sent, though no step of the slider reaches it
    tab.page.fill("#edits input[type=number]", "0.123")
    tab.page.click("#run")
    tab.page.wait_for_selector('#figures .note:has-text("0.123")')
    # one added now begins in this unit
    add(tab, 5)
    five = client.send("latents/5").json["brief"]["max"]
    shown = tab.page.input_value('#edits [data-latent="5"] input[type=number]')
    assert float(shown) == pytest.approx(five, rel=1e-4)


def test_controls_and_the_verdict_on_a_named_target(tab, made):
    add(tab)
    assert tab.page.is_hidden("#target")
    tab.page.check("#controls")
    tab.page.fill("#target", "dog")
    tab.page.click("#run")
    tab.page.wait_for_selector("#doses .verdict")
    tab.status("steer", "Done")
    expected = saekit.steer(
        made.run, prompt="the cat", latents={LATENT: 1.0}, dose=[0.5, 1.0], targets=["dog"],
        max_new_tokens=5,
    )  # fmt: skip
    signed = lambda value: f"{value:+.3f}".replace("-", "−")
    spread = lambda values: f"{signed(min(values))} to {signed(max(values))}"
    rows = [
        tab.texts(f"#doses tbody tr:nth-child({n + 1}) > *") for n in range(len(expected.doses))
    ]
    assert rows == [
        [
            f"{dose.strength:+g}",
            signed(dose.effect),
            spread(dose.random_directions),
            spread(dose.random_latents),
            figure(dose.kl),
            figure(dose.perplexity),
        ]
        for dose in expected.doses
    ]
    assert tab.texts("#doses .targets .chip") == ["dog"]
    assert tab.texts("#doses .verdict") == [f"Verdict: {expected.verdict}."]
    assert tab.texts("#scope") == [expected.scope]
    # of one latent only
    add(tab, 5)
    tab.page.click("#run")
    tab.status("steer", "“Compare with controls” takes one latent")
    assert tab.page.locator("#outcome > *").count() == 0


def test_what_answered_an_earlier_question_is_marked_or_gone(tab):
    tab.read()
    chosen = tab.texts("#detail h3")[0]
    tab.page.fill("#search", "near:999")
    tab.page.press("#search", "Enter")
    tab.page.wait_for_selector('#list-note:has-text("this dictionary has 64")')
    assert tab.page.locator("#latents li").count() == 0
    assert tab.texts("#detail.stale .stale-title") == ["Chosen before this question"]
    assert tab.texts("#detail h3") == [chosen]
    tab.page.fill("#search", "near:3")
    tab.page.press("#search", "Enter")
    tab.page.wait_for_selector('#list-title:has-text("Near #3")')
    assert tab.page.locator(".stale, .stale-title").count() == 0
    # a text that cannot be read
    tab.page.click("#back")
    tab.page.fill("#text", "")
    tab.page.click("#read")
    tab.status("read", "holds no token")
    assert tab.texts("#shown.stale .stale-title") == ["The text before"]
    assert tab.texts("#list-title") == ["Strongest in the text before"]
    assert tab.page.locator("#latents.stale li").count() > 0
    tab.read(TEXT)
    tab.status("read", "tokens")
    assert tab.page.locator(".stale, .stale-title").count() == 0
    # a prompt that cannot be steered
    add(tab)
    tab.page.click("#run")
    tab.status("steer", "Done")
    tab.page.fill("#prompt", "")
    tab.page.click("#run")
    tab.status("steer", "the prompt holds no token")
    assert tab.page.locator("#outcome > *").count() == 0


def test_what_is_wrong_with_a_field_has_its_name(tab):
    add(tab)
    for field, value, words in [
        ("#new-tokens", "", "“Tokens” needs a number"),
        ("#new-tokens", "2.5", "“Tokens” needs a whole number"),
        ("#new-tokens", "0", "“Tokens” 0 must be at least 1"),
        ("#temperature", "-1", "“Temperature” -1 must be 0 or more"),
        ("#seed", "-1", "“Seed” -1 must be 0 or more"),
    ]:
        before = tab.page.input_value(field)
        tab.page.fill(field, value)
        tab.page.click("#run")
        tab.status("steer", words)
        tab.page.fill(field, before)


def test_steering_is_near_the_chosen_latent_on_a_narrow_screen(browser, client):
    tab = Tab(browser, client.url, 375)
    tab.read()
    box = lambda selector: tab.page.locator(selector).bounding_box()
    bottom = lambda selector: box(selector)["y"] + box(selector)["height"]
    assert bottom("#latents") <= box("#steer")["y"] < bottom("#latents") + 80
    assert bottom("#steer") < box("#detail")["y"] < bottom("#latents") + 200
    tab.page.click("#detail button:has-text('Steer')")
    row = box("#edits li")
    assert 0 <= row["y"] and row["y"] + row["height"] <= 900
    assert tab.problems == []
    tab.page.close()


def test_the_bar_switches_the_theme_and_opens_the_keys(tab):
    theme = lambda: tab.page.evaluate("document.documentElement.dataset.theme")
    tab.page.click("#theme-button")
    assert theme() == "dark"
    tab.page.reload()
    tab.page.wait_for_selector("html[data-ready=yes]")
    assert theme() == "dark"
    tab.page.keyboard.press("t")
    assert theme() == "light"
    tab.page.click("#help-button")
    assert tab.page.is_visible("#help")
    tab.page.mouse.click(5, 5)  # beside it
    assert tab.page.is_hidden("#help")
