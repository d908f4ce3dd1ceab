from __future__ import annotations

import json

import pytest
from command import saekit
from made_runs import trained
from saekit_cli import screen

from saekit.models.catalog import CATALOG
from saekit.models.describe import describe
from saekit.models.vae import VAEConfig
from saekit.options import options_of


@pytest.fixture(scope="module")
def runs(digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    return [
        trained(digits, out / "pca", "pca", latents=4),
        trained(digits, out / "vae", "vae", latents=4, hidden=(16,)),
    ]


def test_compare_prints_runs_and_controls_and_where_the_report_is(capsys, digits, runs, tmp_path):
    status, out, err = saekit(
        capsys, "compare", *runs, "--store", digits, "--out", tmp_path / "report", "-q"
    )
    lines = out.splitlines()
    assert status == 0 and err == ""
    assert lines[0].split() == [
        "model",
        "params",
        "latents",
        "code",
        "fvu",
        "mse",
        "cosine",
        "l0",
        "dead",
        "knn",
        "elbo",
    ]
    assert [line.split("  ")[0] for line in lines[1:3]] == ["pca", "vae"]
    assert [line.strip().split("  ")[0] for line in lines[3:6]] == [
        "pca 4",
        "k-means 4",
        "untrained sae 2048, k 4",
    ]
    assert lines[3].startswith("  ")
    assert (
        lines[-1] == f"open    {tmp_path / 'report' / 'report.html'}"
        and (tmp_path / "report" / "report.html").exists()
    )


def test_compare_prints_one_json_value(capsys, digits, runs, monkeypatch):
    monkeypatch.setattr(screen, "PLAIN_SECONDS", 0)  # it takes less than a line of a log
    status, out, err = saekit(
        capsys, "compare", *runs, "--store", digits, "--rows", 40, "--neighbours", 3, "--json"
    )
    found = json.loads(out)
    assert status == 0 and set(found) == {
        "store",
        "split",
        "rows",
        "k",
        "reference_rows",
        "seed",
        "notes",
        "report",
    }
    assert (
        found["report"] is None
        and found["k"] == 3
        and found["split"] == "holdout"
        and found["reference_rows"] == 300
    )
    first = found["rows"][0]
    assert set(first) == {
        "checkpoint", "name", "model", "role", "control_of", "unit", "target", "params", "latents",
        "code_size", "rows", "metrics",
    }  # fmt: skip
    assert first["rows"] == 40 and set(first["metrics"]) == {
        "fvu",
        "ev_zero",
        "mse",
        "cosine",
        "l0",
        "dead",
        "knn",
        "elbo",
        "auroc",
        "diversity",
        "classes",
    }
    assert first["metrics"]["l0"] is None
    assert "compare" in err


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--split", "test"], 2, "--split test"),
        (["--rows", 0], 2, "--rows 0"),
        (["--target-store", "nowhere"], 2, "none of the runs"),
    ],
)
def test_compare_names_wrong_input(capsys, digits, runs, arguments, status, said):
    found, out, err = saekit(capsys, "compare", runs[0], "--store", digits, *arguments)
    assert found == status and said in err and out == ""


def test_compare_needs_a_run(capsys, digits):
    assert saekit(capsys, "compare", "--store", digits)[0] == 2


def test_the_settings_beside_the_report_are_a_config_file(capsys, digits, runs, tmp_path):
    assert (
        saekit(
            capsys,
            "compare",
            runs[0],
            "--store",
            digits,
            "--out",
            tmp_path / "a",
            "--rows",
            40,
            "-q",
        )[0]
        == 0
    )
    status, out, _ = saekit(
        capsys, "compare", runs[0], "--config", tmp_path / "a" / "config.toml", "--json", "-q"
    )
    assert status == 0 and json.loads(out)["rows"][0]["rows"] == 40


def test_models_lists_the_catalog(capsys):
    status, out, _ = saekit(capsys, "models")
    assert status == 0 and [line.split()[0] for line in out.splitlines()[1:]] == list(CATALOG)
    assert json.loads(saekit(capsys, "models", "--json")[1]) == {
        name: entry.line for name, entry in CATALOG.items()
    }


def test_a_model_is_explained_with_its_options(capsys):
    status, out, _ = saekit(capsys, "models", "vae")
    assert status == 0 and CATALOG["vae"].line in out and "KL(q(z|x) || N(0, I))" in out
    line = next(line for line in out.splitlines() if line.startswith("--hidden"))
    assert line.split()[1] == "512,256" and "Widths of the layers between input and code" in line
    assert next(line for line in out.splitlines() if line.startswith("--beta")).split()[1] == "1"
    out = saekit(capsys, "models", "jumprelu")[1]
    assert "\n--bandwidth " in out and "\n--aux-coef " in out and "\n--k " not in out


def test_an_option_keeps_the_text_of_the_class_that_says_it_last():
    texts = {name: option.doc.text for name, option in options_of(VAEConfig).items()}
    assert texts["output"].endswith("Gaussian, Gaussian, Bernoulli.")  # VAEConfig's own
    assert texts["tied"] == "The decoder is the encoder's transpose."  # from two classes up
    assert texts["latents"] == "Size of the code."
    assert "d_in" not in texts


@pytest.mark.parametrize("name", list(CATALOG))
def test_every_model_describes_itself(name):
    card = describe(name)
    assert (
        card.about
        and card.line
        and {"d_in", "d_out", "shape"}.isdisjoint(o.name for o in card.options)
    )
    assert all(o.flag == "--" + o.name.replace("_", "-") for o in card.options)


def test_models_prints_one_json_value_for_a_model(capsys):
    found = json.loads(saekit(capsys, "models", "dense", "--json")[1])
    assert set(found) == {"name", "line", "about", "options"}
    hidden = next(option for option in found["options"] if option["name"] == "hidden")
    assert hidden == {
        "name": "hidden", "flag": "--hidden", "default": [256],
        "text": "Widths of the layers between input and code, from the input up.",
    }  # fmt: skip


def test_an_unknown_model_is_named_with_the_nearest(capsys):
    status, out, err = saekit(capsys, "models", "dens")
    assert (
        status == 2 and "dens is not a model" in err and "did you mean dense?" in err and out == ""
    )
