"""The zoo trains every variant, and its dense reference on the same rows."""

from __future__ import annotations

import csv
import json

import pytest
from made_stores import write_store
from zoo import bench_zoo, main

from saekit.bench.shapes import active_options


def test_a_variant_and_its_reference_are_trained_on_the_same_rows(tmp_path):
    store = write_store(tmp_path / "store", 3000)
    said, done = [], []
    size = {"rows": 3000, "latents": 32, "batch": 256, "epochs": 2}
    results = bench_zoo(
        True, said.append, store, ("topk", "l1"), size=size, active=4, done=done.append
    )
    assert [r.sparsity for r in results] == ["topk", "l1"] and len(said) == 2
    assert {r.rows for r in results} == {2 * 2850 // 256 * 256}, (
        "two epochs of what is not held out"
    )
    assert all(r.fvu_ratio == pytest.approx(1, abs=1e-3) for r in results) and done == results
    assert all(r.fvu_ratio == r.fvu / r.fvu_dense for r in results)
    assert results[0].l0 == 4 == results[0].l0_train and results[1].l0_train == pytest.approx(
        4, rel=0.5
    )


def test_every_variant_is_asked_for_the_same_number_of_active_latents():
    assert (
        active_options("topk", 32) == {"k": 32}
        and active_options("l1", 32) == {"target_l0": 32}
        and active_options("kl-sigmoid", 32) == {"target_l0": 32}
    )


def test_the_command_gives_a_table_json_and_a_csv(tmp_path, capsys):
    store = str(write_store(tmp_path / "store", 3000))
    main(
        ["--quick", "--store", store, "--names", "topk", "--csv", str(tmp_path / "z.csv"), "--json"]
    )
    out, err = capsys.readouterr()
    (result,) = json.loads(out)
    assert (
        result["sparsity"] == "topk"
        and result["l0"] == pytest.approx(32)
        and result["fvu_ratio"] == pytest.approx(1, abs=1e-2)
        and "topk" in err
    )
    (row,) = csv.DictReader((tmp_path / "z.csv").open())
    assert float(row["fvu"]) == result["fvu"] and row["saekit"] and row["date"]
    main(["--quick", "--store", store, "--names", "l1", "--dense", "--quiet"])
    out, err = capsys.readouterr()
    assert "2,048 latents, 5,632 rows" in out and "fvu / dense" in out and err == ""
