"""`python benchmarks/classic.py`: its figures are those of the model, on small data and few
epochs."""

from __future__ import annotations

import csv
import json

import adversarial
import pytest
import torch
from cases import CASES, DATA, Case, dense, pca
from classic import FIGURES, bench_classic, fit_rows, main, rows_of, run_case
from made_runs import digits_store

from saekit.bench.timing import CsvFile, machine
from saekit.errors import UsageError
from saekit.models.catalog import CATALOG, build
from saekit.store.reader import open_store
from saekit.training.config import TrainConfig

SMALL = {"hidden": (32,)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("classic")
    digits_store(out / "digits", rows=None, holdout=0.2)
    return out


def test_every_case_names_data_that_is_there_and_options_that_its_model_takes():
    trained = set()
    for case in CASES:
        assert case.data in DATA and case.options.get("target_store", case.data) in DATA, case.name
        if case.model in CATALOG:
            # refuses what the model does not take
            TrainConfig.from_flat({"model": case.model, **case.options})
            trained.add(case.model)
    generators = {case.model for case in adversarial.CASES} - {adversarial.REAL}
    assert trained | generators == set(CATALOG), "every model of the catalog is measured"
    assert len({(case.data, case.name, case.task) for case in CASES}) == len(CASES)


def test_reconstruction_figures_are_those_of_the_held_out_rows(folder):
    found = run_case(pca("digits", 8), 0, str(folder), None)
    x, _ = rows_of(open_store(folder / "digits"), "train")
    x_test, _ = rows_of(open_store(folder / "digits"), "holdout")
    assert len(x_test) == 360 and len(x) == 1437  # a fifth, rounded up
    basis = torch.linalg.svd((x - x.mean(0)).double(), full_matrices=False).Vh[:8]
    centred = (x_test - x.mean(0)).double()
    error = (centred - centred @ basis.T @ basis).square().sum(1).mean()
    assert found["sse"] == pytest.approx(float(error), rel=1e-5)
    assert 0.9 < found["knn"] <= 1


def test_denoising_is_measured_against_the_clean_rows(folder):
    found = run_case(
        dense("digits", "small", 16, "denoise", noise="gaussian:0.25", **SMALL), 0, str(folder), 40
    )
    assert found["psnr_in"] == pytest.approx(12.04, abs=0.1)  # 20 log10(1 / 0.25)
    assert found["psnr"] > found["psnr_in"] + 2


def test_anomalies_maps_and_few_labels(folder):
    one = run_case(pca("digits", 16, "one_class"), 0, str(folder), None)
    assert 0.95 < one["auroc_worst"] <= one["auroc"] <= 1
    drawn = run_case(Case("digits", "map", "t-sne", {}, "map", rows=300), 0, str(folder), None)
    plain = run_case(
        Case("digits", "map", "pca", {"latents": 2}, "map", rows=300), 0, str(folder), None
    )
    assert drawn["trust"] > plain["trust"] and drawn["knn"] > plain["knn"]
    few = run_case(dense("digits", "few", 16, "classify", **SMALL), 0, str(folder), 20)
    assert few["frozen"] > 0.5 and few["tuned"] > 0.5 and 0.1 < few["scratch"] < 1
    assert set(run_case(pca("digits", 16, "classify"), 0, str(folder), None)) >= {"frozen"}


def test_seeds_differ_and_repeat():
    x = torch.rand(200, 12, generator=torch.Generator().manual_seed(0))
    case = dense("digits", "small", 2, hidden=(8,))
    first, again, other = (fit_rows(x, case, seed, 3)[0] for seed in (0, 0, 1))
    assert torch.equal(first(x).x_hat, again(x).x_hat) and not torch.equal(
        first(x).x_hat, other(x).x_hat
    )
    assert type(first) is type(build("dense", 12, case.options))


@pytest.mark.slow
def test_a_run_gives_means_and_spreads_and_a_csv(tmp_path):
    said = []
    cases = [pca("digits", 4), dense("digits", "small", 4, **SMALL)]
    results = bench_classic(True, said.append, cases, seeds=2)
    assert [(r.name, r.seeds) for r in results] == [("pca 4", 1), ("small", 2)]
    closed, trained = results
    assert closed.spread["sse"] is None and trained.spread["sse"] > 0 and len(said) == 1 + 3
    file = CsvFile(tmp_path / "c.csv", machine(torch.device("cpu")))
    for result in results:
        file.write(result.flat())
    rows = list(csv.DictReader((tmp_path / "c.csv").open()))
    assert (
        float(rows[1]["sse"]) == trained.figures["sse"]
        and set(rows[0]) >= set(FIGURES)
        and rows[0]["auroc"] == ""
    )


@pytest.mark.slow  # a process of its own, which imports torch
def test_the_command_gives_json_and_a_csv(tmp_path, capsys):
    main(["--quick", "--names", "pca 8", "--csv", str(tmp_path / "c.csv"), "--json"])
    out, err = capsys.readouterr()
    (result,) = json.loads(out)
    assert (result["data"], result["name"], result["seeds"]) == (
        "digits",
        "pca 8",
        1,
    ) and "1/1  digits  pca 8  seed 0" in err
    (row,) = csv.DictReader((tmp_path / "c.csv").open())
    assert float(row["fvu"]) == result["figures"]["fvu"] and row["torch"] == torch.__version__


def test_a_case_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match='names="pca 80": did you mean pca 8'):
        main(["--names", "pca 80"])
