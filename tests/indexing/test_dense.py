"""The index of a dense code against the whole code matrix, and its resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command import saekit as command
from kills import content, killed_before
from made_stores import make_rows, write_store

import saekit
from saekit.errors import DataError
from saekit.indexing import build
from saekit.indexing.shown import KEPT_SAMPLE, KEPT_TOP
from saekit.store.folder_kinds import RUN

ROWS, TOKENS, CHUNK, LATENTS = 2000, 40, 250, 6  # chunks cut contexts in two


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(run, store, z (N,F) whole)."""
    folder = tmp_path_factory.mktemp("dense")
    store = write_store(folder / "store", ROWS, tokens=TOKENS)
    saekit.train(store, folder / "run", model="pca", latents=LATENTS)
    model = saekit.load(folder / "run")
    with torch.no_grad():
        rows = make_rows(ROWS).half().float().split(CHUNK)
        z = torch.cat([model.encode(x) for x in rows]).numpy()
    return folder / "run", store, z


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch, one_thread):
    monkeypatch.setattr(build, "CHUNK_ROWS", CHUNK)


def test_its_figures_are_those_of_the_code(made, tmp_path):
    run, store, z = made
    result = saekit.index(shutil.copytree(run, tmp_path / "run"), store)
    index = result.index
    assert index.dense and result.entries is None and result.rows == ROWS
    assert np.array_equal(index.active, (z != 0).sum(0))
    assert np.array_equal(index.max, np.abs(z).max(0))
    assert np.array_equal(index.largest, z[np.abs(z).argmax(0), np.arange(LATENTS)])
    assert np.array_equal(index.first, (z[::TOKENS] != 0).sum(0))
    np.testing.assert_allclose(index.sum, z.astype(np.float64).sum(0), rtol=1e-9, atol=1e-9)
    for j in range(LATENTS):
        contexts = z[:, j].reshape(-1, TOKENS)
        for side, name in ((contexts, "top"), (-contexts, "bottom")):
            order = np.argsort(-side.max(1), kind="stable")[:KEPT_TOP]
            rows = (order * TOKENS + side[order].argmax(1)).tolist()
            assert getattr(index.shown, name).of(j) == (rows, z[rows, j].tolist())
        rows, values = index.shown.sample.of(j)
        assert len(set(rows)) == KEPT_SAMPLE and z[rows, j].tolist() == values
        histogram = index.histogram(j)
        assert sum(histogram["counts"]) == ROWS
        below = sum(n for n, edge in zip(histogram["counts"], histogram["edges"][1:]) if edge <= 0)
        assert below == (z[:, j] < 0).sum()
        assert sum(band["rows"] for band in index.bands(j)) == ROWS
    for ask in (index.activations, index.top, index.coactivation):
        with pytest.raises(DataError, match="is of a dense code"):
            ask(0)


def test_a_killed_pass_begins_again_to_the_same_bytes(made, tmp_path):
    source, store, _ = made
    run = Path(shutil.copytree(source, tmp_path / "run"))
    saekit.index(run, store)
    whole, operation = content(run), 0
    shutil.rmtree(run / "index")
    while killed_before(operation, run, lambda: saekit.index(run, store)):
        assert RUN.sort(run)[1] == [], "all that is left is known to be ours"
        saekit.index(run, store, resume=True)
        assert content(run) == whole, f"killed before operation {operation}"
        shutil.rmtree(run / "index")
        operation += 5
    assert operation > 10


def test_the_command_says_what_it_wrote(made, tmp_path, capsys):
    source, store, _ = made
    run = shutil.copytree(source, tmp_path / "run")
    status, out, err = command(capsys, "index", run, "--store", store, "-q")
    assert status == 0, err
    assert f"what is shown of {LATENTS} latents on 2,000 rows" in out
    status, out, _ = command(capsys, "index", run, "--store", store, "--resume", "--json", "-q")
    assert status == 0 and json.loads(out)["entries"] is None
