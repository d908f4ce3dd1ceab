"""`python benchmarks/adversarial.py`: its figures on real digits, and its CSV."""

from __future__ import annotations

import csv
import json

import generated
import numpy as np
import pytest
import torch
from adversarial import (
    CASES,
    DATA,
    QUICK,
    REAL,
    SHOWN,
    AdversarialResult,
    _beside_vae,
    main,
    run_case,
)
from cases import Case
from judging import Sides, by_class, judge_hidden, judge_images
from PIL import Image

from saekit.harvesting.run import harvest
from saekit.measures.samples import nearest
from saekit.models.catalog import CATALOG
from saekit.store.reader import open_store
from saekit.training.config import TrainConfig
from saekit.training.run import train

VAE = Case("digits", "vae", "vae", {"latents": 4, "hidden": (32,), "output": "bernoulli"}, epochs=8)


@pytest.fixture(scope="module")
def sides(digits):
    return Sides.of(open_store(digits))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def measure(sides, pictures):
    return judge_images(sides, pictures, steps=250)


def test_every_case_names_data_and_options_that_its_model_takes():
    for case in (*CASES, *QUICK):
        assert case.data in DATA and (case.model == REAL or case.model in CATALOG), case.name
        if case.model != REAL:
            TrainConfig.from_flat({"model": case.model, **case.options})
    for cases in (CASES, QUICK):
        for data in dict.fromkeys(case.data for case in cases):
            # real rows and the VAE come first: others stand beside them
            assert [case.model for case in cases if case.data == data][:2] == [REAL, "vae"]
    assert {"gan", "dcgan", "cgan", "aae"} <= {case.model for case in CASES if case.data == "mnist"}
    assert {f.name for f in AdversarialResult.__dataclass_fields__.values()} > set(SHOWN)


def test_training_rows_in_place_of_samples_are_found_to_be_copies(sides, measure):
    found = run_case(Case("digits", REAL, REAL), sides, measure)
    assert (found.memory, found.nearer, found.copies) == (0, 1, 1)
    assert found.classes == found.of_classes == 10 and found.entropy > 0.95
    assert found.precision > 0.8 and found.recall > 0.8
    assert 0.8 < found.diversity < 1.25 and found.judge > 0.8
    assert (found.passes, found.cpu_s, found.peak_mb, found.recognized) == (0, 0, None, None)


def test_a_vae_is_judged_by_its_own_samples(sides, measure, pictures):
    real = run_case(Case("digits", REAL, REAL), sides, measure)
    found = run_case(VAE, sides, measure)
    assert found.passes == 8 and found.cpu_s > 0 and found.copies < 0.1
    # eight passes: blurred, and less varied than real rows
    assert found.frechet > 2 * real.frechet and found.recall < real.recall
    beside = _beside_vae(found, [real])
    assert beside.of_vae == 1 and _beside_vae(real, []).of_vae is None
    # ten lines of ten images of 8x8 pixels, six paths
    assert Image.open(pictures / "samples-vae.png").size == (116, 116)
    assert Image.open(pictures / "paths-vae.png").size == (116, 68)


def test_a_conditional_generator_is_asked_for_every_class(sides, measure, pictures):
    case = Case("digits", "cgan", "cgan", {"latents": 4, "body": "dense"}, epochs=2)
    found = run_case(case, sides, measure)
    model = train(sides.store.path, None, model="cgan", rows=600, **case.options).model
    drawn, asked = by_class(model, np.array([str(c) for c in range(10)]), 20)
    assert drawn.shape == (20, 64) and asked.tolist() == [str(c) for c in range(10) for _ in (0, 1)]
    generator = torch.Generator().manual_seed(0)
    twos = [model.sample(2, generator, label=str(c)) for c in range(10)][2]
    assert torch.equal(drawn[4:6], twos)
    # two passes: little better than a guess, and measured
    assert 0 <= found.recognized <= 1 and Image.open(pictures / "samples-cgan.png").size[0] == 116


def test_as_many_samples_as_held_out_rows_are_drawn(sides):
    assert sides.copied.shape == sides.held_out.shape == (100, 64)
    assert not nearest(sides.copied, sides.train).any()
    assert nearest(sides.held_out, sides.train).all()
    assert len(sides.labels) == 100


def test_hidden_states_have_a_probe_and_a_dictionary(tmp_path):
    model, data, options = DATA["hidden"]
    harvest(model, data, tmp_path / "hidden", rows=6000, **{**options, "holdout": 0.5})
    hidden = Sides.of(open_store(tmp_path / "hidden"))
    measure = judge_hidden(hidden, rows=6000)
    real = run_case(Case("hidden", REAL, REAL), hidden, measure)
    flat = run_case(Case("hidden", "vae", "vae", {"latents": 2}, epochs=1), hidden, measure)
    assert real.apart < 0.65 < 0.8 < flat.apart
    assert real.density > 0.9 and real.coactivation > flat.coactivation
    assert real.frechet < flat.frechet and real.judge is None


def test_the_table_of_the_page_says_what_the_file_says():
    row = {
        "data": "mnist", "name": "gan", "passes": "60.0", "cpu_s": "12.4", "peak_mb": "30.2",
        "classes": "9", "of_classes": "10", "entropy": "0.912", "recognized": "", "judge": "0.9781",
        "frechet": "41.23", "of_vae": "0.5", "precision": "0.61", "recall": "0.42", "memory": "1.1",
        "copies": "0.0", "diversity": "0.8", "apart": "",
    }  # fmt: skip
    real = {**row, "name": REAL, "passes": "0.0", "cpu_s": "0.0", "peak_mb": "", "of_vae": ""}
    text = generated.images([real, row])
    assert "The judge recognizes 97.8% of held-out MNIST-5k." in text
    line = "| MNIST-5k | gan | 9 of 10 | 0.91 |  | 41.2 | 0.50 | 0.61 | 0.42 | 1.10 | 0.0% | 0.80 |"
    assert f"{line} 60 | 12 | 30 |\n" in text
    assert f"| MNIST-5k | {REAL} | 9 of 10 | 0.91 |  | 41.2 |  |" in text
    assert text.count("\n") == 6 and generated.hidden([row]).count("\n") == 2


@pytest.mark.slow  # harvests digits, trains the judge and a VAE
def test_the_command_writes_each_line_as_it_comes(tmp_path, capsys):
    file = tmp_path / "a.csv"
    main(["--quick", "--names", "vae", "--csv", str(file), "--json"])
    out, err = capsys.readouterr()
    (result,) = json.loads(out)
    assert result["model"] == "vae" and result["of_vae"] == 1 and "digits  vae" in err
    (row,) = csv.DictReader(file.open())
    assert float(row["frechet"]) == result["frechet"] and row["torch"] == torch.__version__
    assert row["apart"] == ""
