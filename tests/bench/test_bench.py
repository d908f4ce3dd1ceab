"""The benchmark measures what it says: real arms, a stated L0, ratios that follow from the
medians."""

from __future__ import annotations

import csv
import dataclasses

import pytest
import torch
from saekit_kernels import relu_reconstruction

from saekit.bench import run_suite
from saekit.bench.shapes import Shape, hidden_rows, parse_shapes, sae_for
from saekit.bench.timing import interleaved, machine, write_csv
from saekit.bench.train import _dense_step, _saekit_step
from saekit.errors import MissingError, UsageError

CPU = torch.device("cpu")
SMALL = Shape(16, 128, 256)


@pytest.mark.parametrize("suite,ops", [("kernels", 10), ("train", 3)])
def test_a_suite_measures_every_operation_against_dense(suite, ops):
    results = run_suite(suite, [str(SMALL)], 4, [], True, CPU, lambda _: None)
    assert len({m.op for m in results}) == ops
    for m in results:
        assert 0 < m.ms_p20 <= m.ms <= m.ms_p80 and m.shape == "16x128x256"
        dense = [d for d in results if (d.op, d.mode) == (m.op, "dense")]
        assert m.ratio == (round(dense[0].ms / m.ms, 2) if dense else None)


def test_arms_are_called_in_turn_and_the_first_round_is_not_counted():
    calls = []
    times = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, CPU)
    assert calls == ["a", "b"] * 4 and set(times) == {"a", "b"}


def test_the_l0_of_a_thresholded_sae_is_the_one_asked_for():
    x = hidden_rows(512, 16)
    model = sae_for(SMALL, x, "l1", 4, l0=9.0)
    made = relu_reconstruction(x, *model.weights, 0.0)
    assert made.fired_F.sum().item() / 512 == pytest.approx(9.0, rel=0.01)


def test_rows_have_unit_variance_and_outliers():
    x = hidden_rows(4000, 64)
    assert x.square().sum(1).mean().item() == pytest.approx(64, rel=1e-5)
    assert x.norm(dim=1).max() > 3 * x.norm(dim=1).median()


@pytest.mark.parametrize("sparsity", ["topk", "l1", "kl"])
def test_the_dense_arm_does_the_same_step(sparsity):
    """A ratio is only worth something between equal steps."""
    x = hidden_rows(256, 16)
    model = sae_for(SMALL, x, sparsity, 4, 9.0 if sparsity == "l1" else None)
    ours = _saekit_step(model, x, "torch")
    dense = _dense_step(model, x, 4)
    for _ in range(2):
        ours(), dense()
    trained = {
        cell.cell_contents
        for cell in ours.__closure__
        if isinstance(cell.cell_contents, torch.nn.Module)
    }.pop()
    parameters = next(
        c.cell_contents for c in dense.__closure__ if isinstance(c.cell_contents, list)
    )
    for a, b in zip(trained.weights, parameters):
        # Adam turns gradients near 0 into steps of either sign, each at most the rate of 1e-5.
        assert (a - b).abs().max() <= 4.1e-5 and ((a - b).abs() > 1e-6).float().mean() < 0.05


def test_the_csv_names_machine_versions_and_date(tmp_path):
    results = run_suite("train", [str(SMALL)], 4, [], True, CPU, lambda _: None)
    write_csv(tmp_path / "a" / "cpu.csv", [dataclasses.asdict(m) for m in results], machine(CPU))
    rows = list(csv.DictReader((tmp_path / "a" / "cpu.csv").open()))
    assert len(rows) == len(results) and float(rows[0]["ms"]) == results[0].ms
    assert (
        rows[0]["torch"] == torch.__version__ and rows[0]["device"] and len(rows[0]["date"]) == 10
    )
    assert set(rows[0]) >= {f.name for f in dataclasses.fields(results[0])}


def test_wrong_questions_are_refused():
    assert parse_shapes(["2x3x4"]) == [Shape(2, 3, 4)]
    for text in ("2x3", "axbxc", "0x3x4"):
        with pytest.raises(UsageError, match="width x latents x rows"):
            parse_shapes([text])
    for arguments, match in [
        (("loader", [], 4, []), "suite"),
        (("train", [str(SMALL)], 129, []), "k=129"),
        (("train", [str(SMALL)], 4, ["saelens"]), "choose eai-sparsify"),
    ]:
        with pytest.raises(UsageError, match=match):
            run_suite(*arguments, True, CPU, lambda _: None)


def test_a_peer_that_is_not_installed_is_named(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match="eai-sparsify is not installed"):
        run_suite("train", [str(SMALL)], 4, ["eai-sparsify"], True, CPU, lambda _: None)
