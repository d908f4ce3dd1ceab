"""The benchmark measures what it says: real arms, a stated L0, ratios that follow from the
medians."""

from __future__ import annotations

import csv
import threading
import time

import pytest
import torch
from saekit_cli.app import main

from saekit.bench import Asked, run_suite
from saekit.bench.memory import peak_mb
from saekit.bench.shapes import Shape, hidden_rows, parse_shapes, sae_for
from saekit.bench.steps import batch_of, dense_step, saekit_step
from saekit.bench.timing import Measurement, Timer
from saekit.errors import MissingError, UsageError
from saekit.models.sparsity import VARIANTS

CPU = torch.device("cpu")
SMALL = Shape(16, 128, 256)


def asked(suite, **more):
    return Asked(suite, **{"shapes": (str(SMALL),), "k": 4, "quick": True} | more)


@pytest.mark.parametrize("suite,ops", [("kernels", 10), ("train", 3)])
def test_a_suite_measures_every_operation_against_dense(suite, ops):
    results = list(run_suite(asked(suite), CPU))
    assert len({m.op for m in results}) == ops
    for m in results:
        assert 0 < m.ms_p20 <= m.ms <= m.ms_p80 and m.shape == "16x128x256"
        dense = [d for d in results if (d.op, d.mode) == (m.op, "dense")]
        assert m.ratio == (round(dense[0].ms / m.ms, 2) if dense else None)


def test_variants_are_measured_beside_topk_and_their_own_dense_step():
    results = list(run_suite(asked("train", variants=("topk", "jumprelu")), CPU))
    assert [(m.op, m.mode) for m in results] == [
        ("topk_step", "saekit"),
        ("topk_step", "dense"),
        ("jumprelu_step", "saekit"),
        ("jumprelu_step", "dense"),
    ]
    topk, _, jumprelu, dense = results
    assert topk.ratio_topk == 1 and topk.l0 == 4 == topk.k
    assert jumprelu.l0 == dense.l0 == pytest.approx(4, rel=0.1)
    assert jumprelu.ratio == round(dense.ms / jumprelu.ms, 2)
    assert jumprelu.ratio_topk and dense.peak_mb is not None


def test_all_means_every_variant():
    said = []
    next(run_suite(asked("train", variants=("all",)), CPU, said.append))
    run_suite(asked("train", variants=("all",), seconds=0), CPU, said.append)
    assert said == ["topk 16x128x256, 4 active"]
    assert not list(run_suite(asked("train", variants=("all",), seconds=-1), CPU, said.append))
    assert all(f"{name} 16x128x256, 4 active" in said[1] for name in VARIANTS)


def test_arms_are_called_in_turn_and_the_first_round_is_not_counted():
    calls = []
    times = Timer(CPU, 3)({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")})
    assert calls == ["a", "b"] * 4 and set(times) == {"a", "b"}


def test_cpu_time_does_not_count_what_others_take():
    passed, used = (Timer(CPU, 1, c)({"a": lambda: time.sleep(0.05)})["a"][0] for c in CLOCKS)
    assert passed >= 50 > 20 > used


CLOCKS = (time.perf_counter, time.process_time)


@pytest.mark.parametrize("sparsity", [name for name in VARIANTS if name != "matching-pursuit"])
def test_the_l0_of_a_step_is_the_one_asked_for(sparsity):
    model = sae_for(SMALL, x := hidden_rows(512, 16), sparsity, 9.0)
    terms = saekit_step(model, batch_of(x))()
    if model.active_above:  # of a sigmoid's few values above one half
        assert terms.fired.sum() / 512 < 9
    else:
        assert terms.fired.sum().item() / 512 == pytest.approx(9.0, rel=0.02)


def test_rows_have_unit_variance_and_outliers():
    x = hidden_rows(4000, 64)
    assert x.square().sum(1).mean().item() == pytest.approx(64, rel=1e-5)
    assert x.norm(dim=1).max() > 3 * x.norm(dim=1).median()


@pytest.mark.parametrize("sparsity", VARIANTS)
def test_the_dense_arm_does_the_same_step(sparsity):
    """A ratio is only worth something between equal steps."""
    x = hidden_rows(256, 16)
    model = sae_for(SMALL, x, sparsity, 9.0)
    arms = [make(model, batch_of(x)) for make in (saekit_step, dense_step)]
    for _ in range(2):
        for arm in arms:
            arm()
    for (name, a), b in zip(arms[0].model.named_parameters(), arms[1].model.parameters()):
        # Adam turns gradients near 0 into steps of either sign, each at most the rate of 1e-5.
        assert (a - b).abs().max() <= 4.1e-5, name
        assert ((a - b).abs() > 1e-6).float().mean() < 0.05, name
    assert any(
        not torch.equal(p, q) for p, q in zip(arms[0].model.parameters(), model.parameters())
    )


def test_the_peak_of_a_call_is_what_it_holds_at_most_in_all_threads():
    def call():
        torch.ones(8 << 20)  # 34 MB
        made = [torch.ones(8 << 20) + 1]  # 67 MB, and 34 MB after it
        thread = threading.Thread(target=lambda: made.append(torch.ones(4 << 20)))  # 17 MB more
        thread.start()
        thread.join()

    for _ in range(2):  # memory that a first call has freed does not hide that of a second one
        assert peak_mb(call, CPU) == pytest.approx(67, abs=3)
    assert peak_mb(lambda: None, CPU) < 1


def test_the_peak_of_a_step_counts_the_buffers_that_a_model_keeps():
    shape = Shape(32, 4096, 1024)  # a matrix of pre-activations takes 17 MB
    x = hidden_rows(shape.B, shape.D)
    arm = saekit_step(sae_for(shape, x, "topk", 4), batch_of(x))
    arm()
    warm = peak_mb(arm, CPU)
    arm.drop_buffers()
    assert peak_mb(arm, CPU) > warm + 1


def test_the_csv_names_machine_versions_and_date_and_keeps_what_an_interrupted_run_has(
    tmp_path, monkeypatch, capsys
):
    def interrupted(*_):
        yield Measurement("a", "dense", "torch", "1x1x1", "float32", 2.0, 1.0, 3.0)
        yield Measurement("a", "saekit", "torch", "1x1x1", "float32", 1.0, 1.0, 1.0, note="x, y")
        raise KeyboardInterrupt

    monkeypatch.setattr("saekit.bench.run_suite", interrupted)
    path = tmp_path / "a" / "cpu.csv"
    with pytest.raises(SystemExit) as end:
        main(["bench", "train", "--csv", str(path)])
    rows = list(csv.DictReader(path.open()))
    assert end.value.code == 130 and [float(row["ms"]) for row in rows] == [2, 1]
    assert rows[0]["torch"] == torch.__version__ and rows[0]["device"]
    assert len(rows[0]["date"]) == 10 and rows[1]["note"] == "x, y" and rows[1]["ratio"] == ""


def test_the_command_prints_the_columns_that_have_values(capsys):
    with pytest.raises(SystemExit) as end:
        small = ["--shapes", str(SMALL), "--k", "4", "--quick", "--quiet"]
        main(["bench", "train", "--variants", "l1", *small])
    out = capsys.readouterr().out
    assert end.value.code == 0 and "ms / topk" in out and "peak MB" in out
    assert "x floor" not in out and "note" not in out and "l1_step" in out


def test_wrong_questions_are_refused():
    assert parse_shapes(["2x3x4"]) == [Shape(2, 3, 4)]
    for text in ("2x3", "axbxc", "0x3x4"):
        with pytest.raises(UsageError, match="width x latents x rows"):
            parse_shapes([text])
    for question, match in [
        (asked("loader"), "suite"),
        (asked("train", k=129), "k=129"),
        (asked("train", against=("saelens",)), "choose eai-sparsify"),
        (asked("train", variants=("topk2",)), 'variants="topk2": did you mean topk'),
        (asked("kernels", variants=("topk",)), 'variants="topk" applies to bench train'),
    ]:
        with pytest.raises(UsageError, match=match):
            run_suite(question, CPU)


def test_a_peer_that_is_not_installed_is_named(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match="eai-sparsify is not installed"):
        run_suite(asked("train", against=("eai-sparsify",)), CPU)
