"""Adversarial training on small digits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from saekit.attacks.balls import Ball
from saekit.attacks.defense import DefenseConfig, accuracy, train_classifier
from saekit.attacks.perturb import fgsm, pgd
from saekit.embedded import digits
from saekit.errors import DataError, UsageError

BALL = Ball("linf", 0.15)


@pytest.fixture(scope="module")
def data():
    pixels, labels = digits.arrays()
    x, y = torch.from_numpy(pixels).float()[:, None] / 255, torch.from_numpy(labels)
    return x[:900], y[:900], x[900:1100], y[900:1100]


def config(adversary: str, epochs: int = 8) -> DefenseConfig:
    return DefenseConfig(adversary, BALL, steps=3, epochs=epochs, batch=30)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def networks(data):
    x, y, *_ = data
    return {name: train_classifier(x, y, config(name)) for name in ("none", "fgsm", "pgd")}


def under(network, data, attack) -> float:
    return accuracy(network, data[2], data[3], attack)


def one_step(score, x):
    return fgsm(score, x, BALL).x


def many_steps(score, x):
    return pgd(score, x, BALL, 10).x


def test_the_defense_raises_accuracy_under_attack(networks, data):
    clean = {name: under(network, data, None) for name, network in networks.items()}
    assert min(clean.values()) > 0.6 and clean["none"] > 0.85
    by_pgd = {name: under(network, data, many_steps) for name, network in networks.items()}
    assert by_pgd["none"] < 0.4
    assert by_pgd["pgd"] > by_pgd["none"] + 0.15 and by_pgd["fgsm"] > by_pgd["none"] + 0.05


def test_the_gradient_is_not_masked(networks, data):
    """Projected gradient finds more than one step and than pictures for another network, and a
    budget of the whole range leaves nothing."""
    network = networks["pgd"]
    own = under(network, data, many_steps)
    assert own <= under(network, data, one_step)

    def transferred(score, x):
        return pgd(type(score)(networks["none"], score.classes_B), x, BALL, 10).x

    assert own <= under(network, data, transferred)

    def unbounded(score, x):
        return pgd(score, x, Ball("linf", 1.0), 20).x

    assert under(network, data, unbounded) < 0.1


def test_the_same_seed_gives_the_same_bits_and_leaves_the_random_state(data):
    x, y, *_ = data
    before = torch.random.get_rng_state()
    first, second, other = (
        train_classifier(x[:200], y[:200], config("pgd", 1), seed) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert not torch.equal(first.layers[0].weight, other.layers[0].weight)
    assert not first.training and not any(p.requires_grad for p in first.parameters())


def test_without_an_adversary_it_is_plain_training(data):
    """One batch, one step of Adam, by hand."""
    x, y = data[0][:60], data[1][:60]
    trained = train_classifier(x, y, DefenseConfig("none", epochs=1, batch=60, lr=0.01), seed=5)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = type(trained)((1, 8, 8), int(y.max()) + 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(5))
    torch.nn.functional.cross_entropy(network(x[order]), y[order]).backward()
    optimizer.step()
    for name, value in network.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name]), name


def test_what_cannot_be_trained_is_refused(data):
    x, y, *_ = data
    with pytest.raises(DataError, match="outside of"):
        train_classifier(255 * x, y, config("none"))
    for pictures, classes, text in (
        (x[:, 0], y, "have the shape"),
        (x.flatten(1), y, "have the shape"),
        ((255 * x).to(torch.uint8), y, "uint8"),
        (x, y[:5], "classes have the shape"),
        (x, y.float(), "float32"),
        (x, y - 1, "negative"),
        (x, ["three"] * len(x), "y is a list"),
        (x.numpy(), y, "x is a ndarray"),
        (x[:0], y[:0], "for 0 pictures"),
    ):
        with pytest.raises(DataError, match=text):
            train_classifier(pictures, classes, config("none"))
    with pytest.raises(UsageError, match="adversary"):
        config("cw")
    with pytest.raises(UsageError, match="epochs"):
        config("pgd", 0)


def test_the_code_of_the_docs_runs(capsys):
    """With one epoch."""
    text = (Path(__file__).parents[2] / "docs" / "attack.md").read_text()
    block = re.search(r"```python\n(.*?)```", text, re.S)
    assert block is not None
    code = block[1].replace('DefenseConfig("pgd", ball)', 'DefenseConfig("pgd", ball, epochs=1)')
    assert code != block[1]
    exec(compile(code, "docs/attack.md", "exec"), {})
    clean, attacked = map(float, capsys.readouterr().out.split())
    assert 0 <= attacked <= clean <= 1
