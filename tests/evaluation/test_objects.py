"""evaluate, compare, sweep and load on objects: models and rows in memory give what their folders
give."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from made_runs import rows_store
from made_stores import make_rows

import saekit
from saekit.errors import DataError, UsageError
from saekit.store.reader import Store

SMALL = {"latents": 48, "batch": 64, "rows": 1280, "device": "cpu"}
X_ND = make_rows(1000)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The rows as a store whose held-out rows are those of the array, and two runs on it."""
    folder = tmp_path_factory.mktemp("objects")
    store = rows_store(folder / "store", X_ND, [None] * len(X_ND), holdout=0.05)
    results = {
        "topk": saekit.train(store, folder / "topk", k=4, **SMALL),
        "pca": saekit.train(store, folder / "pca", model="pca", latents=4),
    }
    return store, results


def figures(comparison) -> list[tuple]:
    return [(row.model, row.role, row.rows, row.code_size, row.metrics) for row in comparison.rows]


def test_what_train_returned_is_judged_as_its_folder(made):
    store, results = made
    by_path = saekit.evaluate([result.path for result in results.values()], store)
    by_result = saekit.evaluate(list(results.values()), Store(store))
    assert by_path == by_result and by_path[0].split == "holdout"
    assert saekit.evaluate(Path(results["pca"].path), store) == by_path[1:]


def test_a_model_in_memory_has_the_figures_of_its_folder(made):
    store, results = made
    by_path = saekit.evaluate(results["topk"].path, store)[0]
    [judged] = saekit.evaluate(results["topk"].model, X_ND, split="holdout")
    assert (judged.model, judged.params, judged.rows) == ("sae topk", by_path.params, by_path.rows)
    assert judged.metrics == by_path.metrics | {"dead_train": None}


def test_a_comparison_of_objects_is_that_of_folders(made):
    store, results = made
    by_path = saekit.compare([result.path for result in results.values()], store)
    models = [results["topk"].model, results["pca"].model]
    assert figures(saekit.compare(models, Store(store))) == figures(by_path)
    array = saekit.compare(models, X_ND)
    # k-means sees the rows in another order: an array is shuffled as a whole, a store in blocks
    runs = [[row for row in figures(found) if row[1] == "run"] for found in (array, by_path)]
    assert runs[0] == runs[1] and len(runs[0]) == 2
    for rows in (X_ND.numpy(), [X_ND[:300], X_ND[300:]]):
        assert figures(saekit.compare(models, rows)) == figures(array)
    assert "In memory, without a record" in array.notes[0]


def test_anomalies_in_memory_are_those_of_a_store(made, tmp_path):
    store, results = made
    noise_ND = 30 * torch.randn(200, X_ND.shape[1], generator=torch.Generator().manual_seed(1))
    stored = rows_store(tmp_path / "noise", noise_ND, [None] * 200)
    by_path = saekit.compare(results["pca"], store, anomalies=stored)
    assert figures(by_path) == figures(saekit.compare(results["pca"], store, anomalies=noise_ND))
    assert by_path.rows[0].metrics["auroc"] > 0.9


def test_a_page_of_objects_says_what_it_knows(made, tmp_path):
    _, results = made
    found = saekit.compare(results["topk"].model, X_ND, tmp_path / "page", anomalies=X_ND)
    page = Path(found.report).read_text()
    assert "not known" in page and "Figures" in page
    written = json.loads((tmp_path / "page" / "compare.json").read_text())
    assert written["runs"] == [type(results["topk"].model).__name__]
    config = (tmp_path / "page" / "config.toml").read_text()
    assert "runs" not in config and "store" not in config and 'split = "holdout"' in config


def test_rows_that_do_not_fit_a_model_in_memory_are_named(made, tmp_path):
    _, results = made
    with pytest.raises(DataError, match="takes 16 values per row, the array holds 3"):
        saekit.compare(results["topk"].model, torch.zeros(10, 3))
    with pytest.raises(UsageError, match="int is not a checkpoint"):
        saekit.evaluate(7, X_ND)
    stores = [rows_store(tmp_path / name, make_rows(40, seed=i), [None] * 40)
              for i, name in enumerate("ab")]  # fmt: skip
    with pytest.raises(UsageError, match="compare takes one store"):
        saekit.compare(results["topk"].model, stores)


def test_load_cuts_a_model_in_memory_as_its_folder(made, tmp_path):
    store, results = made
    model = results["topk"].model
    assert saekit.load(model) is model and saekit.load(results["pca"]).latents == 4
    x = X_ND[:50]
    by_path, in_memory = (saekit.load(given, k=2) for given in (results["topk"].path, model))
    assert torch.equal(by_path(x).x_hat, in_memory(x).x_hat)
    nested = saekit.train(
        store, tmp_path / "nested", sparsity="matryoshka", groups=(0.25, 1.0), **SMALL
    )
    by_path, in_memory = (
        saekit.load(given, latents=12) for given in (nested.path, saekit.load(nested.path))
    )
    assert in_memory.latents == 12 and torch.equal(by_path(x).x_hat, in_memory(x).x_hat)


def test_a_sweep_on_rows_in_memory_trains_what_train_does(tmp_path):
    grid = {"k": [2, 4], **{name: SMALL[name] for name in ("latents", "batch", "rows")}}
    result = saekit.sweep(X_ND, tmp_path / "sweep", grid, device="cpu")
    for member, k in zip(result.members, (2, 4)):
        alone = saekit.train(X_ND, k=k, order_seed=0, **SMALL)
        assert member.metrics == alone.metrics
        swept = saekit.load(member.path).state_dict()
        assert all(torch.equal(swept[n], t) for n, t in alone.model.state_dict().items())
    again = saekit.sweep(X_ND, tmp_path / "sweep", grid, device="cpu", resume=True)
    assert again.members == result.members
    assert dataclasses.asdict(result)["page"] == str(tmp_path / "sweep" / "pareto.html")
    with pytest.raises(UsageError, match="live needs a store"):
        saekit.sweep(X_ND, tmp_path / "live", grid, live=True)
