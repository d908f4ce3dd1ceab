"""A sweep is many runs of `train`: each with its bits, resumable, one table and one plot of all."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from made_stores import make_spec, write_store
from torch_threads import torch_threads

import saekit
import saekit.sweeps.run as sweeping
from saekit.errors import DataError, NumericsError, UsageError
from saekit.measures.pareto import MemberResult, groups_of
from saekit.report.pareto import pareto_page
from saekit.store.files import sha256_of
from saekit.sweeps.run import plan_sweep, sweep

GRID = {
    "rows": 20_000,
    "batch": 256,
    "expansion": 4,
    "seed": [0, 1],
    "runs": [{"k": [2, 4]}, {"sparsity": "l1", "target_l0": 3}],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("sweep") / "store", 3000)


@pytest.fixture(scope="module")
def swept(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("swept") / "out"
    return sweep(store, out, GRID)


@pytest.fixture(scope="module", autouse=True)
def members_side_by_side():
    """A sweep trains as many members at the same time as torch has threads."""
    with torch_threads(2):
        yield


def test_every_member_is_the_run_that_train_makes(store, swept, tmp_path):
    names = [
        "k2-seed0",
        "k4-seed0",
        "k2-seed1",
        "k4-seed1",
        "l1-target-l0-3-seed0",
        "l1-target-l0-3-seed1",
    ]
    assert [m.name for m in swept.members] == names
    with torch_threads(1):
        for name, options in (
            ("k4-seed1", {"k": 4}),
            ("l1-target-l0-3-seed1", {"sparsity": "l1", "target_l0": 3}),
        ):
            saekit.train(
                store,
                tmp_path / name,
                rows=20_000,
                batch=256,
                expansion=4,
                seed=1,
                order_seed=0,
                **options,
            )
            own, swept_one = (
                Path(folder) / name / "model.safetensors" for folder in (tmp_path, swept.path)
            )
            assert sha256_of(own) == sha256_of(swept_one), name


def test_seeds_are_summed_up_and_the_unbeaten_are_marked(swept):
    groups = {group.name: group for group in swept.groups}
    assert set(groups) == {"k2", "k4", "l1-target-l0-3"}
    fvus = [m.metrics["fvu"] for m in swept.members if m.group == "k2"]
    assert groups["k2"].seeds == 2 and groups["k2"].fvu == pytest.approx(sum(fvus) / 2)
    assert groups["k2"].fvu_spread == pytest.approx(abs(fvus[0] - fvus[1]) / math.sqrt(2))
    assert groups["k2"].l0 == pytest.approx(2) and groups["k2"].best and groups["k4"].best


def test_what_lies_in_the_folder(swept):
    folder = Path(swept.path)
    said = json.loads((folder / "sweep.json").read_text())
    assert said["schema_version"] == 1 and len(said["members"]) == 6 and len(said["groups"]) == 3
    page = (folder / "pareto.html").read_text()
    assert "<svg" in page and "l1-target-l0-3" in page and "<script src" not in page
    assert saekit.load(folder / "k2-seed0").config.k == 2


def test_a_sweep_that_is_done_is_not_done_again(store, swept):
    again = sweep(store, swept.path, GRID, resume=True)
    assert again.members == swept.members and again.seconds < swept.seconds
    with pytest.raises(DataError, match="not empty"):
        sweep(store, swept.path, GRID)


def test_a_sweep_goes_on_where_it_was_stopped(store, swept, tmp_path, monkeypatch):
    # every report, since a fast machine is done before the second one
    monkeypatch.setattr(sweeping, "REPORT_SECONDS", 0.0)
    grid = GRID | {"rows": 30_000}
    whole = sweep(store, tmp_path / "whole", grid)
    seen = threading.Event()

    def stop(report):
        if report.done > 10_000 and not seen.is_set():
            seen.set()
            os.kill(os.getpid(), signal.SIGINT)
            # the sweep looks for a signal every 0.2 s; the others wait for this member
            time.sleep(0.5)

    with pytest.raises(KeyboardInterrupt):
        sweep(store, tmp_path / "cut", grid, progress=stop)
    resumed = sweep(store, tmp_path / "cut", grid, resume=True)
    for a, b in zip(whole.members, resumed.members):
        assert sha256_of(Path(a.path) / "model.safetensors") == sha256_of(
            Path(b.path) / "model.safetensors"
        ), a.name
    assert torch.get_num_threads() == 2, "as before"


def test_a_member_that_diverges_does_not_stop_the_others(store, tmp_path):
    found = sweep(
        store,
        tmp_path / "out",
        {"rows": 20_000, "batch": 256, "expansion": 2, "k": 2, "lr": [3e-3, 1e6]},
    )
    assert [m.error is None for m in found.members] == [
        True,
        False,
    ] and "diverged" in found.members[1].error
    assert [g.name for g in found.groups] == ["lr0.003"]
    with pytest.raises(NumericsError, match="no member"):
        sweep(
            store,
            tmp_path / "none",
            {"rows": 20_000, "batch": 256, "expansion": 2, "k": 2, "lr": [1e6]},
        )


def test_a_setting_of_another_type_is_named(store, tmp_path):
    with pytest.raises(UsageError, match="k is '4'; it must be a whole number"):
        sweep(store, tmp_path / "out", {"k": "4"})
    (tmp_path / "grid.toml").write_text("k = '4'")
    with pytest.raises(DataError, match=r"grid\.toml: k is '4'"):
        sweep(store, tmp_path / "out", tmp_path / "grid.toml")


def test_a_resume_with_other_settings_keeps_what_was_found(store, tmp_path):
    grid = {"rows": 2_000, "batch": 128, "latents": 32, "k": [2, 4]}
    found = sweep(store, tmp_path / "out", grid)
    with pytest.raises(DataError, match="other settings"):
        sweep(store, tmp_path / "out", grid | {"lr": 1e-3}, resume=True)
    assert len(json.loads((tmp_path / "out" / "sweep.json").read_text())["groups"]) == 2
    assert sweep(store, tmp_path / "out", grid, resume=True).members == found.members


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ({"batch": [128, 256]}, "share their rows, and so batch"),
        ({"model": "pca", "latents": 4}, "a sweep trains only models that take single rows"),
    ],
)
def test_what_cannot_share_a_pass_is_refused(store, tmp_path, grid, said):
    with pytest.raises(DataError, match=said):
        sweep(store, tmp_path / "out", grid)
    assert not (tmp_path / "out").exists()


def test_the_plan_says_what_would_run(store):
    plan = plan_sweep(store, GRID)
    assert len(plan.members) == 6 and plan.members["k2-seed0"].steps == 78
    assert plan.memory_bytes == sum(each.memory_bytes for each in plan.members.values())


def test_a_setting_is_beaten_by_less_error_at_no_more_latents():
    def member(name, fvu, l0):
        return MemberResult(
            name,
            name,
            "",
            {"sparsity": "topk"},
            {"fvu": fvu, "l0": l0, "dead": 0.0, "dead_train": None},
        )

    groups = groups_of(
        [
            member("a", 0.3, 8),
            member("b", 0.2, 16),
            member("c", 0.25, 16),
            member("d", 0.2, 20),
            member("e", 0.1, None),
        ]
    )
    assert [group.best for group in groups] == [True, True, False, False, False]


def test_names_are_escaped():
    odd = MemberResult(
        "<b>",
        "<b>",
        "",
        {"sparsity": "topk"},
        {"fvu": 0.3, "l0": 8.0, "dead": 0.0, "dead_train": None},
    )
    page = pareto_page(make_spec(), groups_of([odd]), [odd])
    assert "<b>" not in page.replace("&lt;b&gt;", "")
