"""A crosscoder from the command line: two hooks of one model harvested together, trained, judged,
shown and asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command import saekit as cli
from saekit_cli import app

import saekit
from saekit.models.metrics import LOSS_METRICS
from saekit.store.reader import Store


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path, Path]:
    """(run, the stores of blocks.1 and blocks.3 of the digits ViT)"""
    folder = tmp_path_factory.mktemp("cross")
    harvest = (
        "harvest",
        "embedded:digits-vit",
        "embedded:digits",
        folder / "acts",
        "--hook",
        "blocks.1",
        "--hook",
        "blocks.3",
    )
    assert app._status([*map(str, harvest), "--rows", "6400", "-q"]) == 0
    x, y = folder / "acts" / "layers.1", folder / "acts" / "layers.3"
    small = ("--expansion", 4, "--k", 8, "--batch", 512, "--rows", 30_000, "-q")
    assert app._status([str(a) for a in ("train", x, folder / "run", "--store", y, *small)]) == 0
    return folder / "run", x, y


def stores(made) -> tuple[str, ...]:
    return "--store", str(made[1]), "--store", str(made[2])


def test_evaluate_prints_the_figures_of_the_run_and_of_each_hook(capsys, made):
    trained = json.loads((made[0] / "config.json").read_text())["result"]["metrics"]
    status, out, _ = cli(capsys, "evaluate", made[0], *stores(made), "--json")
    [row] = json.loads(out)
    parts = row["metrics"].pop("parts")
    losses = {metric.name: None for metric in LOSS_METRICS}  # not asked for
    assert status == 0 and row["metrics"] == trained | losses
    assert list(parts) == ["layers.1", "layers.3"]
    status, out, _ = cli(capsys, "evaluate", made[0], *stores(made))
    header, line = out.splitlines()
    assert status == 0 and header.endswith("fvu layers.1  fvu layers.3")
    assert line.split()[-2:] == [f"{fvu:.4f}" for fvu in parts.values()]
    assert cli(capsys, "evaluate", made[0], *stores(made), "--max-fvu", 0.0001)[0] == 7


def test_inspect_and_features_take_the_same_stores(capsys, made, tmp_path):
    page = tmp_path / "page"
    status, out, err = cli(
        capsys,
        "inspect",
        made[0],
        *stores(made),
        "--out",
        page,
        "--features",
        "top:20",
        "--jsonl",
        "--json",
        "-q",
    )
    assert status == 0 and json.loads(out)["features"] == 20, err
    records = [json.loads(line) for line in (page / "features.jsonl").read_text().splitlines()]
    assert all(
        list(r["hook_shares"]) == ["layers.1", "layers.3"]
        and sum(r["hook_shares"].values()) == pytest.approx(1)
        for r in records
    )
    example = records[0]["examples"][0]
    status, out, _ = cli(
        capsys,
        "features",
        made[0],
        *stores(made),
        "--image",
        page / "images" / f"{example['image']}.png",
        "--json",
    )
    rows = json.loads(out)
    # The picture is one of the data, so its hidden states are rows of the stores, in fp16.
    first = Store(made[1]).column("example_id") == example["example_id"]
    x_BD = torch.cat(
        [torch.cat([b.x.float() for b in Store(path).batches(4096)])[first] for path in made[1:]], 1
    )
    best = saekit.load(made[0]).encode(x_BD).to_dense().amax(0)
    assert status == 0 and len(rows) == 10
    assert [row["act"] for row in rows] == pytest.approx(
        [float(best[row["index"]]) for row in rows], rel=0.02, abs=0.02
    )
    status, out, _ = cli(
        capsys, "features", made[0], *stores(made), "--index", records[0]["index"], "--json"
    )
    assert status == 0 and json.loads(out)[0]["max"] == pytest.approx(records[0]["max"])


def test_the_settings_beside_the_page_are_a_config_file(capsys, made, tmp_path):
    settings = ("--features", "top:2", "--top", 1, "--jsonl", "-q")
    assert (
        cli(capsys, "inspect", made[0], *stores(made), "--out", tmp_path / "a", *settings)[0] == 0
    )
    assert (
        cli(
            capsys,
            "inspect",
            made[0],
            "--out",
            tmp_path / "b",
            "--config",
            tmp_path / "a" / "config.toml",
            "-q",
        )[0]
        == 0
    )
    assert (tmp_path / "a" / "features.jsonl").read_bytes() == (
        tmp_path / "b" / "features.jsonl"
    ).read_bytes()


@pytest.mark.parametrize("verb", ["evaluate", "inspect", "features"])
def test_a_store_too_few_or_none_is_named_with_the_next_step(capsys, made, tmp_path, verb):
    rest = {"evaluate": (), "inspect": ("--out", tmp_path / "page"), "features": ("--index", 0)}[
        verb
    ]
    status, out, err = cli(capsys, verb, made[0], "--store", made[1], *rest)
    assert (
        status == 3
        and out == ""
        and "is a crosscoder, which reads 2 stores (layers.1, layers.3), and one is given" in err
    )
    assert (
        err.splitlines()[-1].startswith("try    ")
        and f"--store {made[1]} --store {made[2]}" in err.splitlines()[-1]
    )
    status, _, err = cli(capsys, verb, made[0], "--store", made[2], "--store", made[1], *rest)
    assert status == 3 and "in another order" in err
    status, _, err = cli(capsys, verb, made[0], *rest)
    assert status == 2 and "Missing option '--store'" in err


def test_compare_names_the_verb_that_takes_several_stores(capsys, made):
    status, out, err = cli(capsys, "compare", made[0], "--store", made[1])
    assert (
        status == 3
        and out == ""
        and err.splitlines()[-1]
        == f"try    saekit evaluate {made[0]} --store {made[1]} --store {made[2]}"
    )
