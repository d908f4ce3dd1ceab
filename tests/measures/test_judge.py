"""The classifier that judges samples, on real digits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from saekit.errors import DataError
from saekit.measures.judge import coverage, train_judge
from saekit.store.reader import open_store


@pytest.fixture(scope="module")
def digit_rows(digits):
    store = open_store(digits)
    train, held_out = (
        torch.cat([batch.x.float() for batch in store.batches(512, split=split)])
        for split in ("train", "holdout")
    )
    return train, store.labels("train"), held_out, store.labels("holdout")


@pytest.fixture(scope="module")
def judge(digit_rows):
    return train_judge(*digit_rows, shape=(8, 8, 1), steps=300)


def test_its_accuracy_is_that_of_held_out_rows(judge, digit_rows):
    _, _, x, y = digit_rows
    right = sum(a == b for a, b in zip(judge.predict(x), y))
    # 300 images to learn from
    assert judge.accuracy == right / len(y) > 0.85
    wrong = [str((int(label) + 1) % 10) for label in y]
    assert judge.recognized(x, wrong) <= 1 - judge.accuracy


def test_features_are_what_its_last_layer_reads(judge, digit_rows):
    x = digit_rows[2]
    features = judge.features(x)
    assert features.shape == (100, 64) and (features >= 0).all()
    assert not features.requires_grad and features.std(0).max() > 0.1
    last = judge.network[-1]
    scores = features @ last.weight.T + last.bias
    assert (judge.names[scores.argmax(1).numpy()] == judge.predict(x)).all()
    # images as they are drawn, not yet flat
    torch.testing.assert_close(judge.features(x.view(100, 8, 8, 1)), features)


def test_the_seed_decides_and_the_global_generator_is_left_alone(digit_rows, one_thread):
    state = torch.get_rng_state()
    train, labels, x, y = digit_rows
    small = (train[:64], labels[:64], x, y)
    first, again, other = (
        train_judge(*small, shape=(8, 8, 1), seed=seed, steps=9).features(x) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_sides_that_are_odd_and_colors_are_taken():
    x = torch.rand(8, 5 * 7 * 3)
    judge = train_judge(x, list("abababab"), x, list("abababab"), shape=(5, 7, 3), steps=2)
    assert judge.features(x).shape == (8, 64)


def test_a_class_that_is_missing_is_named():
    real = ["0"] * 50 + ["1"] * 30 + ["2"] * 20
    found = coverage(["0"] * 79 + ["1"] * 20 + ["2"], real)
    # 1 % of the samples, below a tenth of 20 %
    assert found.missing == ("2",) and found.found == 2
    assert found.shares == {"0": 0.79, "1": 0.2, "2": 0.01}
    half = coverage(["0", "1"] * 10, ["0", "1", "2", "3"] * 10)
    assert half.entropy == pytest.approx(math.log(2) / math.log(4)) and half.found == 2
    assert coverage(real, real).entropy == pytest.approx(1) and not coverage(real, real).missing
    assert coverage(["0"] * 9, real).entropy == 0


def test_one_class_cannot_be_judged():
    x = torch.zeros(4, 16)
    with pytest.raises(DataError, match="only one class"):
        train_judge(x, ["a"] * 4, x, ["a"] * 4, shape=(4, 4, 1))
    with pytest.raises(DataError, match="single class"):
        coverage(["a"], np.array(["a", "a"]))
    with pytest.raises(DataError, match="needs samples"):
        coverage([], ["a", "b"])
