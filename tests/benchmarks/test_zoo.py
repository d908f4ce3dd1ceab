"""The dense reference is the same autoencoder: its losses and gradients are those of the sparse
step."""

from __future__ import annotations

import csv
import json
from contextlib import nullcontext

import pytest
import torch
from dense_reference import DENSE, dense, dense_code
from made_stores import write_store
from zoo import bench_zoo, main, options_for

from saekit.models.catalog import build
from saekit.models.sparsity import VARIANTS
from saekit.types import ActivationBatch, Step

D, F, K = 12, 64, 6


def made(name):
    sae = build("sae", D, {"sparsity": name, "latents": F, "k": K}).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(50, D, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return sae, x


@pytest.mark.parametrize("name", DENSE)
def test_loss_and_gradients_are_those_of_the_sparse_step(name):
    own, found = VARIANTS[name], []
    for step in (nullcontext(), dense(name)):
        with step:
            sae, x = made(name)
        index = torch.arange(len(x))
        terms = sae.loss(ActivationBatch(x, index, index, index), Step(0, 10))
        terms.total.backward()
        found.append(
            [terms.total.detach(), terms.fired, *(parameter.grad for parameter in sae.parameters())]
        )
    assert VARIANTS[name] is own
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, check_dtype=False)  # counts are int32 or int64


def test_dense_codes_by_hand():
    pre = torch.tensor([[3.0, -4.0, 1.0], [0.5, 2.0, -1.0]])
    assert dense_code("topk", pre, 1).tolist() == [[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]]
    assert dense_code("abs-topk", pre, 1).tolist() == [[0.0, -4.0, 0.0], [0.0, 2.0, 0.0]]
    assert dense_code("batchtopk", pre + torch.tensor([[0.0], [-2.0]]), 1).tolist() == [
        [3.0, 0.0, 1.0],
        [0.0, 0.0, 0.0],
    ]


def test_a_variant_and_its_reference_are_trained_on_the_same_rows(tmp_path):
    store = write_store(tmp_path / "store", 3000)
    said = []
    size = {"rows": 3000, "latents": 32, "batch": 256, "epochs": 2}
    results = bench_zoo(True, said.append, store, ("topk", "l1"), size=size, active=4)
    assert [r.sparsity for r in results] == ["topk", "l1"] and len(said) == 2
    assert {r.rows for r in results} == {2 * 2850 // 256 * 256}, (
        "two epochs of what is not held out"
    )
    assert results[0].fvu_ratio == pytest.approx(1, abs=1e-3) and results[1].fvu_dense is None
    assert results[0].l0 == 4 == results[0].l0_train and results[1].l0_train == pytest.approx(
        4, rel=0.5
    )


def test_every_variant_is_asked_for_the_same_number_of_active_latents():
    assert (
        options_for("topk", 32) == {"k": 32}
        and options_for("l1", 32) == {"target_l0": 32}
        and options_for("kl", 32) == {"target_l0": 32}
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
        and result["l0"] == 32
        and result["fvu_ratio"] == pytest.approx(1, abs=1e-2)
        and "topk" in err
    )
    (row,) = csv.DictReader((tmp_path / "z.csv").open())
    assert float(row["fvu"]) == result["fvu"] and row["saekit"] and row["date"]
    main(["--quick", "--store", store, "--names", "l1", "--quiet"])
    out, err = capsys.readouterr()
    assert "2,048 latents, 5,632 rows" in out and "fvu / dense" in out and err == ""
