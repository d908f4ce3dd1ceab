"""The worked example of CONTRIBUTING.md, as it stands there."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import torch
from made_stores import write_store

import saekit
from saekit.models.sparsity import VARIANTS

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()


def test_the_worked_example_is_a_variant_that_trains(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    module = types.ModuleType("worked_example")
    # where dataclasses look up annotations
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, "CONTRIBUTING.md", "exec"), module.__dict__)
    monkeypatch.setitem(VARIANTS, "root", module.Root)
    store = write_store(tmp_path / "store", 4000)
    settings = {
        "sparsity": "root",
        "softness": 0.02,
        "target_l0": 4,
        "expansion": 4,
        "rows": 120_000,
        "batch": 256,
    }
    result = saekit.train(store, tmp_path / "run", **settings)
    assert result.metrics["l0"] == pytest.approx(4, rel=0.15) and result.metrics["fvu"] < 0.8
    sae = saekit.load(tmp_path / "run")
    assert sae.config.softness == 0.02 and isinstance(sae.encode(torch.randn(3, 16)), torch.Tensor)
