"""The size of the rows: what training and store say, and when they are too far apart."""

from __future__ import annotations

import json
from pathlib import Path

import made_dictionaries
import pytest
from command import saekit as saekit_cli
from made_runs import rows_store
from made_stores import make_rows, write_store

import saekit
from saekit.evaluation.norms import CENTERED, OTHERS, PLAIN, InputNorm

X_ND = make_rows(1200)


def norm_of(run: Path, store: Path) -> InputNorm | None:
    return saekit.evaluate(run, store, any_store=True)[0].input_norm


@pytest.mark.parametrize("mode", ["center+scale", "scale"])
def test_training_and_store_have_the_size_of_their_rows(tmp_path, mode):
    here = rows_store(tmp_path / "here", X_ND, [None] * len(X_ND))
    there = rows_store(tmp_path / "there", 4 * X_ND, [None] * len(X_ND))
    saekit.train(here, tmp_path / "run", latents=32, k=4, rows=500, normalize=mode)
    assert norm_of(tmp_path / "run", here) is None  # the rows of its training
    norm = norm_of(tmp_path / "run", there)
    x = X_ND.double() - (X_ND.double().mean(0) if mode == "center+scale" else 0)
    size = float(x.square().sum(1).mean()) ** 0.5
    assert norm.measure == (PLAIN if mode == "scale" else CENTERED)
    assert norm.store == pytest.approx(4 * size, rel=1e-5)
    assert norm.training == pytest.approx(size, rel=0.01)  # its held-out rows are not in it
    assert norm.apart and not InputNorm(PLAIN, 2.9, 1.0).apart


def test_a_crosscoder_adds_up_its_hooks(tmp_path):
    """Each hook has its own scale."""
    stores = [
        rows_store(tmp_path / name, factor * X_ND, [None] * len(X_ND))
        for name, factor in (("a", 1), ("b", 10), ("c", 2), ("d", 20))
    ]
    options = {"latents": 32, "k": 4, "rows": 500, "normalize": "center+scale"}
    saekit.train(stores[0], tmp_path / "run", stores=(str(stores[1]),), **options)
    norm = saekit.evaluate(tmp_path / "run", stores[2:])[0].input_norm
    assert norm.store / norm.training == pytest.approx(2, rel=0.01)


def test_a_published_dictionary_says_it_by_the_factor_of_its_input(tmp_path):
    store, run = write_store(tmp_path / "store", 400), tmp_path / "imported"
    saekit.import_dictionary(made_dictionaries.saelens(tmp_path / "sae", "standard"), run)
    assert norm_of(run, store) is None
    settings = json.loads((run / "config.json").read_text())
    settings["config"] |= {"input_factor": 0.5, "output_factor": 0.5}
    settings["published"]["normalization"] = "expected_average_only_in"
    (run / "config.json").write_text(json.dumps(settings))
    norm = norm_of(run, store)
    assert norm.training == pytest.approx(4 / 0.5) and norm.measure == OTHERS  # sqrt(16) / factor
    assert norm.store == saekit.open_store(store).stats["median_norm"]


def test_the_command_line_warns_of_another_scale(tmp_path, capsys):
    here = rows_store(tmp_path / "here", X_ND, [None] * len(X_ND))
    there = rows_store(tmp_path / "there", X_ND / 30, [None] * len(X_ND))
    run = tmp_path / "run"
    saekit.train(here, run, latents=32, k=4, rows=500, normalize="scale")
    _, out, err = saekit_cli(capsys, "evaluate", run, "--store", there)
    [line] = [line for line in out.splitlines() if line.startswith("input norm")]
    assert " in the store, " in line and line.endswith("in training (rms norm)")
    assert "another size than those that run was trained on" in err
    assert "another size" not in saekit_cli(capsys, "evaluate", run, "--store", here)[2]


def test_a_published_dictionary_that_is_worse_than_the_mean_is_called_so(tmp_path):
    store = write_store(tmp_path / "store", 400)
    messages: list[str] = []

    def heard(progress) -> None:
        messages.append(progress.message or "")

    path = made_dictionaries.saelens(tmp_path / "sae", "standard")
    evaluation = saekit.evaluate(path, store, any_store=True, progress=heard)[0]
    assert evaluation.metrics["fvu"] > 1
    assert any("worse than their mean does" in message for message in messages)
    saekit.train(store, tmp_path / "run", latents=32, k=4, rows=4_000)
    messages.clear()
    saekit.evaluate(tmp_path / "run", store, progress=heard)
    assert not any("worse than their mean" in message for message in messages)
