"""docs/index-search.md: its block of Python runs, on an index whose activations are known."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from made_search import ON, made_search

PAGE = Path(__file__).parents[1] / "docs" / "index-search.md"


def test_the_block_runs_and_an_activation_has_rows_and_values(tmp_path):
    run, store, z, *_ = made_search(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for name, value in (('"runs/topk"', repr(str(run))), ('"acts/text"', repr(str(store)))):
        assert name in block
        block = block.replace(name, value)
    names: dict = {}
    exec(block.replace("123", str(ON)), names)
    rows = np.flatnonzero(z[:, ON])
    assert names["found"].rows.tolist() == rows.tolist()
    assert names["found"].values.tolist() == z[rows, ON].tolist()
