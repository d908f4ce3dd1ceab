"""docs/python.md: its blocks run, and what they show is what comes out."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
SHOWN = re.compile(r"^(\w+)  # (\w+\(.*?)(?:, \.\.\.)?\)$", re.MULTILINE)


def test_the_page_runs_and_shows_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in BLOCKS:
        exec(block, names)
    shown = dict(SHOWN.findall("\n".join(BLOCKS)))
    assert set(shown) == {"store", "result"}
    assert repr(names["store"]).startswith(shown["store"])
    figures = re.findall(r"(\w+)=([\d.]+)", shown["result"])
    assert len(figures) == 4
    for name, figure in figures:  # on other machines sums have another order
        assert abs(names["result"].metrics[name] - float(figure)) < 0.1, name
    assert list(names["table"]["k"]) == [4, 8] and len(names["mean_D"]) == 10
