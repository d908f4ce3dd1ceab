from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from made_runs import rows_store, side, trained
from made_stores import make_rows
from sklearn.metrics import roc_auc_score

from saekit.errors import DataError
from saekit.harvesting.run import harvest
from saekit.measures.denoising import psnr
from saekit.models.noise import masking
from saekit.report.comparison import compare
from saekit.report.page import json_block
from saekit.report.pictures import chosen_examples
from saekit.store.reader import Store
from saekit.training.checkpoints import load

VOID = {"meta", "img", "rect", "path", "br"}


class Reader(HTMLParser):
    """Titles of sections, all tags and attributes, rows of tables, the JSON."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.sections, self.rows, self.attributes, self.open = [], [], [], [], []
        self.text, self.json = "", ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        self.open += [] if tag in VOID else [tag]
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")
        if tag == "span":
            self.rows[-1].append(dict(attrs)["class"])

    def handle_endtag(self, tag):
        assert self.open[-1] == tag, (tag, self.open)
        self.open.pop()

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.json += data
        elif self.open and self.open[-1] == "h2":
            self.sections.append(data)
        elif "td" in self.open:
            self.rows[-1][-1] += data
        self.text += data


@pytest.fixture(scope="module")
def runs(digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    return [
        trained(digits, out / "flat", "dense", latents=2, hidden=(), noise="masking:0.3"),
        trained(digits, out / "sae", "sae", latents=96, k=3),
        trained(digits, out / "vae", "vae", latents=3, hidden=(16,), output="bernoulli"),
    ]


@pytest.fixture(scope="module")
def made(digits, runs, tmp_path_factory):
    """(comparison, HTML, what a parser sees)."""
    comparison = compare(runs, digits, tmp_path_factory.mktemp("out") / "report")
    html = open(comparison.report, encoding="utf-8").read()
    return comparison, html, Reader(html)


@pytest.fixture(scope="module")
def numbers(made):
    return json.loads(made[2].json)


def test_the_report_has_a_section_for_all_that_the_data_gives(made):
    sections = [
        "Figures",
        "Reconstructions",
        "Denoising",
        "Codes",
        "Filters",
        "Variational",
        "Errors",
        "Settings",
    ]
    assert made[2].sections == sections and made[2].open == []
    for name in ("flat", "sae", "vae", "pca 2", "pca 3", "untrained sae 96, k 3", "raw input"):
        assert name in made[2].text


def test_equal_inputs_give_equal_bytes(made, digits, runs, tmp_path):
    again = compare(runs, digits, tmp_path / "elsewhere")
    assert open(again.report, encoding="utf-8").read() == made[1]


def test_the_page_asks_for_nothing_else(made):
    links = [value for _, name, value in made[2].attributes if name in ("src", "href")]
    assert links and all(value.startswith(("data:image/png;base64,", "#")) for value in links)
    assert (
        "url(" not in made[1]
        and "@import" not in made[1]
        and not any(name.startswith("on") for _, name, _ in made[2].attributes)
    )
    policy = next(
        value
        for _, name, value in made[2].attributes
        if name == "content" and "default-src" in value
    )
    assert (
        "default-src 'none'" in policy
        and "script-src" not in policy
        and made[2].tags.count("script") == 1
    )
    assert not any(name == "style" for _, name, _ in made[2].attributes), "the policy denies them"


def test_links_lead_to_sections(made):
    ids = {value for _, name, value in made[2].attributes if name == "id"}
    assert {
        value[1:] for tag, name, value in made[2].attributes if tag == "a" and name == "href"
    } <= ids


def test_the_numbers_are_the_comparisons(made, numbers):
    comparison = made[0]
    assert [row["name"] for row in numbers["comparison"]["rows"]] == [
        row.name for row in comparison.rows
    ]
    assert [row["metrics"] for row in numbers["comparison"]["rows"]] == [
        row.metrics for row in comparison.rows
    ]
    for row in comparison.rows[:-1]:
        assert f"{row.metrics['fvu']:.4f}" in "".join(
            next(r for r in made[2].rows if r and r[0] == row.name)
        )


def test_the_lowest_fvu_of_each_code_size_is_marked(made):
    comparison, _, page = made
    marked = {row[0] for row in page.rows if "best" in "".join(row)}
    expected = set()
    for run in ({"flat"}, {"sae", "vae"}):
        group = [r for r in comparison.rows if r.name in run or run & set(r.control_of)]
        expected.add(min(group, key=lambda r: r.metrics["fvu"]).name)
    assert marked == expected


def test_errors_of_all_held_out_rows_and_of_every_class(made, numbers, digits, runs):
    x, labels = side(digits, "holdout"), np.array(Store(digits).labels("holdout"))
    with torch.no_grad():
        errors = (x - load(runs[0])(x.float()).x_hat.double()).square().sum(1)
    found = numbers["errors"]["flat"]
    assert found["mean"] == pytest.approx(made[0].rows[0].metrics["mse"], rel=1e-9)
    assert list(found["by_class"]) == sorted(set(labels.tolist()))
    for name, mean in found["by_class"].items():
        assert mean == pytest.approx(
            float(errors[torch.from_numpy(labels == name)].mean()), rel=1e-6
        )


def test_shuffled_rows_are_the_anomalies(numbers, digits, runs):
    x = side(digits, "holdout").float()
    order = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).argsort(0)
    shuffled = x.gather(0, order)
    assert torch.equal(shuffled.sort(0).values, x.sort(0).values)  # every feature keeps its values
    with torch.no_grad():
        scores = [
            (t - load(runs[0])(t).x_hat).double().square().sum(1).numpy() for t in (x, shuffled)
        ]
    expected = roc_auc_score(np.repeat([0, 1], len(x)), np.concatenate(scores))
    assert numbers["errors"]["flat"]["auroc"] == pytest.approx(expected, abs=1e-9)
    # a subspace of the data, which shuffled rows leave
    assert numbers["errors"]["pca 3"]["auroc"] > 0.6


def test_denoising_is_measured_with_the_runs_own_noise(numbers, digits, runs):
    x = side(digits, "holdout").float()
    noisy = masking(x, 0.3, torch.Generator().manual_seed(0))
    with torch.no_grad():
        denoised = load(runs[0])(noisy).x_hat
    found = numbers["denoising"]
    assert set(found) == {"flat"} and found["flat"]["noise"] == "masking:0.3"
    assert found["flat"]["noisy_psnr"] == pytest.approx(psnr(x, noisy), rel=1e-9)
    assert found["flat"]["denoised_psnr"] == pytest.approx(psnr(x, denoised), rel=1e-6)


def test_active_units_are_counted_on_the_codes(numbers, digits, runs):
    with torch.no_grad():
        means = load(runs[2]).encode(side(digits, "holdout").float())
    expected = int((means.double().var(0, correction=0) > 0.01).sum())
    assert numbers["variational"]["vae"] == {"active_units": expected, "latents": 3}


def test_settings_that_differ_are_set_apart(made):
    cells = {row[0]: [cell for cell in row[1:] if cell] for row in made[2].rows if row}
    assert cells["latents"] == ["other2", "other96", "other3"]
    assert cells["seed"] == ["same0", "same0", "same0"]
    assert cells["beta"] == ["same–", "same–", "same1"], "only one run has it"


def test_names_and_labels_are_only_text(tmp_path):
    x = make_rows(120)
    labels = [f"</script><script>alert({i % 2})</script>" for i in range(120)]
    store = rows_store(tmp_path / "store", x, labels)
    run = trained(store, tmp_path / '<b onclick="x">&amp;', "linear", latents=2)
    page = Reader(open(compare(run, store, tmp_path / "report").report, encoding="utf-8").read())
    assert page.tags.count("script") == 1 and "b" not in page.tags and page.open == []
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    found = json.loads(page.json)
    assert found["comparison"]["rows"][0]["name"] == '<b onclick="x">&amp;' and set(
        found["errors"]['<b onclick="x">&amp;']["by_class"]
    ) == set(labels)
    assert page.sections == ["Figures", "Codes", "Errors", "Settings"], (
        "rows other than images have no pictures"
    )


def test_a_json_block_cannot_end_its_element():
    value = {"a": "</script><!--", "b": [1.5, float("nan"), float("inf"), None], "c": "&lt;"}
    text = json_block(value)
    assert not re.search(r"[<>&]", text)
    assert json.loads(text) == {"a": "</script><!--", "b": [1.5, None, None, None], "c": "&lt;"}


def test_masks_and_levels_of_a_unet(tmp_path):
    for name, data in (("scenes", "embedded:scenes"), ("masks", "embedded:scene-masks")):
        harvest("raw:pixels", data, tmp_path / name, rows=80, holdout=0.25)
    options = {
        "channels": (4,),
        "latents": 4,
        "output": "bernoulli",
        "target_store": str(tmp_path / "masks"),
        "rows": 64,
        "batch": 16,
    }
    run = trained(tmp_path / "scenes", tmp_path / "unet", "unet", **options)
    comparison = compare(run, tmp_path / "scenes", tmp_path / "report")
    page = Reader(open(comparison.report, encoding="utf-8").read())
    assert {"Reconstructions", "Masks", "Levels"} <= set(page.sections)
    truth = side(tmp_path / "masks", "holdout") > 0.5
    with torch.no_grad():
        mask = load(run)(side(tmp_path / "scenes", "holdout").float()).x_hat > 0.5
    expected = float((mask & truth).sum() / (mask | truth).sum())
    assert json.loads(page.json)["segmentation"]["unet"]["pooled"] == pytest.approx(
        expected, abs=1e-6
    )
    assert "auroc" not in json.loads(page.json)["errors"]["unet"]


def test_examples_are_one_of_each_label_then_others():
    assert chosen_examples(["10", "2", "2", "1", None, "10"], 5) == [3, 1, 0, 2, 4]
    assert chosen_examples([None, None, None], 2) == [0, 1]


def test_an_occupied_folder_is_left_alone(digits, runs, tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        compare(runs[0], digits, tmp_path)
    with pytest.raises(DataError, match="did not write"):
        compare(runs[0], digits, tmp_path, overwrite=True)
    first = compare(runs[0], digits, tmp_path / "out")
    with pytest.raises(DataError, match="not empty") as error:
        compare(runs[0], digits, tmp_path / "out")
    assert "overwrite=True" in error.value.hint
    assert compare(runs[0], digits, tmp_path / "out", overwrite=True) == first


def test_a_plane_has_a_vector_field_and_anomalies_a_histogram(tmp_path):
    angle = torch.rand(400, generator=torch.Generator().manual_seed(0)) * 2 * torch.pi
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    store = rows_store(tmp_path / "ring", ring, [None] * 400)
    strange = rows_store(tmp_path / "far", 3 * ring[:50], [None] * 50)
    run = trained(store, tmp_path / "run", "dense", latents=2, hidden=(32,), noise="gaussian:0.2")
    compare([run], store, tmp_path / "report", anomalies=strange)
    html = (tmp_path / "report" / "report.html").read_text()
    assert "Vector field" in Reader(html).sections and html.count("longest arrow") >= 2, (
        "the run and its controls"
    )
    assert "run: anomalies" in html and "AUROC, anomalies" in html and "rows of far" in html
