"""The command line as a user meets it: streams, JSON keys, exit statuses, texts of errors."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import saekit
from made_stores import write_store
from saekit_cli import app, screen


@pytest.fixture(scope="module")
def acts(tmp_path_factory) -> Path:
    return write_store(tmp_path_factory.mktemp("acts") / "store", 2000)


SMALL = ("--expansion", 4, "--k", 4, "--batch", 256, "--rows", 5120)


@pytest.fixture(scope="module")
def run(acts, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "a"
    assert app._status([str(a) for a in ("train", acts, out, *SMALL, "--quiet")]) == 0
    return out


def test_help_is_quick_and_lists_the_verbs():
    def used() -> float:  # CPU time, which other tests that run at the same time do not change
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        return spent.ru_utime + spent.ru_stime

    before = used()
    done = subprocess.run(
        [sys.executable, "-m", "saekit_cli", "--help"], capture_output=True, text=True, check=True
    )
    assert used() - before < 1.0, "0.1 s on an idle machine"
    for verb in (
        "demo",
        "harvest",
        "train",
        "finetune",
        "import",
        "evaluate",
        "inspect",
        "features",
        "bench",
        "compare",
        "models",
    ):
        assert f"  {verb} " in done.stdout


@pytest.mark.parametrize(
    "verb",
    [
        "demo",
        "harvest",
        "train",
        "finetune",
        "import",
        "evaluate",
        "inspect",
        "features",
        "bench",
        "compare",
        "models",
    ],
)
def test_every_verb_explains_itself_with_an_example(capsys, verb):
    status, out, _ = saekit(capsys, verb, "--help")
    assert status == 0 and "Example" in out and f"saekit {verb}" in out


def test_train_prints_one_json_value_and_progress_elsewhere(capsys, acts, tmp_path, monkeypatch):
    monkeypatch.setattr(screen, "PLAIN_SECONDS", 0)  # the run takes less than a line of a log
    status, out, err = saekit(capsys, "train", acts, tmp_path / "r", *SMALL, "--json")
    result = json.loads(out)
    assert status == 0 and set(result) == {
        "path",
        "step",
        "rows",
        "rows_per_s",
        "backend",
        "metrics",
    }
    assert result["step"] == 20 and result["rows"] == 5120 and result["backend"] == "torch"
    assert {"fvu", "mse", "cosine", "l0", "dead", "dead_train"} <= set(result["metrics"])
    assert "plan" in err and "loss" in err


def test_evaluate_json_and_table_agree(capsys, acts, run):
    pca = run.parent / "pca"
    assert (
        saekit(capsys, "train", acts, pca, "--model", "pca", "--latents", 4, "--overwrite")[0] == 0
    )
    status, out, _ = saekit(capsys, "evaluate", run, pca, "--store", acts, "--json")
    rows = json.loads(out)
    assert status == 0 and [r["model"] for r in rows] == ["sae topk", "pca"]
    assert rows[1]["metrics"]["l0"] is None and rows[1]["metrics"]["dead"] is None
    table = saekit(capsys, "evaluate", run, pca, "--store", acts)[1].splitlines()
    assert len(table) == 3 and f"{rows[0]['metrics']['fvu']:.4f}" in table[1] and " - " in table[2]


def test_the_quality_gate(capsys, acts, run):
    assert saekit(capsys, "evaluate", run, "--store", acts, "--max-fvu", 1.5)[0] == 0
    status, _, err = saekit(capsys, "evaluate", run, "--store", acts, "--max-fvu", 0.0001)
    assert status == 7 and "is above --max-fvu 0.0001" in err


def test_dry_runs_write_nothing(capsys, acts, tmp_path):
    status, out, _ = saekit(capsys, "train", acts, tmp_path / "r", *SMALL, "--dry-run", "--json")
    plan = json.loads(out)
    assert status == 0 and plan["latents"] == 64 and plan["steps"] == 20
    assert plan["parameters"] == 2 * 64 * 16 + 64 + 16 and os.listdir(tmp_path) == []


def test_a_config_file_sets_defaults_and_flags_win(capsys, acts, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text('expansion = 4\nk = 4\nbatch = 256\nrows = 5120\nsparsity = "topk"\n')
    status, _, _ = saekit(capsys, "train", acts, tmp_path / "r", "--config", config, "--k", 3, "-q")
    resolved = (tmp_path / "r" / "config.toml").read_text()
    assert (
        status == 0
        and "k = 3" in resolved
        and "latents = 64" in resolved
        and 'decoder_norm = "unit"' in resolved
    )
    status, _, _ = saekit(
        capsys, "train", acts, tmp_path / "again", "--config", tmp_path / "r" / "config.toml", "-q"
    )
    assert status == 0, "the resolved config of a run can be given back"
    status, _, _ = saekit(
        capsys,
        "train",
        acts,
        tmp_path / "wide",
        "--config",
        tmp_path / "r" / "config.toml",
        "--expansion",
        8,
        "-q",
    )
    assert status == 0 and "latents = 128" in (tmp_path / "wide" / "config.toml").read_text()
    config.write_text("batch = 256\nexpanson = 4\n")
    status, _, err = saekit(capsys, "train", acts, tmp_path / "s", "--config", config)
    assert (
        status == 3
        and "run.toml line 2: expanson is not a setting" in err
        and "did you mean expansion?" in err
    )
    assert saekit(capsys, "train", acts, tmp_path / "s", "--config", tmp_path / "none.toml")[0] == 4
    config.write_text('k = "many"\n')
    status, _, err = saekit(capsys, "train", acts, tmp_path / "s", "--config", config)
    assert status == 3 and "config file: " in err and "--k" in err


def test_the_way_of_training_is_chosen_by_flags_and_written_down(capsys, acts, tmp_path):
    flags = (
        "--schedule",
        "cosine",
        "--warmup",
        0.1,
        "--decay",
        0.4,
        "--beta2",
        0.99,
        "--ema",
        0.9,
        "--precision",
        "bfloat16",
    )
    dense = ("--model", "dense", "--latents", 4, "--hidden", 12, "--batch", 64, "--rows", 640)
    assert saekit(capsys, "train", acts, tmp_path / "r", *dense, *flags, "-q")[0] == 0
    given = dict(zip([str(flag)[2:] for flag in flags[::2]], flags[1::2]))
    assert (
        saekit(
            capsys,
            "train",
            acts,
            tmp_path / "again",
            "--config",
            tmp_path / "r" / "config.toml",
            "-q",
        )[0]
        == 0
    )
    first, again = (
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("r", "again")
    )
    assert (
        {name: first["training"][name] for name in given}
        == {name: again["training"][name] for name in given}
        == given
    )
    assert first["result"]["metrics"] == again["result"]["metrics"]


@pytest.mark.parametrize(
    "arguments,status,cause,hint",
    [
        (["train"], 2, "Missing argument 'STORE'", "saekit train --help"),
        (["trian"], 2, "trian is not a command", "did you mean train?"),
        (
            ["train", "ACTS", "OUT", "--sparsty", "l1"],
            2,
            "No such option: --sparsty",
            "saekit train --help-all",
        ),
        (["train", "ACTS", "OUT", "extra"], 2, "extra", "saekit train --help\n"),
        (["train", "ACTS", "OUT", "--batch", "many"], 2, "--batch", "saekit train --help-all"),
        (["models", "--sparsty"], 2, "No such option: --sparsty", "saekit models --help\n"),
        (["--verson"], 2, "No such option: --verson", "saekit --help\n"),
        (["train", "ACTS", "OUT", "--k", "many"], 2, "--k", "saekit train --help"),
        (["train", "ACTS", "OUT", "--sparsity", "k1"], 2, "--sparsity k1: did you mean", ""),
        (
            ["train", "ACTS", "OUT", "--sparsity", "kl-sigmoid", "--target-rate", "1.5"],
            2,
            "--target-rate 1.5 must be in (0, 1)",
            "",
        ),
        (["train", "ACTS", "OUT", "--expansion", "0"], 2, "--expansion 0 must be above 0", ""),
        (
            ["train", "ACTS", "OUT", "--k", "600"],
            2,
            "--k 600 must be between 1 and the number of latents, 512",
            "",
        ),
        (
            ["train", "ACTS", "OUT", "--expansion", "2", "--latents", "9"],
            2,
            "--expansion and --latents both",
            "give one",
        ),
        (
            ["train", "ACTS", "OUT", "--schedule", "cosin"],
            2,
            "--schedule cosin: did you mean cosine",
            "",
        ),
        (
            ["train", "ACTS", "OUT", "--warmup", "0.5", "--decay", "0.7"],
            2,
            "are more than the whole run",
            "--warmup 0.3",
        ),
        (["train", "ACTS", "OUT", "--ema", "1"], 2, "--ema 1 must be above 0 and below 1", ""),
        (
            ["train", "ACTS", "OUT", "--precision", "bfloat16"],
            2,
            "choose their own precision",
            "drop --precision",
        ),
        (
            ["train", "ACTS", "OUT", "--batch", "99999"],
            3,
            "--batch 99999 is above the 1,8",
            "--batch 4",
        ),
        (["train", "NONE", "OUT"], 4, "is not a store: there is no such folder", "saekit harvest"),
        (["train", "ACTS", "RUN", *map(str, SMALL)], 3, "exists and is not empty", "--resume"),
        (
            ["train", "ACTS", "RUN", "--resume", *map(str, SMALL), "--seed", "4"],
            3,
            "other settings: seed 0 -> 4",
            "--overwrite",
        ),
        (["evaluate", "NONE", "--store", "ACTS"], 4, "there is no checkpoint at", "saekit train"),
        (
            ["evaluate", "ACTS", "--store", "ACTS"],
            3,
            "is not a checkpoint: config.json is missing",
            "",
        ),
        (["evaluate", "RUN", "--store", "WIDE"], 3, "takes 16 values per row", "--store"),
        (
            ["inspect", "RUN", "--store", "ACTS", "--out", "OUT", "--features", "9999"],
            3,
            "feature 9999: this model has 64",
            "top:500",
        ),
        (
            ["inspect", "RUN", "--store", "ACTS", "--out", "OUT", "--features", "x"],
            2,
            "--features x: write",
            "",
        ),
        (
            ["inspect", "RUN", "--store", "ACTS", "--out", "OUT", "--top", "0"],
            2,
            "--top 0 must be between",
            "",
        ),
        (
            ["inspect", "RUN", "--store", "ACTS", "--out", "OUT", "--features", "5-3"],
            2,
            "--features 5-3: write",
            "",
        ),
        (
            ["inspect", "RUN", "--store", "ACTS", "--out", "OUT", "--features", "top:0"],
            2,
            "--features top:0: write",
            "",
        ),
        (
            ["inspect", "RUN", "--store", "ACTS", "--out", "OUT", "--features", "0-99999999999"],
            3,
            "feature 99999999999",
            "",
        ),
        (
            ["train", "ACTS", "OUT", "--resume", "--overwrite", *map(str, SMALL)],
            2,
            "contradict",
            "one of them",
        ),
        (
            ["train", "ACTS", "OUT", "--sparsity", "kl-sigmoid", "--k", "3"],
            2,
            "--k does not apply to --sparsity kl-sigmoid",
            "topk or batchtopk",
        ),
        (
            [
                "harvest",
                "embedded:digits-vit",
                "embedded:digits",
                "OUT",
                "--hook",
                "blocks.0",
                "--device",
                "gpu",
            ],
            2,
            "--device gpu",
            "",
        ),
        (["features", "RUN", "--store", "ACTS"], 2, "exactly one of --index, --text, --image", ""),
        (
            ["features", "RUN", "--store", "ACTS", "--image", "x.png"],
            3,
            "was trained on texts, not on images",
            "--text",
        ),
        (
            ["features", "RUN", "--store", "ACTS", "--index", "3,64"],
            3,
            "feature 64: this model has 64 (0 to 63)",
            "--sort score",
        ),
        (["harvest", "embedded:digits-vit"], 2, "harvest takes MODEL DATA OUT", ""),
        (
            ["harvest", "embedded:gpt9", "embedded:digits", "OUT", "--hook", "blocks.0"],
            2,
            "embedded:gpt9",
            "embedded:",
        ),
        (
            ["harvest", "embedded:digits-vit", "embedded:digits", "OUT", "--hook", "blocks.9"],
            3,
            "blocks.0 to blocks.3",
            "--list-hooks",
        ),
        (
            ["harvest", "embedded:digits-vit", "embedded:digits", "OUT"],
            2,
            "--hook is missing",
            "--list-hooks",
        ),
        (
            ["harvest", "embedded:digits-vit", "nothing.jsonl", "OUT", "--hook", "blocks.0"],
            4,
            "nothing.jsonl",
            "",
        ),
        (
            ["harvest", "embedded:digits-vit", "embedded:pydocs", "OUT", "--hook", "blocks.0"],
            3,
            "text",
            "",
        ),
    ],
)
def test_errors_say_cause_and_next_step(
    capsys, acts, run, tmp_path, arguments, status, cause, hint
):
    places = {"ACTS": acts, "RUN": run, "OUT": tmp_path / "out", "NONE": tmp_path / "none"}
    if "WIDE" in arguments:
        places["WIDE"] = write_store(tmp_path / "wide", 200, width=24)
    got, out, err = saekit(capsys, *(places.get(a, a) for a in arguments))
    lines = err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error  ")]
    assert got == status, err
    assert len(errors) == 1 and cause in errors[0] and "Traceback" not in err and out == ""
    if hint:
        assert lines[-1].startswith("try    ") and hint in lines[-1] + "\n"
    assert not (tmp_path / "out").exists()


def test_a_bug_is_reported_in_one_line(capsys, acts, tmp_path, monkeypatch):
    import saekit.training.run as training

    monkeypatch.setattr(training, "prepare", lambda *a, **k: 1 / 0)
    status, _, err = saekit(capsys, "train", acts, tmp_path / "r", *SMALL, "-q")
    assert status == 1 and "bug in saekit: ZeroDivisionError" in err and "SAEKIT_DEBUG=1" in err


def test_ctrl_c_saves_and_exits_130(acts, tmp_path):
    arguments = [
        *map(
            str,
            (
                "train",
                acts,
                tmp_path / "r",
                "--expansion",
                4,
                "--k",
                4,
                "--batch",
                64,
                "--rows",
                64 * 200_000,
            ),
        )
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "saekit_cli", *arguments], stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "r" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while (not metrics.exists() or not metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "with --resume goes on" in err
    assert (tmp_path / "r" / "train_state" / "state.safetensors").exists()


def test_list_hooks(capsys):
    status, out, _ = saekit(capsys, "harvest", "embedded:digits-vit", "--list-hooks")
    assert status == 0 and "blocks.3.mlp" in out and "layers.3" in out


def test_harvest_inspect_and_features_on_images(capsys, tmp_path):
    acts, run, page = tmp_path / "acts", tmp_path / "run", tmp_path / "page"
    status, out, _ = saekit(
        capsys,
        "harvest",
        "embedded:digits-vit",
        "embedded:digits",
        acts,
        "--hook",
        "blocks.2",
        "--rows",
        6400,
        "--json",
        "-q",
    )
    harvested = json.loads(out)
    assert status == 0 and set(harvested) == {
        "path",
        "rows",
        "asked",
        "fingerprint",
        "seconds",
        "rows_per_s",
    }
    assert harvested["rows"] == harvested["asked"] == 6400
    small = ("--expansion", 4, "--k", 8, "--batch", 512, "--rows", 30_000, "-q")
    assert saekit(capsys, "train", acts, run, *small)[0] == 0
    status, out, _ = saekit(
        capsys,
        "inspect",
        run,
        "--store",
        acts,
        "--out",
        page,
        "--features",
        "top:20",
        "--jsonl",
        "--json",
        "-q",
    )
    result = json.loads(out)
    assert (
        status == 0
        and result["features"] == 20
        and Path(result["index_html"]) == page / "index.html"
    )
    records = [json.loads(line) for line in (page / "features.jsonl").read_text().splitlines()]
    assert all(
        len(e["values"]) == 64 and e["grid"] == [8, 8] and e["label"] in "0123456789"
        for r in records
        for e in r["examples"]
    )
    assert {e["image"] for r in records for e in r["examples"]} <= {
        p.stem for p in (page / "images").iterdir()
    }
    picture = next((page / "images").iterdir())
    status, out, _ = saekit(
        capsys, "features", run, "--store", acts, "--image", picture, "--top", 3, "--json"
    )
    rows = json.loads(out)
    assert (
        status == 0
        and len(rows) == 3
        and {"index", "act", "max", "density", "label", "tokens", "score"} < set(rows[0])
        and rows[0]["source"] == "index"
    )
    assert rows[0]["act"] >= rows[1]["act"] and rows[0]["act"] <= rows[0]["max"] * 1.01


def test_bench_prints_a_table_or_one_json_list(capsys, tmp_path):
    arguments = ("bench", "train", "--quick", "--shapes", "16x128x256", "--k", 4)
    status, out, err = saekit(capsys, *arguments, "--csv", tmp_path / "cpu.csv")
    assert (
        status == 0
        and "x dense" in out
        and "topk 16x128x256" in err
        and (tmp_path / "cpu.csv").exists()
    )
    status, out, err = saekit(capsys, *arguments, "--json", "--quiet")
    rows = json.loads(out)
    assert status == 0 and err == ""
    assert {"op", "mode", "backend", "shape", "dtype", "ms", "ms_p20", "ms_p80", "ratio"} <= set(
        rows[0]
    )
    assert {row["mode"] for row in rows} >= {"dense", "floor", "saekit"}


@pytest.mark.parametrize(
    "arguments,cause",
    [
        (("bench", "speed"), "SUITE speed"),
        (("bench", "train", "--shapes", "16x128"), "--shapes 16x128: write width x latents x rows"),
        (("bench", "train", "--against", "saelens"), "--against saelens: choose eai-sparsify"),
    ],
)
def test_bench_refuses_what_it_does_not_measure(capsys, arguments, cause):
    status, _, err = saekit(capsys, *arguments)
    assert status == 2 and cause in err


def test_a_backend_that_cannot_run_here_is_refused(capsys, acts, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    status, _, err = saekit(
        capsys, "train", acts, tmp_path / "r", *SMALL, "--backend", "triton", "--device", "cpu"
    )
    assert status == 5 and "Triton kernels need a CUDA device" in err and "--backend torch" in err
