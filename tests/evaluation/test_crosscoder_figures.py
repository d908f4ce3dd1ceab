"""Crosscoders among the checkpoints: the figures of `evaluate`, and which stores it takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from crosscoder_fixture import SETTINGS, bent_store, made_crosscoder, rows_of
from made_stores import write_store

import saekit
from saekit.errors import DataError, UsageError
from saekit.models.metrics import LOSS_METRICS
from saekit.report.comparison import compare
from saekit.store.previous import WithPrevious
from saekit.store.reader import Store
from saekit.store.stack import StackedStore


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path, Path]:
    return made_crosscoder(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def plain(made, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "run"
    saekit.train(made[1], out, **SETTINGS | {"rows": 2000})
    return out


def fvu(x, x_hat) -> float:
    x, x_hat = x.double(), x_hat.double()
    return float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum())


def test_the_figures_are_those_of_the_run_and_each_hook_has_its_own_fvu(made):
    run, x, y = made
    trained = json.loads((run / "config.json").read_text())["result"]["metrics"]
    [found] = saekit.evaluate(run, [x, y])
    parts = found.metrics.pop("parts")
    losses = {metric.name: None for metric in LOSS_METRICS}  # not asked for
    assert found.metrics == trained | losses and found.split == "holdout"
    both = rows_of(x, y, split="holdout")
    x_hat = saekit.load(run)(both).x_hat
    assert found.rows == len(both) and found.metrics["fvu"] == pytest.approx(
        fvu(both, x_hat), rel=1e-5
    )
    assert parts == {
        "blocks.0": pytest.approx(fvu(both[:, :16], x_hat[:, :16]), rel=1e-5),
        "blocks.1": pytest.approx(fvu(both[:, 16:], x_hat[:, 16:]), rel=1e-5),
    }
    assert parts["blocks.0"] != pytest.approx(parts["blocks.1"], rel=0.05), (
        "hooks that differ, or the test would see no exchange"
    )


def test_rows_and_split_hold_for_the_hooks_too(made):
    run, x, y = made
    [found] = saekit.evaluate(str(run), (str(x), str(y)), split="train", rows=300)
    some = rows_of(x, y, split="train")[:300]
    x_hat = saekit.load(run)(some).x_hat
    assert found.rows == 300 and found.metrics["fvu"] == pytest.approx(fvu(some, x_hat), rel=1e-5)
    assert found.metrics["parts"]["blocks.1"] == pytest.approx(
        fvu(some[:, 16:], x_hat[:, 16:]), rel=1e-5
    )


def test_an_ordinary_run_has_no_parts_and_takes_one_store(made, plain):
    _, x, y = made
    assert "parts" not in saekit.evaluate(plain, [x])[0].metrics
    with pytest.raises(
        DataError, match=r"reads the rows of one store \(synthetic, blocks.0\), and 2 are given"
    ):
        saekit.evaluate(plain, [x, y])
    with pytest.raises(UsageError, match="there are no rows"):
        saekit.evaluate(plain, [])


def test_too_few_stores_are_told_which_the_run_was_trained_on(made):
    run, x, y = made
    with pytest.raises(
        DataError, match=r"reads 2 stores \(blocks.0, blocks.1\), and one is given"
    ) as refused:
        saekit.evaluate(run, x)
    assert refused.value.hint == f"saekit evaluate {run} --store {x} --store {y}"
    with pytest.raises(DataError, match="and one is given") as refused:
        compare(run, x)
    assert refused.value.hint.startswith("saekit evaluate"), "compare takes one store"


def test_a_copy_without_its_settings_still_names_what_it_knows(made, tmp_path):
    run, x, y = made
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "copy").mkdir(exist_ok=True)
        shutil.copy(run / name, tmp_path / "copy" / name)
    with pytest.raises(DataError, match=r"blocks.0, blocks.1") as refused:
        saekit.evaluate(tmp_path / "copy", x)
    assert refused.value.hint.endswith(f"--store STORE --store {y}")
    assert saekit.evaluate(tmp_path / "copy", [x, y])[0].metrics["parts"].keys() == {
        "blocks.0",
        "blocks.1",
    }


def test_a_part_of_the_wrong_width_is_named(made, tmp_path):
    run, x, y = made
    wrong = bent_store(tmp_path / "wrong", width=7)
    with pytest.raises(
        DataError,
        match=(
            r"takes 6 values per row of blocks.1 as part 2; .*wrong, given as number 2, holds 7"
            r" \(synthetic, blocks.1"
        ),
    ):
        saekit.evaluate(run, [x, wrong])
    with pytest.raises(
        DataError, match=r"takes 16 values per row of blocks.0 as part 1"
    ) as refused:
        saekit.evaluate(run, [y, x])
    assert f"--store {x} --store {y}" in refused.value.hint


def test_stores_of_equal_width_in_another_order_are_refused(tmp_path):
    x, y = write_store(tmp_path / "x", 1000), bent_store(tmp_path / "y", 1000, width=16)
    saekit.train(x, tmp_path / "run", stores=(str(y),), **SETTINGS | {"rows": 2000})
    with pytest.raises(DataError, match=r"in another order than .*y, .*x"):
        saekit.evaluate(tmp_path / "run", [y, x])
    # Two models at the same hook: the names say nothing, the bytes of the first store do.
    z = bent_store(tmp_path / "z", 1000, width=16, hook="blocks.0", model="another")
    saekit.train(x, tmp_path / "models", stores=(str(z),), **SETTINGS | {"rows": 2000})
    with pytest.raises(DataError, match="in another order"):
        saekit.evaluate(tmp_path / "models", [z, x])
    assert set(saekit.evaluate(tmp_path / "models", [x, z])[0].metrics["parts"]) == {
        "synthetic blocks.0",
        "another blocks.0",
    }


def test_other_rows_of_the_same_hooks_are_judged_whole(made, tmp_path):
    run, _, _ = made
    x, y = write_store(tmp_path / "x", 400), bent_store(tmp_path / "y", 400)
    [found] = saekit.evaluate(run, [x, y])
    assert (found.split, found.rows) == ("all", 400)


def test_rows_of_a_stack_are_read_by_number_and_carry_their_neighbours(tmp_path):
    # The stores' shards end at different rows: they hold as many bytes, not as many rows.
    x, y = (
        write_store(tmp_path / "x", layout="sequence"),
        bent_store(tmp_path / "y", layout="sequence"),
    )
    stack, both = StackedStore([Store(x), Store(y)]), rows_of(x, y)
    assert len(Store(x).shards) != len(Store(y).shards)
    index = np.array([0, 3, 639, 640, 1999])
    assert (stack.take(index).x == both[index]).all()
    batch = next(WithPrevious(stack).batches(100, seed=3))
    known = batch.has_previous
    assert known.sum() > 50 and (batch.previous[known] == both[batch.rows[known] - 1]).all()


def test_names_of_the_parts_tell_them_apart(made, tmp_path):
    x = made[1]
    stack = lambda **spec: StackedStore(
        [Store(x), Store(bent_store(tmp_path / str(len(spec)), **spec))]
    )
    assert stack().names == ["blocks.0", "blocks.1"]
    assert stack(hook="blocks.0", model="another").names == [
        "synthetic blocks.0",
        "another blocks.0",
    ]
    assert stack(hook="blocks.0").names == [str(x), str(tmp_path / "1")]


def test_the_same_rows_twice_are_no_crosscoder(made, tmp_path):
    x = made[1]
    shutil.copytree(x, tmp_path / "copy")
    with pytest.raises(DataError, match="copy holds the same rows as"):
        saekit.train(x, tmp_path / "run", stores=(str(tmp_path / "copy"),), **SETTINGS)
