"""The served page in Debian's Chromium: reading, shading, search, steering, and what it refuses."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from served import CPU, Client, Running
from served_page import TEXT, Tab, figure

import saekit
from saekit.serving.workbench import open_workbench

pytestmark = pytest.mark.browser


@pytest.fixture
def tab(browser, client) -> Iterator[Tab]:
    opened = Tab(browser, client.url)
    yield opened
    assert opened.problems == []
    assert all(url.startswith((client.url, "data:")) for url in opened.requests)
    opened.page.close()


def test_the_figures_of_a_token_are_those_of_the_answer(tab, client, made):
    tab.read()
    answer = client.send("text", {"text": TEXT}).json
    (context,) = answer["contexts"]
    assert tab.texts("#contexts .token") == [t.lstrip(" ") and t for t in context["tokens"]]
    # the strongest in the text, as the library ranks them
    tab.page.select_option("#order", "max")
    ranked = saekit.features(made.run, made.store, text=TEXT, top=50)
    assert tab.texts("#latents .number") == [f"#{row.index}" for row in ranked]
    assert tab.texts("#latents .value") == [
        f"{figure(row.act)} of {figure(row.max)}" for row in ranked
    ]
    # under the pointer
    row = context["rows"][4]
    tab.page.hover(f'#contexts [data-at="{row["at"]}"]')
    assert tab.texts("#latents .number") == [f"#{latent}" for latent in row["latents"]]
    shown = [text.split(" of ")[0] for text in tab.texts("#latents .value")]
    assert shown == [figure(act) for act in row["acts"]]
    assert figure(row["acts"][0]) in tab.texts("#tip")[0]
    tab.page.mouse.move(2, 2)
    assert tab.texts("#latents .number") == [f"#{row.index}" for row in ranked]


def test_a_chosen_latent_shades_its_tokens(tab, client):
    tab.read()
    answer = client.send("text", {"text": TEXT}).json
    (latent, _), maximum = answer["orders"]["relative"][1], None
    maximum = answer["latents"][str(latent)]["max"]
    tab.page.click(f'#latents [data-latent="{latent}"]')
    acts = {
        row["at"]: dict(zip(row["latents"], row["acts"])).get(latent, 0.0)
        for row in answer["contexts"][0]["rows"]
    }
    for at, act in acts.items():
        shade = tab.page.locator(f'#contexts [data-at="{at}"]')
        share = float(shade.evaluate("node => node.style.getPropertyValue('--t')"))
        assert share == pytest.approx(min(act / maximum, 1), abs=6e-4)
        assert ("lit" in shade.get_attribute("class")) == (act > 0)
    tab.page.wait_for_selector(f'#detail:not([aria-busy]) h3:has-text("#{latent}")')
    record = client.send(f"latents/{latent}").json["record"]
    top = [e for e in record["examples"] if e["group"] == "top"]
    assert tab.texts("#detail .text-example > .act") == [figure(e["act"]) for e in top]
    assert tab.texts("#detail dd")[0] == figure(maximum)
    tab.page.click("#clear-shading")
    assert tab.page.locator("#contexts .lit").count() == 0


def test_search_finds_numbers_and_labels(tab, client):
    tab.page.keyboard.press("/")
    tab.page.keyboard.type("7")
    tab.page.wait_for_selector('#list-title:has-text("Found")')
    assert tab.texts("#latents .number") == ["#7"]
    tab.page.fill("#search", "dog")
    tab.page.wait_for_selector('#latents .name:has-text("dog")')
    assert all("dog" in name for name in tab.texts("#latents .name"))
    tab.page.fill("#search", "nosuchlabel")
    tab.page.wait_for_selector('#list-note:has-text("No latent has")')
    tab.page.keyboard.press("Escape")
    tab.page.wait_for_selector('#list-title:has-text("Worth reading first")')


def test_steering_streams_and_shows_the_figures_of_steer(tab, made):
    tab.read()
    latent = tab.texts("#latents .number")[0].removeprefix("#")
    tab.page.locator("#latents .add").first.click()
    tab.page.fill("#prompt", "the cat")
    tab.page.fill("#new-tokens", "6")
    tab.page.locator("#edits input[type=number]").fill("3")
    tab.page.click("#run")
    tab.status("steer", "Done")
    expected = saekit.steer(
        made.run, prompt="the cat", latents={int(latent): 3.0}, max_new_tokens=6
    )
    for name in ("clean", "steered"):
        part = getattr(expected, name)
        assert tab.texts(f"#{name}-text") == [part.text]
        assert tab.texts(f'[data-figure="{name} perplexity"]') == [figure(part.perplexity)]
        mean = torch.tensor(part.kl, dtype=torch.float64).mean()
        assert tab.texts(f'[data-figure="{name} kl"]') == [figure(float(mean))]
    raised = [c.token.strip() for c in expected.raised]
    assert [t.strip("·") for t in tab.texts("#figures .raised .chip")] == raised
    # a slider that moves writes it again
    before = tab.requests.count(tab.page.url + "steer")
    tab.page.locator("#edits input[type=range]").focus()
    tab.page.keyboard.press("ArrowRight")
    tab.page.wait_for_selector('#figures .note:has-text("3.1")')
    assert tab.requests.count(tab.page.url + "steer") == before + 1


def test_stop_and_the_errors_of_the_server_are_shown(browser, bench, monkeypatch):
    import time

    from saekit.intervention import steered_text

    put = steered_text._Told.put
    monkeypatch.setattr(
        steered_text._Told, "put", lambda self, value: (time.sleep(0.05), put(self, value))
    )
    monkeypatch.setattr(bench.steering.live_model.module.generation_config, "eos_token_id", None)
    with Running(bench) as running:
        tab = Tab(browser, running.client.url)
        tab.page.fill("#search", "3")
        tab.page.click('#latents li:has([data-latent="3"]) .add')
        tab.page.fill("#prompt", "the dog")
        tab.page.fill("#new-tokens", "500")
        tab.page.click("#run")
        tab.page.wait_for_selector("#clean-text:has-text(' ')")
        tab.page.keyboard.press("Escape")
        tab.status("steer", "Stopped")
        assert tab.page.is_disabled("#stop")
        tab.page.fill("#prompt", "")
        tab.page.click("#run")
        tab.status("steer", "the prompt holds no token")
        # 400 of a wrong question is a line on the console, and nothing else is
        assert [text for text in tab.problems if "400" not in text] == []
    tab.page.click("#read")
    tab.status("read", "The server does not answer")
    tab.page.close()


def test_tokens_are_read_by_keyboard_and_kept(tab):
    tab.read()
    tab.page.focus("#read")
    tab.page.keyboard.press("Tab")  # past the shading's button
    while tab.page.evaluate_handle("document.activeElement").get_attribute("class") is None or (
        "asked" not in (tab.page.locator(":focus").get_attribute("class") or "")
    ):
        tab.page.keyboard.press("Tab")
    tab.page.keyboard.press("ArrowRight")
    reading = tab.page.locator("#contexts .reading")
    at = reading.get_attribute("data-at")
    listed = tab.texts("#latents .number")
    tab.page.keyboard.press("Enter")
    assert "kept" in reading.get_attribute("class")
    tab.page.mouse.move(2, 2)
    tab.page.focus("#search")
    assert tab.texts("#latents .number") == listed
    assert at == "2"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1400, 375])
def test_it_fits_and_can_be_read(browser, client, width, dark):
    tab = Tab(browser, client.url, width, dark)
    tab.read()
    tab.page.locator("#latents .add").first.click()
    assert (
        tab.page.evaluate_handle("document.documentElement")
        .get_property("scrollWidth")
        .json_value()
        <= width
    )
    # what can be pressed has a name
    nameless = tab.page.locator("button, input, textarea, select, a").evaluate_all(
        "nodes => nodes.filter(n => n.checkVisibility() && !(n.ariaLabel || n.textContent.trim()"
        " || n.labels?.[0]?.textContent)).map(n => n.outerHTML)"
    )
    assert nameless == []
    assert tab.problems == []
    tab.page.close()


class _Evil(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<title>another page</title>")

    def log_message(self, *_: object) -> None: ...


def test_another_page_reads_nothing_even_with_the_token(browser, client):
    server = HTTPServer(("127.0.0.1", 0), _Evil)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = browser.new_page()
    try:
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        tries = {
            "fetch": f"fetch('{client.url}about').then(r => r.text())",
            "post": f"fetch('{client.url}text', {{method: 'POST', body: '{{\"text\": \"a\"}}'}})"
            ".then(r => r.text())",
            "blind": f"fetch('{client.url}about', {{mode: 'no-cors'}}).then(r => r.text())",
        }
        for name, attempt in tries.items():
            got = page.evaluate(f"{attempt}.catch(e => 'refused')")
            assert got in ("refused", ""), (name, got)
        script = (
            "new Promise(done => { const s = document.createElement('script'); s.src = URL;"
            " s.onload = () => done('ran'); s.onerror = () => done('refused');"
            " document.head.append(s); })"
        )
        assert page.evaluate(script.replace("URL", json.dumps(client.url + "page.js"))) == "refused"
    finally:
        page.close()
        server.shutdown()
        server.server_close()


def test_a_latent_leads_to_its_page(browser, made, tmp_path):
    page = tmp_path / "page"
    saekit.inspect(made.run, made.store, page, features="3,5", top=2)
    with Running(open_workbench(made.run, [made.store], page=page, device=CPU)) as running:
        tab = Tab(browser, running.client.url)
        tab.page.fill("#search", "3")
        tab.page.click('#latents [data-latent="3"]')
        with tab.page.expect_popup() as opened:
            tab.page.click('#detail a:has-text("Its page")')
        explorer = opened.value
        problems = []
        explorer.on("console", lambda m: problems.append(m.text))
        explorer.wait_for_selector('#index:has-text("#3")')
        assert explorer.url == f"{running.client.url}page/#/f/3"
        # it cannot ask the server
        assert (
            explorer.evaluate("fetch('../about').then(() => 'answered').catch(() => 'refused')")
            == "refused"
        )
        assert problems and all("Content Security Policy" in text for text in problems)
        # one without a page has no link
        tab.page.fill("#search", "7")
        tab.page.click('#latents [data-latent="7"]')
        tab.page.wait_for_selector('#detail:not([aria-busy]) h3:has-text("#7")')
        assert tab.page.locator("#detail a").count() == 0
        assert tab.problems == []
        explorer.close()
        tab.page.close()


class Digits(NamedTuple):
    client: Client
    run: Path
    store: Path


@pytest.fixture(scope="module")
def digit_server(tmp_path_factory) -> Iterator[Digits]:
    """A vision transformer with its head, and a dictionary of its patches."""
    folder = tmp_path_factory.mktemp("images")
    store, run = folder / "store", folder / "run"
    saekit.harvest("embedded:digits-vit", "embedded:digits", store, hook="blocks.1", rows=6400)
    saekit.train(store, run, latents=64, k=4, batch=256, rows=12_800)
    with Running(open_workbench(run, [store], device=CPU)) as running:
        yield Digits(running.client, run, store)


def digit() -> bytes:
    from sklearn.datasets import load_digits

    content = BytesIO()
    pixels = (load_digits().images[3] * 255 / 16).astype("uint8")
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def test_an_image_is_read_patch_by_patch_and_steered(browser, digit_server, tmp_path):
    tab = Tab(browser, digit_server.client.url)
    # only what these pictures can answer is offered, and nothing else is asked
    offers = tab.texts("#search-name, #search-help")
    offers.append(tab.page.get_attribute("#search", "placeholder"))
    assert "near:" in offers[2] and "explained:" in offers[2]
    assert not any(word in text for text in offers for word in ("token", "text"))
    for asked, why in [("token: cat", "images have no tokens"), ("text: cat", "is of images")]:
        tab.page.fill("#search", asked)
        tab.page.press("#search", "Enter")
        tab.page.wait_for_selector(f'#list-note:has-text("{why}")')
    assert not any(url.endswith("/search") for url in tab.requests)
    (tmp_path / "digit.png").write_bytes(digit())
    tab.page.set_input_files("#file", tmp_path / "digit.png")
    tab.page.wait_for_selector("#contexts .cell")
    given = {"image": tmp_path / "digit.png"}
    tab.page.select_option("#order", "max")
    ranked = saekit.features(digit_server.run, digit_server.store, **given, top=50)
    assert tab.texts("#latents .number") == [f"#{row.index}" for row in ranked]
    assert tab.texts("#latents .value") == [
        f"{figure(row.act)} of {figure(row.max)}" for row in ranked
    ]
    tab.page.hover('#contexts [data-at="10"]')
    assert "row 1, column 2" in tab.texts("#tip")[0]
    tab.page.mouse.move(2, 2)
    # its overlays are those of an example, on the latent's one scale
    tab.page.click(f'#latents [data-latent="{ranked[0].index}"]')
    cells = tab.page.locator("#contexts .cell")
    acts = cells.evaluate_all("cells => cells.map(cell => Number(cell.dataset.act))")
    assert sum(act > 0 for act in acts) > 0
    heat = tab.page.locator("#contexts canvas.heat").evaluate(
        "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    )
    wanted = [min(act / ranked[0].max, 1) * 255 for act in acts]
    assert heat[3::4] == pytest.approx(wanted, abs=0.51)
    shown = {"spotlight": ".veil", "heat map": ".heat", "contour": ".outline"}
    for name in (*shown, "picture"):
        tab.page.click(f'#shading button:has-text("{name}")')
        for part in shown.values():
            is_shown = part == shown.get(name) or (name, part) == ("spotlight", ".outline")
            assert tab.page.locator(f"#contexts {part}").is_visible() == is_shown, (name, part)
    gray = tab.page.locator("#contexts img").evaluate("i => getComputedStyle(i).filter")
    assert gray == "none"
    # an example is read patch by patch, and enlarged
    tab.page.wait_for_selector("#detail:not([aria-busy]) .frame")
    tab.page.hover("#detail .frame >> nth=0")
    assert "patch row" in tab.texts("#tip")[0]
    tab.page.click("#detail .frame >> nth=0")
    tab.page.wait_for_selector("#zoom[open] .frame")
    tab.page.click('#zoom-overlay button:has-text("heat map")')
    assert tab.page.locator("#zoom .heat").is_visible()
    tab.page.keyboard.press("Escape")
    tab.page.locator("#latents .add").first.click()
    tab.page.click("#run")
    tab.status("steer", "Done")
    expected = saekit.steer(digit_server.run, **given, latents={ranked[0].index: 1.0})
    classes = tab.page.locator(".classes tbody tr").all()
    assert len(classes) == 10
    for row, change in zip(classes, expected.classes):
        assert row.locator("th").text_content() == change.label
        shown = float(row.locator("td").nth(1).text_content().split(" ")[0])
        assert shown == pytest.approx(100 * change.steered, rel=1e-2)
    # beside controls, on the class that the full strength raises
    tab.page.check("#controls")
    tab.page.wait_for_selector("#doses .verdict")
    tab.status("steer", "Done")
    measured = saekit.steer(
        digit_server.run, **given, latents={ranked[0].index: 1.0}, dose=[0.5, 1.0]
    )
    assert tab.texts("#doses .targets .chip") == measured.targets
    effects = [f"{dose.effect:+.3f}".replace("-", "−") for dose in measured.doses]
    assert tab.texts("#doses tbody td:nth-child(2)") == effects
    assert tab.texts("#doses .verdict") == [f"Verdict: {measured.verdict}."]
    assert tab.texts("#scope") == [measured.scope]
    # on a class that is named
    other = next(number for number in "12" if measured.targets != [f"LABEL_{number}"])
    tab.page.fill("#target", other)
    tab.page.click("#run")
    tab.page.wait_for_selector(f'#doses .targets .chip:has-text("LABEL_{other}")')
    tab.page.wait_for_selector("#doses .verdict")
    tab.status("steer", "Done")
    named = saekit.steer(
        digit_server.run, **given, latents={ranked[0].index: 1.0}, dose=[0.5, 1.0], targets=[other]
    )
    assert tab.texts("#doses .targets .chip") == named.targets
    assert tab.texts("#scope") == [named.scope]
    effects = [f"{dose.effect:+.3f}".replace("-", "−") for dose in named.doses]
    assert tab.texts("#doses tbody td:nth-child(2)") == effects
    assert tab.problems == []
    tab.page.close()
