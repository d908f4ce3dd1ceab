"""Codes with negative values: what is counted, ranked and shown is held against the whole code
matrix."""

from __future__ import annotations

import json

import pytest
import torch
from made_stores import make_rows, write_store
from safetensors.torch import load, save_file

import saekit
from saekit.indexing.histogram import BANDS
from saekit.inspection.query import features
from saekit.inspection.records import pick_rows
from saekit.inspection.scan import cached_scan, scan_store
from saekit.store.reader import open_store

SETTINGS = {
    "abs-topk": {"sparsity": "abs-topk", "k": 3, "expansion": 2},
    "topk": {"sparsity": "topk", "k": 20, "expansion": 2},
    "pca": {"model": "pca", "latents": 6},
    "tanh": {"model": "dense", "latents": 6, "hidden": (12,), "activation": "tanh"},
}


@pytest.fixture(scope="module", params=SETTINGS)
def signed(request, tmp_path_factory):
    """(name, run, model, store, z (N,F))."""
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
    return request.param, folder / "run", model, store, code.to_dense()


def test_rows_count_whatever_their_sign(signed):
    _, _, model, store, z = signed
    assert (z < 0).any() and (z > 0).any()
    scan = scan_store(model, store)
    assert torch.equal(scan.active, (z != 0).sum(0))
    torch.testing.assert_close(scan.max, z.abs().amax(0), rtol=1e-5, atol=1e-6)
    for j in range(model.latents):
        counts, edges = scan.histogram.of(j)["counts"], torch.tensor(scan.histogram.of(j)["edges"])
        below = sum(n for n, edge in zip(counts, edges[1:]) if edge <= 0)
        assert (below, sum(counts) - below) == (int((z[:, j] < 0).sum()), int((z[:, j] > 0).sum()))


def test_bands_hold_the_rows_between_their_ends_and_examples_lie_in_theirs(signed):
    _, _, model, store, z = signed
    scan = scan_store(model, store)
    for j in range(model.latents):
        bands, size = scan.histogram.bands(j), z[:, j].abs()
        assert len(bands) == BANDS and sum(band["rows"] for band in bands) == int((size > 0).sum())
        for i, band in enumerate(bands):
            # a value within rounding of an end may fall on either side
            near = 1e-4 * bands[0]["high"]
            sure = int(((size > band["low"] + near) & (size < band["high"] - near)).sum())
            possible = int(
                ((size > max(band["low"] - near, 0)) & (size < band["high"] + near)).sum()
            )
            assert sure <= band["rows"] <= possible
            assert abs(band["high"] / float(scan.max[j]) - (i + 1) / BANDS) < 0.03, (
                "about fifths of the maximum"
            )
        for pick in pick_rows(scan, store, j, 4):
            if pick.interval is not None:
                band = bands[pick.interval]
                assert band["low"] * 0.9999 <= abs(pick.act) <= band["high"] * 1.0001


def test_the_strongest_examples_keep_their_sign(signed):
    name, _, model, store, z = signed
    scan = scan_store(model, store)
    for j in range(model.latents):
        if scan.active[j] == 0:
            continue
        top = [pick for pick in pick_rows(scan, store, j, 8) if pick.interval is None]
        for pick in top:
            assert pick.act == pytest.approx(float(z[pick.row, j]), rel=1e-4)
        strongest = int(z[:, j].abs().argmax())
        assert (
            top[0].act
            == pytest.approx(float(z[strongest, j]), rel=1e-4)
            == pytest.approx(scan.largest(j), rel=1e-4)
        )
        if not name.endswith("topk"):  # a dense code is shown by both ends
            acts = [pick.act for pick in top]
            assert sum(act < 0 for act in acts) == sum(act > 0 for act in acts) == 4
            assert max(acts) == pytest.approx(float(z[:, j].max()), rel=1e-4)
            assert min(acts) == pytest.approx(float(z[:, j].min()), rel=1e-4)


@pytest.mark.parametrize("signed", ["pca", "tanh"], indirect=True)
def test_describing_a_latent_gives_the_value_of_largest_size(signed, monkeypatch):
    import saekit.inspection.query as query

    monkeypatch.setattr(query, "_typical", lambda *_: [])  # the store of this test has no tokenizer
    _, run, model, store, z = signed
    negative = next(j for j in range(model.latents) if -z[:, j].min() > z[:, j].max())
    (row,) = features(run, store.path, index=negative)
    assert row.act == pytest.approx(
        float(z[:, negative].min()), rel=1e-4
    ) and row.max == pytest.approx(-row.act)


@pytest.mark.parametrize("signed", ["abs-topk"], indirect=True)
def test_a_damaged_scan_is_made_again(signed, tmp_path):
    _, _, model, store, _ = signed
    cached_scan(model, tmp_path, store)
    path = next((tmp_path / "scans").iterdir())
    whole, tensors = path.read_bytes(), load(path.read_bytes())
    good = scan_store(model, store)

    def with_tensor(name, value):
        save_file(tensors | {name: value}, path)

    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    header["active"]["dtype"] = "F64"
    text = json.dumps(header).encode()
    damages = [
        lambda: path.write_bytes(whole[:500]),
        lambda: path.write_bytes(b""),
        lambda: path.write_bytes(b"\xff" * 64),
        lambda: path.write_bytes(
            len(text).to_bytes(8, "little")
            + text
            + whole[8 + int.from_bytes(whole[:8], "little") :]
        ),
        lambda: with_tensor("active", tensors["active"][:3].clone()),
        lambda: with_tensor("max", torch.full_like(tensors["max"], float("nan"))),
        lambda: with_tensor("top.row", tensors["top.row"] + 10**6),
        lambda: with_tensor("schema", torch.tensor([2, 2])),
        lambda: with_tensor("histogram.counts", tensors["histogram.counts"] * 0),
        lambda: save_file(
            {name: value for name, value in tensors.items() if name != "sample.key"}, path
        ),
    ]
    for damage in damages:
        damage()
        again = cached_scan(model, tmp_path, store)
        assert torch.equal(again.active, good.active) and torch.equal(again.top.row, good.top.row)
        assert path.read_bytes() == whole, "and kept"


@pytest.mark.parametrize("signed", ["pca"], indirect=True)
def test_a_scan_that_cannot_be_kept_is_told(signed, tmp_path):
    _, _, model, store, _ = signed
    (tmp_path / "scans").write_text("a file stands where the folder would be")
    said = []
    scan = cached_scan(model, tmp_path, store, said.append)
    assert scan.rows == 2000 and any("not kept" in (p.message or "") for p in said)
