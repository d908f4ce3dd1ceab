"""An index against the whole code matrix: every entry and every figure, to the last bit."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from made_stores import write_store

import saekit
from saekit.indexing import build
from saekit.indexing.manifest import IndexManifest
from saekit.indexing.reader import read_index
from saekit.indexing.shown import KEPT_SAMPLE, KEPT_TOP
from saekit.store.files import write_json
from saekit.store.manifest import checksum
from saekit.store.reader import open_store

CHUNK, TOKENS, ROWS = 256, 40, 2000
VARIANTS = {
    "topk": {"sparsity": "topk", "k": 24, "expansion": 8},
    "abs-topk": {"sparsity": "abs-topk", "k": 6, "expansion": 4},
    "l1": {"sparsity": "l1", "expansion": 4},
    "kl-sigmoid": {"sparsity": "kl-sigmoid", "expansion": 4, "coef": 0.01},
}


@pytest.fixture(scope="module", params=list(VARIANTS))
def made(request, tmp_path_factory):
    """(index, z (N,F) whole, with 0 where a latent is not active)."""
    folder = tmp_path_factory.mktemp(request.param)
    store = open_store(write_store(folder / "store", ROWS, tokens=TOKENS))
    saekit.train(store.path, folder / "run", batch=256, rows=4000, **VARIANTS[request.param])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "CHUNK_ROWS", CHUNK)
        result = saekit.index(folder / "run", store.path, budget=1)
    model = saekit.load(folder / "run")
    codes = [model.encode(batch.x.float()).to_dense() for batch in store.batches(CHUNK)]
    z = torch.cat(codes)
    z = torch.where(z.abs() > model.active_above, z, 0.0).detach().numpy()
    assert result.entries == (z != 0).sum() and result.rows == ROWS
    assert result.bytes == sum(p.stat().st_size for p in (folder / "run" / "index").rglob("*.*"))
    return saekit.open_index(folder / "run", store), z, folder


def test_every_activation_is_there_by_latent_and_by_row(made):
    index, z, _ = made
    for j in range(len(index)):
        own = index.activations(j)
        rows = z[:, j].nonzero()[0]
        assert np.array_equal(own.rows, rows) and np.array_equal(own.values, z[rows, j])
    for r in range(0, ROWS, 7):
        of_row = slice(*index.by_row.ptr[r : r + 2])
        latents = z[r].nonzero()[0]
        assert np.array_equal(index.by_row.latent[of_row], latents)
        assert np.array_equal(index.by_row.value[of_row], z[r, latents])


def test_figures_of_all_latents(made):
    index, z, _ = made
    size = np.abs(z)
    assert np.array_equal(index.active, (z != 0).sum(0))
    assert np.array_equal(index.max, size.max(0))
    assert np.array_equal(index.largest, z[size.argmax(0), np.arange(z.shape[1])])
    assert np.array_equal(index.density, (z != 0).sum(0) / ROWS)
    own = [z[:, j][z[:, j] != 0].astype(np.float64) for j in range(z.shape[1])]
    assert np.array_equal(index.sum, [values.sum() for values in own])
    assert np.array_equal(index.first, (z[::TOKENS] != 0).sum(0))


def test_the_strongest_rows_are_one_of_each_context(made):
    index, z, _ = made
    for j in range(len(index)):
        size = np.abs(z[:, j]).reshape(-1, TOKENS)
        order = np.argsort(-size.max(1), kind="stable")[:KEPT_TOP]
        order = order[size.max(1)[order] > 0]
        rows = (order * TOKENS + size[order].argmax(1)).tolist()
        assert index.shown.top.of(j) == (rows, z[rows, j].tolist())
        top = index.top(j, KEPT_TOP)
        assert (top.rows.tolist(), top.values.tolist()) == index.shown.top.of(j)
        assert index.top(j, 3).rows.tolist() == rows[:3]
    assert len(index.shown.bottom.row) == 0


def test_the_sample_is_drawn_in_proportion_to_the_square(made):
    index, z, _ = made
    many = [j for j in range(len(index)) if index.active[j] > 4 * KEPT_SAMPLE]
    heavier = []
    for j in range(len(index)):
        rows, values = index.shown.sample.of(j)
        assert len(set(rows)) == len(rows) == min(KEPT_SAMPLE, index.active[j])
        assert z[rows, j].tolist() == values and 0.0 not in values
        if j in many:
            own = z[:, j][z[:, j] != 0]
            heavier.append(np.square(values).mean() > np.square(own).mean())
    # of latents whose sizes differ at all (a sigmoid code is between 0.5 and 1)
    assert not many or np.mean(heavier) > 0.9


def test_what_an_index_of_the_first_schema_lacks_is_computed(made, tmp_path):
    index = made[0]
    old = Path(shutil.copytree(index.path, tmp_path / "old"))
    (old / "shown.safetensors").unlink()
    manifest = IndexManifest.read(old)
    del manifest.files["shown.safetensors"]
    data = dataclasses.asdict(manifest) | {"schema_version": 1}
    del data["dense"]
    write_json(old / "index.json", data | {"checksum": checksum(data)})
    found = read_index(old).shown
    for name in ("top", "sample"):
        for column in ("ptr", "row", "value"):
            expected = getattr(getattr(index.shown, name), column)
            assert np.array_equal(getattr(getattr(found, name), column), expected)


def test_quantiles_are_groups_of_equal_numbers_of_rows_by_size(made):
    index, z, _ = made
    j = int(index.active.argmax())
    rows = z[:, j].nonzero()[0]
    order = rows[np.argsort(np.abs(z[rows, j]), kind="stable")]
    groups = np.array_split(order, 4)
    chosen = index.quantiles(j, groups=4, each=3)
    assert len(chosen) == 4
    for group, picked in zip(groups, chosen):
        assert len(picked) == 3 and set(picked.rows) <= set(group)
        assert np.array_equal(picked.values, z[picked.rows, j])
        assert (np.diff(picked.rows) > 0).all()
    again, other = index.quantiles(j, 4, 3), index.quantiles(j, 4, 3, seed=1)
    assert all(np.array_equal(a.rows, b.rows) for a, b in zip(chosen, again))
    assert any(not np.array_equal(a.rows, b.rows) for a, b in zip(chosen, other))


def test_random_rows_are_any_of_the_active_ones(made):
    index, z, _ = made
    j = int(index.active.argmax())
    rows = set(z[:, j].nonzero()[0])
    draws = [index.random(j, 10, seed=seed) for seed in range(200)]
    assert all(len(set(draw.rows)) == 10 and set(draw.rows) <= rows for draw in draws)
    assert np.array_equal(draws[3].rows, index.random(j, 10, seed=3).rows)
    # each as likely: 2,000 draws of 10 among n
    seen = np.bincount(np.concatenate([draw.rows for draw in draws]), minlength=ROWS)[sorted(rows)]
    assert seen.sum() == 2000 and seen.max() < 8 * max(2000 / len(rows), 1)
    assert len(index.random(j, 10**6)) == len(rows)


def test_coactivation_counts_pairs_of_rows(made):
    index, z, _ = made
    active = z != 0
    together = active.T.astype(np.int64) @ active
    for j in (int(index.active.argmax()), int(index.active.argmin()), 5):
        found = index.coactivation(j)
        assert np.array_equal(found.together, together[j])
        either = (active | active[:, [j]]).sum(0)
        assert np.array_equal(found.jaccard, together[j] / np.maximum(either, 1))
        if index.active[j] == 0:
            assert (found.pmi == -np.inf).all() and not found.cosine.any()
            continue
        share, of_j = index.density, index.active[j]
        with np.errstate(divide="ignore"):
            pmi = np.log(together[j] / of_j / share)
        some = together[j] > 0
        assert np.allclose(found.pmi[some], pmi[some], rtol=1e-12, atol=1e-12)
        assert (found.pmi[~some] == -np.inf).all()
        norms = np.linalg.norm(z.astype(np.float64), axis=0)
        dot = z[:, j].astype(np.float64) @ z
        cosine = np.divide(dot, norms * norms[j], out=np.zeros_like(dot), where=norms > 0)
        assert np.allclose(found.cosine, cosine, rtol=1e-12, atol=1e-15)
        best = found.best(3)
        assert j not in [entry["index"] for entry in best]
        others = np.delete(found.jaccard, j)
        assert [entry["jaccard"] for entry in best] == sorted(others)[::-1][: len(best)]


def test_lag_counts_the_next_token_of_the_same_context(made):
    index, z, _ = made
    active = z != 0
    pairs = [r for r in range(ROWS - 1) if r // TOKENS == (r + 1) // TOKENS]
    j = int(index.active.argmax())
    found = index.coactivation(j, lag=1)
    before, after = active[pairs], active[[r + 1 for r in pairs]]
    assert found.pairs == len(pairs) and found.own == before[:, j].sum()
    assert np.array_equal(found.others, after.sum(0))
    assert np.array_equal(found.together, (before[:, [j]] & after).sum(0))
    i = int(found.together.argmax())
    expected = found.together[i] * len(pairs) / (found.own * after[:, i].sum())
    assert found.pmi[i] == pytest.approx(np.log(expected), rel=1e-12)


def test_values_in_ranges_of_rows(made):
    index, z, _ = made
    j = int(index.active.argmax())
    starts, stops = np.array([900, 0, 100, 1990]), np.array([990, 950, 100, 2000])
    dense = [z[start:stop, j] for start, stop in zip(starts, stops)]
    assert np.array_equal(index.windows(j, starts, stops), np.concatenate(dense))
