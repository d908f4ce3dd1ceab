"""What the classic models share, in every combination of options: the loss written out in fp64,
noise, targets, folding, saving."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import torch
from batches import batch_of
from torch.autograd.functional import jacobian

from saekit.errors import DataError, UsageError
from saekit.models.catalog import build, restore
from saekit.models.classic import ACTIVE_ABOVE, DEFAULT_COEF
from saekit.models.noise import Noise, step_generator
from saekit.models.normalizer import Normalizer
from saekit.types import Step

B, D, F, E = 6, 5, 3, 4  # E: width of a target from another store
NOISES = ("", "gaussian:0.3", "masking:0.3", "salt-pepper:0.2")
OUTPUTS = ("linear", "sigmoid", "bernoulli")
CODES = {"none": lambda a: a, "l1": torch.relu, "kl-sigmoid": torch.sigmoid}


def rows(count=B, width=D, seed=0):
    """In [0, 1], so that every output can be asked for them."""
    return torch.rand(
        count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def made(name, seed=0, **options):
    """A model in fp64 whose weights and biases are all different from 0."""
    d_out = options.pop("d_out", 0)
    model = build(name, D, {"latents": F, **options}, d_out=d_out)
    model.initialise_from(rows(), torch.Generator().manual_seed(seed))
    model = model.double()
    gen = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=gen, dtype=torch.float64)
    return model


def combinations():
    for noise, sparsity, tied, contractive, output in itertools.product(
        NOISES, CODES, (False, True), (0.0, 0.7), OUTPUTS
    ):
        yield {
            "noise": noise,
            "sparsity": sparsity,
            "tied": tied,
            "contractive": contractive,
            "output": output,
        }


def written_out(model, x, target, options, step):
    """Every term by its formula, using only the weights."""
    code, activation_function = (
        CODES[options["sparsity"]],
        torch.tanh if "hidden" in options else None,
    )
    first, last = model.layers[0], model.layers[-1]

    def encode(x_BD):
        h = x_BD @ first.W_up.T + first.b_up
        return code(
            h if activation_function is None else activation_function(h) @ last.W_up.T + last.b_up
        )

    noise = Noise.parse(options["noise"])
    z = encode(noise(x, step_generator(5, step, x.device)))
    W_code, W_out = (layer.W_up.T if options["tied"] else layer.W_down for layer in (last, first))
    h = z if activation_function is None else activation_function(z @ W_code.T + last.b_down)
    a = h @ W_out.T + first.b_down
    p = a.sigmoid()
    losses = {
        "linear": (a - target) ** 2,
        "sigmoid": (p - target) ** 2,
        "bernoulli": -target * p.log() - (1 - target) * (1 - p).log(),
    }
    terms = {"reconstruction": losses[options["output"]].sum(1).mean()}
    if options["sparsity"] == "l1":
        terms["l1"] = (z.abs() * W_code.norm(dim=0)).sum(1).mean()
    if options["sparsity"] == "kl-sigmoid":
        rate, rho = 0.01, z.mean(0)
        terms["kl"] = (
            rate * (rate / rho).log() + (1 - rate) * ((1 - rate) / (1 - rho)).log()
        ).sum()
    if options["contractive"]:
        jacobians = [
            jacobian(lambda row: encode(row[None])[0], row, create_graph=True) for row in x
        ]
        terms["contractive"] = torch.stack([J.square().sum() for J in jacobians]).mean()
    error = ((a if options["output"] == "linear" else p) - target).square().sum(1).mean()
    return terms, z, error


@pytest.mark.parametrize("name", ["linear", "dense"])
def test_every_term_is_its_formula_and_the_total_their_weighted_sum(name):
    x = rows()
    for options in combinations():
        if name == "dense":
            options |= {"hidden": (4,), "activation": "tanh"}
        model = made(name, **options)
        loss = model.loss(batch_of(x), Step(7, seed=5))
        terms, z, error = written_out(model, x, x, options, step=7)
        assert loss.terms.keys() == terms.keys() == loss.weights.keys(), options
        for key, value in terms.items():
            torch.testing.assert_close(
                loss.terms[key], value, rtol=1e-10, atol=1e-12, msg=f"{options} {key}"
            )
        weights = {
            "reconstruction": 1.0,
            "l1": DEFAULT_COEF["l1"],
            "kl": DEFAULT_COEF["kl-sigmoid"],
            "contractive": 0.7,
        }
        expected = sum(weights[key] * value for key, value in terms.items())
        torch.testing.assert_close(loss.total, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(loss.metrics["squared_error"], error, rtol=1e-10, atol=1e-12)
        above = ACTIVE_ABOVE[options["sparsity"]]
        assert (
            loss.fired is None
            if above is None
            else loss.fired.tolist() == (z > above).sum(0).tolist()
        )
        names, parameters = zip(*model.named_parameters())
        ours = torch.autograd.grad(loss.total, parameters, allow_unused=True)
        theirs = torch.autograd.grad(expected, parameters, allow_unused=True)
        for key, mine, other in zip(names, ours, theirs):
            assert mine is not None and mine.abs().sum() > 0, (options, key)
            torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-10, msg=f"{options} {key}")


@pytest.mark.parametrize(
    "noise,tied,output", list(itertools.product(NOISES, (False, True), OUTPUTS))
)
def test_the_total_of_a_vae_is_the_weighted_sum_and_reaches_every_parameter(noise, tied, output):
    model = made(
        "vae", noise=noise, tied=tied, output=output, hidden=(4,), beta=0.3, likelihood_weight=2.0
    )
    loss = model.loss(batch_of(rows()))
    assert set(loss.terms) == {"reconstruction", "kl"} and loss.weights == {
        "reconstruction": 2.0,
        "kl": 0.3,
    }
    torch.testing.assert_close(
        loss.total, 2.0 * loss.terms["reconstruction"] + 0.3 * loss.terms["kl"]
    )
    loss.total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    "name,options", [("linear", {}), ("dense", {"sparsity": "l1", "coef": 0.0}), ("vae", {})]
)
def test_noise_is_a_function_of_seed_and_step(name, options):
    x = rows()

    def total(seed, step):
        model = made(name, noise="masking:0.3", **options)
        return model.loss(batch_of(x), Step(step, seed=seed)).total.item()

    assert total(1, 4) == total(1, 4)
    assert len({total(1, 4), total(1, 5), total(2, 4)}) == 3


@pytest.mark.parametrize("noise", NOISES[1:])
def test_the_noisy_input_is_trained_to_give_the_clean_one_only_in_training(noise):
    x = rows()
    clean, noisy = made("dense", activation="tanh"), made("dense", activation="tanh", noise=noise)
    assert torch.equal(clean(x).x_hat, noisy(x).x_hat), "a trained model sees its input as it is"
    seen = Noise.parse(noise)(x, step_generator(0, 3, x.device))
    a = noisy.from_code(noisy.to_code(seen))
    torch.testing.assert_close(
        noisy.loss(batch_of(x), Step(3)).total, (a - x).square().sum(1).mean()
    )


def test_the_contractive_penalty_is_taken_at_the_clean_rows():
    x = rows()
    clean, noisy = (
        made("dense", contractive=1.0, noise=noise).loss(batch_of(x))
        for noise in ("", "gaussian:0.5")
    )
    assert torch.equal(clean.terms["contractive"], noisy.terms["contractive"])


@pytest.mark.parametrize(
    "name,output", list(itertools.product(("linear", "dense", "vae"), OUTPUTS))
)
def test_a_target_is_what_is_reconstructed(name, output):
    x, target = rows(), rows(width=E, seed=1)
    model = made(name, d_out=E, output=output)
    assert model(x).x_hat.shape == (B, E)
    with_target = model.loss(batch_of(x, target=target))
    expected = (model(x).x_hat - target).square().sum(1).mean()
    if name == "vae":
        other = model.loss(batch_of(x, target=1 - target))
        assert torch.equal(with_target.terms["kl"], other.terms["kl"])
        assert with_target.terms["reconstruction"] != other.terms["reconstruction"]
        return
    torch.testing.assert_close(with_target.metrics["squared_error"], expected)
    if name == "linear":
        plain = {"noise": "", "sparsity": "none", "tied": False, "contractive": 0, "output": output}
        torch.testing.assert_close(
            with_target.total, written_out(model, x, target, plain, 0)[0]["reconstruction"]
        )


def test_a_target_of_the_same_width_is_not_mixed_up_with_the_input():
    x, target = rows(), rows(seed=1)
    model = made("dense")
    expected = (model(x).x_hat - target).square().sum(1).mean()
    torch.testing.assert_close(model.loss(batch_of(x, target=target)).total, expected)


def test_data_that_the_output_cannot_reach_are_refused_and_a_target_is_what_counts():
    with pytest.raises(DataError, match='output="bernoulli" gives values in'):
        made("dense", output="bernoulli").loss(batch_of(rows() - 0.5))
    made("dense", output="bernoulli").loss(batch_of(rows() - 0.5, target=rows(seed=1)))


FOLDED = [
    ("linear", {}),
    ("linear", {"tied": True, "sparsity": "l1"}),
    ("dense", {"hidden": (7, 6), "sparsity": "kl-sigmoid"}),
    ("dense", {"hidden": (7,), "activation": "sigmoid", "pretrain": "rbm", "noise": "masking:0.2"}),
    ("dense", {"hidden": (), "output": "sigmoid"}),
    ("vae", {"hidden": (7,)}),
]


def trained_like(name, options, d_out=0):
    model = build(name, D, {"latents": F, **options}, d_out=d_out)
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=gen) * 0.7)
    return model


# Tied and pretrained layers are refused with a target of another width.
@pytest.mark.parametrize(
    "name,options,other",
    [
        (name, options, other)
        for name, options in FOLDED
        for other in (False, True)
        if not (other and {"tied", "pretrain"} & set(options))
    ],
)
def test_a_folded_model_takes_and_gives_raw_units(name, options, other):
    model = trained_like(name, options, E if other else 0)
    raw = 5 + 3 * torch.randn(20, D)
    mean, scale = raw.mean(0), 0.4
    target = (torch.arange(E) - 7.0, 2.5) if other else None
    out_mean, out_scale = target or (mean, scale)
    tensors = {
        key: value.clone()
        for key, value in (
            model.folded(Normalizer(mean, scale), Normalizer(*target))
            if other
            else model.folded(Normalizer(mean, scale))
        ).items()
    }
    config = json.loads(json.dumps(dataclasses.asdict(model.config)))
    outside = restore(name, config, tensors)
    inside = model((raw - mean) * scale)
    torch.testing.assert_close(outside(raw).code, inside.code, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        outside(raw).x_hat, inside.x_hat / out_scale + out_mean, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(outside.decode(outside.encode(raw)), outside(raw).x_hat)
    assert not any(p.requires_grad for p in outside.parameters()) and outside.config == model.config


def test_folding_does_not_change_the_training_model():
    model = trained_like("dense", {})
    x = torch.randn(3, D)
    before = model(x).x_hat
    model.folded(Normalizer(torch.ones(D), 3.0))
    assert torch.equal(model(x).x_hat, before) and model.input_scale == 1


@pytest.mark.parametrize(
    "options,cause",
    [
        ({"latents": 0}, "latents=0 must be at least 1"),
        ({"output": "bernouli"}, 'output="bernouli": did you mean bernoulli'),
        ({"sparsity": "topk"}, 'sparsity="topk": choose none, l1, kl'),
        ({"noise": "masking:2"}, 'noise="masking:2"'),
        ({"sparsity": "kl-sigmoid", "target_rate": 1.0}, r"target_rate=1 must be in \(0, 1\)"),
        ({"coef": 1.0}, "coef=1 weighs a penalty that there is not"),
        ({"sparsity": "l1", "coef": -1.0}, "coef=-1 must not be negative"),
        ({"contractive": -0.1}, "contractive=-0.1 must not be negative"),
        ({"k": 3}, 'k does not apply to model="'),
    ],
)
@pytest.mark.parametrize("name", ["linear", "dense"])
def test_options_that_cannot_be_are_refused(name, options, cause):
    with pytest.raises(UsageError, match=cause):
        build(name, D, options)
