"""Another dictionary on a page: its matches, by decoder rows and by activations, worked out again
from the matrices."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from command import saekit as cli
from made_codes import planted
from safetensors.torch import load_file, save_file

import saekit
from saekit.errors import DataError, UsageError
from saekit.inspection import gather
from saekit.inspection.beside_match import (
    CHANCE,
    cosine_by_chance,
    nearest_directions,
    summary,
)
from saekit.inspection.beside_rows import RowMatches
from saekit.inspection.existing import ExistingPage
from saekit.measures.stability import matched

LATENTS, ROWS, CONTEXT = 10, 1280, 16


def unit(W: torch.Tensor) -> np.ndarray:
    W = W.double().numpy()
    return W / np.linalg.norm(W, axis=1, keepdims=True)


def two_dictionaries(seed: int = 0):
    """(W, V, alive_F, alive_G): half of V's rows are near rows of W."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(60, 16, generator=generator)
    V = torch.randn(80, 16, generator=generator) * 3
    V[:30] = W[torch.randperm(60, generator=generator)[:30]]
    V[:30] += 0.2 * torch.randn(30, 16, generator=generator)
    return W, V, torch.arange(60) % 11 != 0, torch.arange(80) % 13 != 0


def test_nearest_directions_are_those_of_all_pairs():
    W, V, alive_F, alive_G = two_dictionaries()
    cosines = unit(W) @ unit(V).T
    cosines[:, ~alive_G.numpy()] = -np.inf
    found = nearest_directions(W, V, alive_F, alive_G)
    order = np.argsort(-cosines, 1)[:, :5]
    firing = alive_F.numpy()
    assert (found.nearest_FK.numpy()[firing] == order[firing]).all()
    assert found.cosine_FK[alive_F].numpy() == pytest.approx(
        np.take_along_axis(cosines, order, 1)[firing], abs=1e-6
    )
    assert (found.nearest_FK[~alive_F] == -1).all()
    best = (unit(W)[firing] @ unit(V).T).max(0)
    assert found.best_G[alive_G].numpy() == pytest.approx(best[alive_G.numpy()], abs=1e-6)
    assert (found.best_G[~alive_G] == -torch.inf).all()


def test_figures_of_both_dictionaries_as_a_whole():
    W, V, alive_F, alive_G = two_dictionaries()
    found = summary(W, V, alive_F, alive_G, nearest_directions(W, V, alive_F, alive_G))
    cosines = (unit(W) @ unit(V).T)[alive_F.numpy()][:, alive_G.numpy()]
    for way, best in enumerate([cosines.max(1), cosines.max(0)]):
        assert found["alive"][way] == len(best) == sum(found["counts"][way])
        assert found["share"][way] == np.mean(best >= 0.7)
        assert found["mean_best"][way] == pytest.approx(best.mean(), abs=1e-6)
    assert 0.3 < found["share"][0] < 0.7  # half have a partner by construction
    assert found["partners"] == (cosines.max(1) >= 0.7).sum() and found["same_number"] is None
    pairs_mean = float(matched(W[alive_F], V[alive_G])[1].mean())
    assert found["one_to_one"] == pytest.approx(pairs_mean)


def test_a_dictionary_in_another_order_is_found_whole():
    W = torch.randn(50, 8, generator=torch.Generator().manual_seed(3))
    order = torch.randperm(50, generator=torch.Generator().manual_seed(4))
    alive = torch.ones(50, dtype=torch.bool)
    found = nearest_directions(W, 7 * W[order], alive, alive)
    assert order[found.nearest_FK[:, 0]].tolist() == list(range(50))
    figures = summary(W, W[order], alive, alive, found)
    assert figures["partners"] == 50 and figures["same_number"] == (order == torch.arange(50)).sum()
    as_it_was = nearest_directions(W, 7 * W, alive, alive)
    assert summary(W, 7 * W, alive, alive, as_it_was)["same_number"] == 50
    assert figures["share"] == [1.0, 1.0] and figures["one_to_one"] == pytest.approx(1.0)


def test_chance_is_that_of_random_directions_and_rises_with_a_common_mean():
    generator = torch.Generator().manual_seed(5)
    W, V = (torch.randn(800, 24, generator=generator) for _ in range(2))
    alive = torch.ones(800, dtype=torch.bool)
    found = cosine_by_chance(W, V, alive, alive)
    rng = np.random.default_rng(6)
    drawn = rng.standard_normal((800, 24))
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    assert found == pytest.approx(np.quantile((unit(W) @ drawn.T).max(1), CHANCE), abs=0.03)
    shifted = cosine_by_chance(W + 1, V + 1, alive, alive)
    assert shifted > found + 0.05
    assert shifted == cosine_by_chance(W + 1, V + 1, alive, alive)


# --- activations on the same rows ----------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(store, run, other run, codes of the run (N,F), codes of the other): the store's rows are the
    codes of the run; the other has its latents in another order, mixed a little."""
    folder = tmp_path_factory.mktemp("beside")
    rng = np.random.default_rng(0)
    z = rng.integers(1, 80, (ROWS, LATENTS)) / 8
    z = z * (rng.random((ROWS, LATENTS)) < rng.random(LATENTS) / 2)
    z[:, 4] = 0  # dead
    words = [f"w{n}" for n in range(20)]
    tokens = torch.from_numpy(rng.integers(0, 20, ROWS))
    store, run = planted(folder, torch.from_numpy(z).float(), tokens, CONTEXT, None, words)
    other = folder / "other"
    saekit.train(store, other, sparsity="l1", latents=LATENTS, batch=8, rows=16, seed=1)
    order = rng.permutation(LATENTS)
    mixed = np.eye(LATENTS)[:, order]
    mixed -= 0.3137 * (rng.random((LATENTS, LATENTS)) < 0.15)  # no sum of them is 0
    weights = load_file(other / "model.safetensors")
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    weights = {
        "W_enc": torch.from_numpy(mixed.T).float().contiguous(),
        # no two cosines are equal
        "W_dec": torch.from_numpy(mixed.T + 0.02 * rng.random(mixed.shape)).float().contiguous(),
        "b_enc": torch.zeros(LATENTS),
        "b_dec": torch.zeros(LATENTS),
    }
    assert {name: tensor.shape for name, tensor in weights.items()} == shapes
    save_file(weights, other / "model.safetensors")
    codes = np.maximum(z @ mixed, 0)
    for checkpoint in (run, other):
        saekit.index(checkpoint, store)
    return store, run, other, z, codes


def correlations(z: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(F,G), 0 for a dead latent."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(np.corrcoef(z.T, codes.T)[:LATENTS, LATENTS:])


def test_figures_of_rows_are_those_of_the_codes(made):
    store, run, other, z, codes = made
    rows = RowMatches(saekit.open_index(run, store), saekit.open_index(other, store))
    correlation = correlations(z, codes)
    both = (z > 0).astype(int).T @ (codes > 0).astype(int)
    either = (z > 0).sum(0)[:, None] + (codes > 0).sum(0)[None] - both
    seen = 0
    for a, b, together, products in rows.blocks():
        first, second = (n.ravel() for n in np.mgrid[a:b, 0:LATENTS])
        found = rows.of_pairs(a, together, products, first, second)
        assert (found.together == both[first, second]).all()
        assert found.jaccard == pytest.approx((both / np.maximum(either, 1))[first, second])
        assert found.correlation == pytest.approx(correlation[first, second], abs=1e-6)
        for latent, best in rows.best(a, together, products, count=3).items():
            possible = np.where(both[latent] >= 3, correlation[latent], -np.inf)
            assert (
                best.tolist() == np.argsort(-possible)[: min(3, (both[latent] >= 3).sum())].tolist()
            )
            seen += 1
    assert seen == LATENTS - 1  # the dead one has no match


def test_chance_of_rows_is_that_of_rows_moved_on(made):
    store, run, other, z, codes = made
    found = RowMatches(saekit.open_index(run, store), saekit.open_index(other, store)).by_chance()
    moved = np.roll(codes, -(ROWS // 2), 0)
    correlation = correlations(z, moved)
    correlation[(z > 0).astype(int).T @ (moved > 0).astype(int) < 3] = 0
    best = np.maximum(correlation.max(1), 0)[(z > 0).sum(0) >= 3]
    assert found == pytest.approx(np.quantile(best, CHANCE), abs=1e-6)


# --- the page ------------------------------------------------------------------------------------


def catalog_of(page: Path) -> dict:
    packed = re.search(r'id="catalog">([^<]+)<', (page / "index.html").read_text())
    return json.loads(gzip.decompress(base64.b64decode(packed[1])))


def part(page: Path, folder: str, number: int = 0):
    text = (page / folder / f"{number:03d}.js").read_text()
    assert text.startswith(f'saekitPart("{folder}",{number},"')
    return json.loads(gzip.decompress(base64.b64decode(text.split('"')[3])))


@pytest.fixture
def page(made, tmp_path, monkeypatch):
    store, run, other, *_ = made
    # the store's model is none that could be looked for
    monkeypatch.setattr(gather, "output_head", lambda *_: (None, "there is no model"))
    saekit.inspect(run, store, tmp_path / "page", features="0-3,5", beside=other, jsonl=True)
    return tmp_path / "page"


def at_four_digits(value: float) -> float:
    return float(f"{value:.4g}")


def test_the_page_lists_the_matches_of_its_latents(made, page):
    _, run, other, z, codes = made
    W, V = (saekit.load(checkpoint).W_dec.detach() for checkpoint in (run, other))
    cosines = unit(W) @ unit(V).T
    correlation = correlations(z, codes)
    both = (z > 0).astype(int).T @ (codes > 0).astype(int)
    firing = np.flatnonzero((codes > 0).any(0))
    matches = part(page, "matches")
    assert [j for j, of_one in enumerate(matches) if of_one is not None] == [0, 1, 2, 3, 5]
    for j in (0, 1, 2, 3, 5):
        rows = np.reshape(matches[j], (-1, 5))
        nearest = firing[np.argsort(-cosines[j, firing])[:5]].tolist()
        alike = firing[both[j, firing] >= 3]
        alike = alike[np.argsort(-correlation[j, alike])[:5]].tolist()
        assert set(rows[:, 0]) == {*nearest, *alike}
        for g, cosine, together, _, correlated in rows:
            assert cosine == pytest.approx(at_four_digits(cosines[j, int(g)]), rel=1e-3, abs=1e-6)
            assert together == both[j, int(g)]
            assert correlated == pytest.approx(at_four_digits(correlation[j, int(g)]), rel=1e-3)
    facts = catalog_of(page)["beside"]
    best = cosines[:, firing].max(1)
    lacking = [j for j in range(LATENTS) if best[j] < 0.7 and z[:, j].any()]
    assert facts["without"] == lacking and facts["name"] == "other"
    # what both configs say of their training
    for trained, checkpoint, seed in zip(facts["trained"], (run, other), (0, 1)):
        config = json.loads((checkpoint / "config.json").read_text())
        assert trained == {
            "kind": "l1", "latents": LATENTS, "width": LATENTS, "seed": seed, "order": seed,
            "rows": config["result"]["rows"], "content": config["content"], "here": True,
        }  # fmt: skip


def test_the_others_examples_are_those_of_its_own_page(made, page, tmp_path, monkeypatch):
    store, _, other, *_ = made
    saekit.inspect(other, store, tmp_path / "own", top=10, map="none", jsonl=True)
    own = {record.index: record for record in ExistingPage(tmp_path / "own").records()}
    wanted = {g for of_one in part(page, "matches") if of_one for g in of_one[::5]}
    listed = part(page, "other")
    assert set(listed["records"]) == wanted
    shown = part(page, "beside")
    assert [record["index"] for record in shown] == listed["records"]
    for record in shown:
        expected = [e for e in own[record["index"]].examples if e.group == "top"]
        assert [example[1] for example in record["examples"]] == [e.example_id for e in expected]
        assert [example[5] for example in record["examples"]] == [
            at_four_digits(e.act) for e in expected
        ]
        assert record["active_rows"] == own[record["index"]].active_rows
    assert (
        not (tmp_path / "own" / "map").exists() and catalog_of(tmp_path / "own").get("map") is None
    )


def test_a_page_that_is_extended_keeps_the_other_dictionary(made, page):
    store, run, *_ = made
    before = catalog_of(page)
    saekit.inspect(run, store, page, features="7")
    after = catalog_of(page)
    assert after["records"] == [*before["records"], 7]
    assert after["beside"] == before["beside"] and after["map"] == before["map"]
    assert part(page, "matches")[7] is not None


def test_one_file_holds_the_same(made, page, tmp_path):
    store, run, other, *_ = made
    saekit.inspect(run, store, tmp_path / "one", features="0-3,5", beside=other, single_file=True)
    blocks = dict(
        re.findall(r'id="([\w-]+)">([^<]+)</script>', (tmp_path / "one" / "index.html").read_text())
    )
    for folder in ("map", "matches", "other", "beside"):
        inside = json.loads(gzip.decompress(base64.b64decode(blocks[f"{folder}-0"])))
        assert inside == part(page, folder)


def test_a_dense_code_has_cosines_only(made, page, tmp_path):
    store, run, *_ = made
    saekit.train(store, tmp_path / "pca", model="pca", latents=6)
    saekit.inspect(run, store, tmp_path / "dense", features="0-3", beside=tmp_path / "pca")
    facts = catalog_of(tmp_path / "dense")["beside"]
    assert "correlation_chance" not in facts and facts["kind"] == "pca"
    V = unit(saekit.load(tmp_path / "pca").W_dec.detach())
    for j, of_one in enumerate(part(tmp_path / "dense", "matches")[:4]):
        rows = np.array(of_one, object).reshape(-1, 5)
        assert (rows[:, 2:] == None).all()  # noqa: E711
        best = np.argsort(-V[:, j])[:5]  # a decoder row of the run is a unit vector
        assert rows[:, 0].tolist() == best.tolist()
        assert rows[:, 1] == pytest.approx([at_four_digits(V[g, j]) for g in best], rel=1e-3)


def test_what_cannot_be_compared_is_refused(made, tmp_path):
    store, run, *_ = made
    narrow = torch.randn(64, 4)
    saekit.train(narrow, tmp_path / "narrow", latents=8, k=2, batch=16, rows=64)
    with pytest.raises(DataError, match=r"takes 4 values per row.*\ntry: beside with a checkpoint"):
        saekit.inspect(run, store, tmp_path / "page", beside=tmp_path / "narrow")
    saekit.train(store, tmp_path / "deep", model="dense", rows=64, batch=16)
    with pytest.raises((DataError, UsageError), match="deep decoder"):
        saekit.inspect(run, store, tmp_path / "page", beside=tmp_path / "deep")
    assert not (tmp_path / "page" / "index.html").exists()


def test_the_command_line_takes_both_options(made, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gather, "output_head", lambda *_: (None, "there is no model"))
    store, run, other, *_ = made
    out = tmp_path / "page"
    arguments = ["--beside", other, "--map", "none", "--features", "0-1", "--json", "-q"]
    status, text, error = cli(capsys, "inspect", run, "--store", store, "--out", out, *arguments)
    assert status == 0 and json.loads(text)["features"] == 2, error
    found = catalog_of(out)
    assert found["beside"]["name"] == "other" and "map" not in found
    assert f'beside = "{other}"' in (out / "config.toml").read_text()
