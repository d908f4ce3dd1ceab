"""The tables in README and docs are those of the results."""

from __future__ import annotations

import csv

import pytest
import tables

PAGES = [path for path in tables.PAGES if tables.MARK.search(path.read_text())]


def name_of(path):
    return str(path.relative_to(tables.ROOT))


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_the_tables_are_those_of_the_results(path):
    text = path.read_text()
    assert tables.page(text) == text, f"{path.name} is out of date: make docs"


def test_readme_and_the_pages_on_speed_and_variants_have_tables():
    names = {name_of(path): [m[1] for m in tables.MARK.findall(path.read_text())] for path in PAGES}
    assert names["README.md"] == ["main-variants"]
    assert {"zoo", "revival"} <= set(names["docs/variants.md"])
    assert {"steps", "variants", "operations"} <= set(names["docs/kernels.md"])
    assert {"zoo-quick"} <= set(names["docs/notes/variants.md"])


def test_every_table_stands_on_a_page():
    found = {m[1] for path in PAGES for m in tables.MARK.findall(path.read_text())}
    assert found == {*tables.TABLES, *tables.COMPUTED}


def test_ways_of_revival_are_compared_seed_by_seed(tmp_path, monkeypatch):
    """Two seeds of none, and two of nudge, one 10 % above and one 5 % below."""
    lines = ["data,sparsity,revive,seed,fvu,dead_train,silent"]
    lines += ["digits,topk,none,0,0.2,0.4,0.5", "digits,topk,none,1,0.4,0.2,0.1"]
    lines += ["digits,topk,nudge,1,0.38,0.1,0.2", "digits,topk,nudge,0,0.22,0.3,0.4"]
    (tmp_path / "cpu-revival.csv").write_text("\n".join(lines))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    text = tables.table("revival")
    assert "| rows | sparsity | none | nudge (default) |\n" in text
    # means of .2 and .4 with a standard deviation of .1414; changes in the order of the file
    assert "| digits | topk | .3000 ± .1414 / 30% / 30% | -5.0 +10.0 / 20% / 30% |\n" in text


def test_a_table_says_what_the_results_say(tmp_path, monkeypatch):
    """Times, ratios and memory of a variant, from its two rows."""
    keys = ["op", "mode", "shape", "ms", "ratio", "ratio_topk", "peak_mb", "rows_per_s"]
    where = {"device": "EPYC", "torch": "2.13.0", "date": "2026-11-29", "commit": "abc"}
    with (tmp_path / "cpu-variants.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*keys, *where])
        for mode, ms, ratio, of_topk, peak in (
            ("saekit", 250.4, 10.04, 1.25, 180.2),
            ("dense", 2514.0, 1.0, 12.5, 1300.0),
        ):
            row = ["jumprelu_step", mode, "576x18432x4096", ms, ratio, of_topk, peak, 16357]
            writer.writerow([*row, *where.values()])
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    text = tables.page("a\n<!-- table variants -->\nold\n<!-- end of table variants -->\nb\n")
    assert "| jumprelu | 250 | 1.25 | 2,514 | 10.0 | 180 | 1,300 | 16,357 |\n" in text
    assert "EPYC, torch 2.13.0, 2026-11-29, commit abc, cpu-variants.csv." in text
    assert text.startswith("a\n") and text.endswith("\nb\n") and "old" not in text
    assert tables.table("zoo") == tables.NONE
