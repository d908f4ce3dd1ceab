from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from made_runs import digits_store, fvu, rows_store, side, trained
from made_stores import make_rows, write_store
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from saekit.errors import DataError, MissingError, UsageError
from saekit.evaluation.compare import COMPARED
from saekit.evaluation.table import evaluate
from saekit.harvesting.run import harvest
from saekit.report.comparison import compare
from saekit.store.reader import Store
from saekit.training.checkpoints import load


@pytest.fixture(scope="module")
def runs(digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    settings = {
        "dense": {"latents": 4, "hidden": (16,)},
        "linear": {"latents": 4},
        "sae": {"latents": 128, "k": 4},
        "vae": {"latents": 3, "hidden": (16,)},
    }
    return {
        model: trained(digits, out / model, model, **options) for model, options in settings.items()
    }


@pytest.fixture(scope="module")
def comparison(digits, runs):
    return compare(list(runs.values()), digits)


def row(comparison, name):
    (found,) = [row for row in comparison.rows if row.name == name]
    return found


def neighbours(digits, encode, k=5):
    """Only scikit-learn on the codes of both sides."""
    store, x_train, x = (
        Store(digits),
        side(digits, "train").float(),
        side(digits, "holdout").float(),
    )
    with torch.no_grad():
        z_train, z = (np.asarray(encode(t)) for t in (x_train, x))
    return (
        KNeighborsClassifier(k)
        .fit(z_train, store.labels("train"))
        .score(z, store.labels("holdout"))
    )


def test_figures_of_a_run_are_those_of_evaluate(comparison, digits, runs):
    for judged in evaluate(list(runs.values()), digits):
        mine = next(row for row in comparison.rows if row.checkpoint == judged.checkpoint)
        assert (mine.rows, mine.params, mine.latents, mine.role) == (
            judged.rows,
            judged.params,
            judged.latents,
            "run",
        )
        for name in ("fvu", "mse", "cosine", "l0", "dead"):
            assert mine.metrics[name] == judged.metrics[name], (mine.name, name)
    assert (
        row(comparison, "vae").metrics["elbo"] == evaluate(runs["vae"], digits)[0].metrics["elbo"]
    )


def test_knn_is_scikit_learns_on_the_codes(comparison, digits, runs):
    dense, sae = load(runs["dense"]), load(runs["sae"])
    assert row(comparison, "dense").metrics["knn"] == neighbours(digits, dense.encode)
    assert row(comparison, "sae").metrics["knn"] == neighbours(
        digits, lambda x: sae.encode(x).to_dense()
    )
    assert row(comparison, "raw input").metrics["knn"] == neighbours(digits, lambda x: x)
    assert compare(runs["dense"], digits, neighbours=1).rows[0].metrics["knn"] == neighbours(
        digits, dense.encode, k=1
    )


def test_the_pca_control_is_scikit_learns(comparison, digits):
    train, held_out = side(digits, "train").numpy(), side(digits, "holdout")
    for components in (4, 3):
        model = PCA(components, svd_solver="full").fit(train)
        again = torch.from_numpy(model.inverse_transform(model.transform(held_out.numpy())))
        assert row(comparison, f"pca {components}").metrics["fvu"] == pytest.approx(
            fvu(held_out, again), rel=1e-5
        )


def test_the_untrained_sae_is_a_run_that_did_not_move(digits, comparison, tmp_path):
    options = {
        "latents": 128,
        "k": 4,
        "normalize": "center+scale",
        "lr": 1e-12,
        "rows": 64,
        "batch": 64,
    }
    still = trained(digits, tmp_path / "still", "sae", **options)
    expected = evaluate(still, digits)[0].metrics["fvu"]
    assert row(comparison, "untrained sae 128, k 4").metrics["fvu"] == pytest.approx(
        expected, rel=1e-4
    )
    assert row(comparison, "untrained sae 2048, k 3").latents == 32 * 64
    assert compare(still, digits, seed=1).rows[3].metrics["fvu"] != pytest.approx(
        expected, rel=1e-4
    )


def test_controls_are_made_once_and_name_all_their_runs(comparison):
    assert row(comparison, "pca 4").control_of == ("dense", "linear", "sae")
    assert row(comparison, "k-means 4").control_of == ("dense", "linear")
    assert row(comparison, "pca 3").control_of == ("vae",)
    assert {r.name for r in comparison.rows if r.role == "run"} == {"dense", "linear", "sae", "vae"}
    names = [r.name for r in comparison.rows]
    assert len(set(names)) == len(names)
    assert (
        names.index("pca 4") > names.index("sae")
        and names.index("vae") > names.index("pca 4")
        and names[-1] == "raw input"
    )


def test_the_code_size_is_what_a_row_keeps(comparison):
    sizes = {r.name: r.code_size for r in comparison.rows}
    assert (sizes["dense"], sizes["sae"], sizes["vae"], sizes["k-means 4"], sizes["raw input"]) == (
        4,
        4,
        3,
        1,
        64,
    )


def test_capped_controls_say_so(comparison, digits, tmp_path):
    assert row(comparison, "k-means 75").control_of == ("sae",)  # a quarter of 300 training rows
    assert any("75 centroids, sae 128 latents" in note for note in comparison.notes)
    wide = trained(digits, tmp_path / "wide", "dense", latents=70, hidden=())
    found = compare(wide, digits)
    assert row(found, "pca 64").metrics["fvu"] < 1e-6 and any(
        "at most 64 components" in note for note in found.notes
    )


def test_a_pca_run_is_not_its_own_control(digits, tmp_path):
    found = compare(trained(digits, tmp_path / "pca 5", "pca", latents=5), digits)
    assert [r.name for r in found.rows][:2] == ["pca 5", "k-means 5"]


def test_without_labels_there_is_no_knn(tmp_path):
    store = rows_store(tmp_path / "store", make_rows(200), [None] * 200)
    found = compare(trained(store, tmp_path / "run", "pca", latents=3), store)
    assert all(r.metrics["knn"] is None for r in found.rows) and found.reference_rows == 0
    assert "raw input" not in [r.name for r in found.rows]


def test_rows_without_a_label_are_left_out_of_knn(tmp_path):
    x = make_rows(200)
    labels = [None if i % 3 == 0 else str(int(x[i, 0] > x[:, 0].median())) for i in range(200)]
    store = rows_store(tmp_path / "store", x, labels)
    found = compare(trained(store, tmp_path / "run", "pca", latents=3), store)
    opened, sides = Store(store), {}
    for name in ("train", "holdout"):
        known = [i for i, label in enumerate(opened.labels(name)) if label is not None]
        sides[name] = side(store, name)[known], [opened.labels(name)[i] for i in known]
    (x_train, y_train), (x_test, y_test) = sides["train"], sides["holdout"]
    assert found.rows[-1].metrics["knn"] == KNeighborsClassifier(5).fit(x_train, y_train).score(
        x_test, y_test
    )


def test_a_run_of_another_store_is_judged_and_named(digits, runs, tmp_path):
    other = digits_store(tmp_path / "other", rows=200)
    found = compare(runs["dense"], other)
    assert (
        found.notes[0] == "Trained on another store, which may hold the rows evaluated here: dense."
    )
    assert found.rows[0].rows == len(Store(other).split("holdout")) and found.split == "holdout"


def test_a_target_is_read_and_ridge_is_its_control(tmp_path):
    x = make_rows(400)
    y = x @ torch.randn(16, 5, generator=torch.Generator().manual_seed(1)) + 2
    stores = [
        rows_store(tmp_path / name, rows, [None] * 400) for name, rows in (("x", x), ("y", y))
    ]
    run = trained(
        stores[0], tmp_path / "run", "dense", latents=3, hidden=(), target_store=str(stores[1])
    )
    found = compare(run, stores[0])
    assert [r.name for r in found.rows] == ["run", "ridge"] and found.rows[1].control_of == ("run",)
    assert found.rows[1].metrics["fvu"] < 1e-6  # the target is a linear map of the input
    with torch.no_grad():
        expected = fvu(
            side(stores[1], "holdout"), load(run)(side(stores[0], "holdout").float()).x_hat.double()
        )
    assert found.rows[0].metrics["fvu"] == pytest.approx(expected, rel=1e-6)

    moved = stores[1].rename(tmp_path / "moved")
    with pytest.raises(MissingError, match="was trained on a target") as error:
        compare(run, stores[0])
    assert "target_store" in error.value.hint
    assert compare(run, stores[0], target_store=moved).rows[0].metrics == found.rows[0].metrics


def test_models_of_examples_have_controls_on_flat_examples(tmp_path):
    steps = np.linspace(0, 6, 12)[None, :, None]
    waves = np.sin(steps * np.linspace(0.5, 2, 120)[:, None, None] + np.array([0, 1.5])).astype(
        np.float32
    )
    np.save(tmp_path / "waves.npy", waves)
    harvest(
        "raw:array",
        str(tmp_path / "waves.npy"),
        tmp_path / "store",
        layout="sequence",
        holdout=0.25,
    )
    store = tmp_path / "store"
    found = compare(
        trained(store, tmp_path / "run", "recurrent", latents=3, width=8, rows=320), store
    )
    assert found.rows[0].unit == "example" and found.rows[0].code_size == 3
    train, held_out = (side(store, name).reshape(-1, 24).numpy() for name in ("train", "holdout"))
    model = PCA(3, svd_solver="full").fit(train)
    again = torch.from_numpy(model.inverse_transform(model.transform(held_out))).reshape(-1, 2)
    control = row(found, "pca 3 of examples")
    assert control.unit == "example" and control.rows == len(held_out) * 12
    assert control.metrics["fvu"] == pytest.approx(fvu(side(store, "holdout"), again), rel=1e-4)


def test_examples_of_many_lengths_have_controls_on_rows(tmp_path):
    # the last context is shorter
    store = write_store(tmp_path / "store", 600, layout="sequence", tokens=7)
    found = compare(
        trained(store, tmp_path / "run", "recurrent", latents=14, width=8, rows=128), store
    )
    assert row(found, "pca 2").unit == "row"  # 14 numbers for 7 rows
    assert any("with 2 numbers each" in note for note in found.notes)


def test_metrics_are_named_alike_everywhere(comparison):
    assert all(tuple(r.metrics) == COMPARED for r in comparison.rows)
    assert all(
        math.isfinite(v) for r in comparison.rows for v in r.metrics.values() if v is not None
    )


def test_the_number_of_judged_rows_can_be_capped(digits, runs):
    assert {
        r.rows for r in compare(runs["dense"], digits, rows=30).rows if r.name != "raw input"
    } == {30}


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        ({"runs": []}, "no run"),
        ({"split": "test"}, 'split="test"'),
        ({"rows": 0}, "rows=0"),
        ({"neighbours": 0}, "neighbours=0"),
    ],
)
def test_wrong_usage_is_named(digits, runs, wrong, cause):
    with pytest.raises(UsageError, match=cause):
        compare(**{"runs": [runs["dense"]], "store": digits, **wrong})


def test_runs_that_cannot_be_compared_are_named(digits, runs, tmp_path):
    narrow = rows_store(tmp_path / "narrow", make_rows(100), [None] * 100)
    with pytest.raises(DataError, match=r"takes 64 values per row .* holds 16"):
        compare(runs["dense"], narrow)
    with pytest.raises(UsageError, match="given twice"):
        compare([runs["dense"], runs["dense"]], digits)
    with pytest.raises(UsageError, match="none of the runs was trained on a target"):
        compare(runs["dense"], digits, target_store=digits)
    with pytest.raises(MissingError, match="no checkpoint"):
        compare(tmp_path / "nothing", digits)


def test_anomalies_are_told_by_their_errors(digits, runs, tmp_path):
    noise = rows_store(
        tmp_path / "noise",
        torch.rand(200, 64, generator=torch.Generator().manual_seed(0)),
        [None] * 200,
    )
    with pytest.raises(DataError, match=r'anomalies=".*": shape'):
        compare([runs["dense"]], digits, anomalies=noise)
    harvest("raw:array", _images(tmp_path, 200), tmp_path / "images")
    found = compare([runs["dense"]], digits, anomalies=tmp_path / "images")
    model, x = load(runs["dense"]), side(digits, "holdout").float()
    strange = side(tmp_path / "images", "all").float()
    errors = [(rows - model(rows).x_hat).square().sum(1).double() for rows in (x, strange)]
    # the definition of AUROC; continuous errors have no ties
    above = (errors[1][:, None] > errors[0][None, :]).double().mean()
    assert (
        row(found, "dense").metrics["auroc"] == pytest.approx(float(above), abs=1e-9)
        and above > 0.95
    )
    assert row(compare([runs["dense"]], digits), "dense").metrics["auroc"] is None


def _images(folder, count):
    """Uniform noise of the digits' shape, as a file."""
    np.save(
        folder / "noise.npy", np.random.default_rng(0).random((count, 8, 8, 1)).astype(np.float32)
    )
    return str(folder / "noise.npy")
