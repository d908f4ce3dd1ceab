"""Codes with negative values: what is counted, ranked and shown is held against the whole code
matrix."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from made_index import made_index
from made_stores import make_rows, write_store

import saekit
from saekit.indexing.histogram import BANDS
from saekit.inspection.query import features
from saekit.inspection.records import pick_rows
from saekit.store.reader import open_store

SETTINGS = {
    "abs-topk": {"sparsity": "abs-topk", "k": 3, "expansion": 2},
    "topk": {"sparsity": "topk", "k": 20, "expansion": 2},
    "pca": {"model": "pca", "latents": 6},
    "tanh": {"model": "dense", "latents": 6, "hidden": (12,), "activation": "tanh"},
}


@pytest.fixture(scope="module", params=SETTINGS)
def signed(request, tmp_path_factory):
    """(name, run, index, store, z (N,F))."""
    folder = tmp_path_factory.mktemp(request.param)
    store = open_store(write_store(folder / "store", 2000, tokens=40))
    saekit.train(store.path, folder / "run", batch=256, rows=10_000, **SETTINGS[request.param])
    if request.param == "topk":  # as a published one that keeps negative values
        description = json.loads((folder / "run/config.json").read_text())
        description["config"]["keep_negative"] = True
        (folder / "run/config.json").write_text(json.dumps(description))
    model = saekit.load(folder / "run")
    with torch.no_grad():
        code = model.encode(make_rows(2000).half().float())
    index = made_index(folder / "index", model, store)
    return request.param, folder / "run", index, store, code.to_dense()


def test_rows_count_whatever_their_sign(signed):
    _, _, index, _, z = signed
    assert (z < 0).any() and (z > 0).any()
    assert np.array_equal(index.active, (z != 0).sum(0))
    np.testing.assert_allclose(index.max, z.abs().amax(0), rtol=1e-5, atol=1e-6)
    for j in range(len(index)):
        counts, edges = index.histogram(j)["counts"], torch.tensor(index.histogram(j)["edges"])
        below = sum(n for n, edge in zip(counts, edges[1:]) if edge <= 0)
        assert (below, sum(counts) - below) == (int((z[:, j] < 0).sum()), int((z[:, j] > 0).sum()))


def test_bands_hold_the_rows_between_their_ends_and_examples_lie_in_theirs(signed):
    _, _, index, store, z = signed
    for j in range(len(index)):
        bands, size = index.bands(j), z[:, j].abs()
        assert len(bands) == BANDS and sum(band["rows"] for band in bands) == int((size > 0).sum())
        for i, band in enumerate(bands):
            # a value within rounding of an end may fall on either side
            near = 1e-4 * bands[0]["high"]
            sure = int(((size > band["low"] + near) & (size < band["high"] - near)).sum())
            possible = int(
                ((size > max(band["low"] - near, 0)) & (size < band["high"] + near)).sum()
            )
            assert sure <= band["rows"] <= possible
            assert abs(band["high"] / float(index.max[j]) - (i + 1) / BANDS) < 0.03, (
                "about fifths of the maximum"
            )
        for pick in pick_rows(index, store, j, 4):
            if pick.interval is not None:
                band = bands[pick.interval]
                assert band["low"] * 0.9999 <= abs(pick.act) <= band["high"] * 1.0001


def test_the_strongest_examples_keep_their_sign(signed):
    name, _, index, store, z = signed
    for j in range(len(index)):
        if index.active[j] == 0:
            continue
        top = [pick for pick in pick_rows(index, store, j, 8) if pick.interval is None]
        for pick in top:
            assert pick.act == pytest.approx(float(z[pick.row, j]), rel=1e-4)
        strongest = int(z[:, j].abs().argmax())
        assert (
            top[0].act
            == pytest.approx(float(z[strongest, j]), rel=1e-4)
            == pytest.approx(float(index.largest[j]), rel=1e-4)
        )
        if not name.endswith("topk"):  # a dense code is shown by both ends
            acts = [pick.act for pick in top]
            assert sum(act < 0 for act in acts) == sum(act > 0 for act in acts) == 4
            assert max(acts) == pytest.approx(float(z[:, j].max()), rel=1e-4)
            assert min(acts) == pytest.approx(float(z[:, j].min()), rel=1e-4)


@pytest.mark.parametrize("signed", ["pca", "tanh"], indirect=True)
def test_describing_a_latent_gives_the_value_of_largest_size(signed, monkeypatch):
    import saekit.inspection.feature_rows as feature_rows

    # the store of this test has no tokenizer
    monkeypatch.setattr(feature_rows, "_typical", lambda *_: [])
    _, run, index, store, z = signed
    negative = next(j for j in range(len(index)) if -z[:, j].min() > z[:, j].max())
    (row,) = features(run, store.path, index=negative)
    assert row.act == pytest.approx(
        float(z[:, negative].min()), rel=1e-4
    ) and row.max == pytest.approx(-row.act)
