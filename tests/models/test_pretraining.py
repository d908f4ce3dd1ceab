"""Pretraining as stages of one run: which steps, which layers, which loss, and the bits of a run
that was killed on the way."""

from __future__ import annotations

import json

import pytest
import torch
from batches import batch_of
from made_runs import break_off
from made_stores import write_store

import saekit
from saekit.models.catalog import build
from saekit.models.dense import Dense, DenseConfig
from saekit.models.noise import Noise, step_generator
from saekit.models.normalizer import Normalizer
from saekit.models.pretraining import SAMPLES, layer_stages, machine
from saekit.models.rbm import RBM
from saekit.store.memory import ArraySource
from saekit.training.config import TrainConfig
from saekit.training.defaults import resolved
from saekit.training.fit import fit
from saekit.training.inputs import BatchNormalizer
from saekit.training.loop import Trainer
from saekit.types import Stage, Step

D, F = 6, 2
HIDDEN = (5, 4)


def rows(count=8, width=D, seed=0):
    return torch.rand(
        count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def filled(pretrain, total=12, **options):
    """A model in fp64, weights and biases all set; 12 steps are three stages of two steps and one
    of six."""
    model = Dense(
        DenseConfig(
            D,
            **{
                "latents": F,
                "hidden": HIDDEN,
                "activation": "sigmoid",
                "pretrain": pretrain,
                **options,
            },
        )
    ).double()
    gen = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=gen, dtype=torch.float64))
    return model


def test_stages_of_a_run_by_hand():
    assert layer_stages(3, 12, 0.5) == [
        Stage(0, 2, 0),
        Stage(2, 4, 1),
        Stage(4, 6, 2),
        Stage(6, 12),
    ]
    assert layer_stages(2, 100, 0.3) == [Stage(0, 15, 0), Stage(15, 30, 1), Stage(30, 100)]


SHARES = (0.01, 0.2, 0.5, 0.8, 0.99)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("layers", [1, 2, 3, 5])
def test_stages_partition_the_steps_however_short_the_run(layers, share):
    for total in (*range(1, 30), 997):
        stages = layer_stages(layers, total, share)
        assert [step for stage in stages for step in range(stage.start, stage.stop)] == list(
            range(total)
        ), (total, stages)
        numbers = [stage.layer for stage in stages]
        assert numbers[-1] is None and numbers[:-1] == sorted(set(numbers[:-1])), (
            "layers from the input up, then the whole model"
        )
        sizes = [stage.stop - stage.start for stage in stages[:-1]]
        if total >= 997 and share >= 0.2:
            assert len(sizes) == layers and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("pretrain", ["greedy", "rbm"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_stage_moves_only_its_layer(pretrain, tied):
    for layer in range(3):
        model = filled(pretrain, tied=tied)
        model.loss(batch_of(rows()), Step(2 * layer, 12)).total.backward()
        touched = {
            name
            for name, p in model.named_parameters()
            if p.grad is not None and p.grad.abs().sum() > 0
        }
        own = {"W_up", "b_up", "b_down"} | (
            {"W_down"} if pretrain == "greedy" and not tied else set()
        )
        assert touched == {f"layers.{layer}.{name}" for name in own}
    model = filled(pretrain, tied=tied)
    model.loss(batch_of(rows()), Step(6, 12)).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def below(model, x, layers):
    for i in range(layers):
        x = (x @ model.layers[i].W_up.T + model.layers[i].b_up).sigmoid()
    return x


@pytest.mark.parametrize("noise", ["", "masking:0.3", "gaussian:0.2"])
@pytest.mark.parametrize("output", ["linear", "bernoulli"])
def test_greedy_losses_by_hand(noise, output):
    model = filled("greedy", noise=noise, output=output)
    x = rows()
    for layer in range(3):
        step = 2 * layer + 1
        h = below(model, x, layer)
        seen = Noise.parse(noise)(h, step_generator(4, step, x.device))
        mirror = model.layers[layer]
        up = seen @ mirror.W_up.T + mirror.b_up
        a = (up if layer == 2 else up.sigmoid()) @ mirror.W_down.T + mirror.b_down
        p = a.sigmoid()
        entropy = (-h * p.log() - (1 - h) * (1 - p).log()).sum(1).mean()
        squares = (a - h).square().sum(1).mean()
        loss = model.loss(batch_of(x), Step(step, 12, seed=4))
        torch.testing.assert_close(
            loss.total, squares if layer == 0 and output == "linear" else entropy
        )
        assert (
            list(loss.terms) == ["layer_reconstruction"]
            and loss.weights == {"layer_reconstruction": 1.0}
            and loss.fired is None
        )


@pytest.mark.parametrize(
    "activation,function",
    [("relu", torch.relu), ("tanh", torch.tanh), ("gelu", torch.nn.functional.gelu)],
)
def test_a_hidden_layer_is_reconstructed_through_its_own_activation(activation, function):
    model = filled("greedy", activation=activation)
    x, mirror = rows(), model.layers[1]
    h = function(x @ model.layers[0].W_up.T + model.layers[0].b_up)
    h_hat = function(function(h @ mirror.W_up.T + mirror.b_up) @ mirror.W_down.T + mirror.b_down)
    torch.testing.assert_close(
        model.loss(batch_of(x), Step(2, 12)).total, (h_hat - h).square().sum(1).mean()
    )


def test_the_code_layer_bends_as_its_sparsity_asks():
    for sparsity, code in (("l1", torch.relu), ("kl-sigmoid", torch.sigmoid)):
        model = filled("greedy", activation="tanh", sparsity=sparsity)
        x, mirror = rows(), model.layers[2]
        h = x
        for i in range(2):
            h = (h @ model.layers[i].W_up.T + model.layers[i].b_up).tanh()
        h_hat = (code(h @ mirror.W_up.T + mirror.b_up) @ mirror.W_down.T + mirror.b_down).tanh()
        torch.testing.assert_close(
            model.loss(batch_of(x), Step(4, 12)).total, (h_hat - h).square().sum(1).mean()
        )


@pytest.mark.parametrize(
    "output,visible", [("linear", "gaussian"), ("sigmoid", "bernoulli"), ("bernoulli", "bernoulli")]
)
@pytest.mark.parametrize("sparsity,hidden", [("none", "gaussian"), ("kl-sigmoid", "bernoulli")])
def test_machines_have_the_units_that_the_layers_have(output, visible, sparsity, hidden):
    model = filled("rbm", output=output, sparsity=sparsity)
    kinds = [(machine(model, i).visible, machine(model, i).hidden) for i in range(3)]
    assert kinds == [(visible, "bernoulli"), ("bernoulli", "bernoulli"), ("bernoulli", hidden)]


def test_a_machine_s_loss_is_one_round_of_contrastive_divergence_on_what_the_layers_below_make():
    model = filled("rbm")
    x = rows()
    for layer, (visible, hidden) in enumerate(
        [("gaussian", "bernoulli"), ("bernoulli", "bernoulli"), ("bernoulli", "gaussian")]
    ):
        step, mirror = 2 * layer + 1, model.layers[layer]
        h = below(model, x, layer)
        rbm = RBM(mirror.W_up, mirror.b_up, mirror.b_down, visible, hidden)
        v = rbm.visible_mean(rbm.sample_hidden(h, step_generator(4, step, x.device, SAMPLES)))
        loss = model.loss(batch_of(x), Step(step, 12, seed=4))
        torch.testing.assert_close(
            loss.total, (rbm.free_energy(h) - rbm.free_energy(v.detach())).mean()
        )
        torch.testing.assert_close(loss.metrics["layer_error"], (v - h).square().sum(1).mean())
        assert list(loss.terms) == list(loss.weights)


def source_of(x):
    return ArraySource(x.float())


def trainer_of(model, total, batch=16, seed=0, **options):
    config = resolved(
        TrainConfig.from_flat({"model": "dense", "batch": batch, "seed": seed, **options}),
        model,
        64,
    )
    sample = rows(64, seed=9).float()
    return Trainer(
        model,
        source_of(sample),
        BatchNormalizer(Normalizer(torch.zeros(D), 1.0)),
        config,
        total,
        None,
        sample,
    ), sample


@pytest.mark.parametrize("output", ["linear", "bernoulli"])
def test_machines_start_from_the_means_of_the_data_and_end_unrolled(output):
    model = filled("rbm", output=output).float()
    model.initialise_from(rows().float(), torch.Generator().manual_seed(0))
    assert model.layers[1].W_up.abs().max() < 0.06 and not model.layers[1].b_up.any()
    trainer, sample = trainer_of(model, 12)
    batches = trainer.store.batches(16, 0)
    stage, mean = trainer._stage(), sample.mean(0)
    assert stage == Stage(0, 2, 0)
    torch.testing.assert_close(
        model.layers[0].b_down.data, mean if output == "linear" else torch.log(mean / (1 - mean))
    )
    for _ in range(6):
        trainer.train_step(next(batches))
    ups = [mirror.W_up.detach().clone() for mirror in model.layers]
    trainer._stage()
    for mirror, up in zip(model.layers, ups):
        assert torch.equal(mirror.W_down, up.T) and torch.equal(mirror.W_up, up)
    assert not trainer.optimizer.state, "the moments belonged to other losses"
    for _ in range(6):
        trainer.train_step(next(batches))
    assert not torch.equal(model.layers[0].W_down, model.layers[0].W_up.T), (
        "from here on, they go their own ways"
    )


@pytest.mark.parametrize("pretrain", ["greedy", "rbm"])
def test_layers_stand_still_outside_their_stage(pretrain):
    """Weight decay and moments of an earlier stage do not reach them either."""
    model = build(
        "dense", D, {"latents": F, "hidden": HIDDEN, "activation": "sigmoid", "pretrain": pretrain}
    )
    model.initialise_from(rows().float(), torch.Generator().manual_seed(0))
    trainer, _ = trainer_of(model, 12, weight_decay=0.1)
    batches = trainer.store.batches(16, 0)
    for step in range(6):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        trainer.train_step(next(batches))
        moved = {
            name.split(".")[1]
            for name, p in model.named_parameters()
            if not torch.equal(p, before[name])
        }
        assert moved == {str(step // 2)}


@pytest.mark.parametrize("pretrain", ["greedy", "rbm"])
@pytest.mark.parametrize("steps,share", [(1, 0.5), (2, 0.5), (3, 0.5), (4, 0.9), (1, 0.9)])
def test_a_run_with_fewer_steps_than_stages_ends_with_the_whole_model(pretrain, steps, share):
    options = {
        "latents": F,
        "hidden": HIDDEN,
        "activation": "sigmoid",
        "pretrain": pretrain,
        "pretrain_share": share,
    }
    model = build("dense", D, options)
    config = resolved(TrainConfig.from_flat({"model": "dense", "batch": 16, **options}), model, 64)
    entered = []
    enter = model.enter
    model.enter = lambda stage, sample=None: (entered.append(stage.layer), enter(stage, sample))
    fitted = fit(model, source_of(rows(64)), config, steps, torch.device("cpu"))
    assert fitted.steps == steps and all(
        tensor.isfinite().all() for tensor in fitted.tensors.values()
    )
    assert entered[-1] is None
    assert fitted.tensors["layers.2.W_down"].any(), (
        "without unrolling the way down would still be zeros"
    )


def test_greedy_pretraining_lowers_the_first_error_of_the_whole():
    x = torch.nn.functional.normalize(rows(256, 3, seed=1), dim=1).float() @ torch.rand(
        3, D, generator=torch.Generator().manual_seed(2)
    )

    def error_when_the_whole_begins(pretrain):
        model = build(
            "dense",
            D,
            {
                "latents": 3,
                "hidden": (6,),
                "activation": "tanh",
                **({"pretrain": pretrain} if pretrain else {}),
            },
        )
        model.initialise_from(x, torch.Generator().manual_seed(0))
        if pretrain:
            config = TrainConfig.from_flat(
                {"model": "dense", "batch": 32, "lr": 1e-2, "weight_decay": 0.0}
            )
            trainer = Trainer(
                model,
                source_of(x),
                BatchNormalizer(Normalizer(torch.zeros(D), 1.0)),
                config,
                600,
                None,
                x,
            )
            batches = trainer.store.batches(32, 0)
            for _ in range(300):
                trainer.train_step(next(batches))
        return (model(x).x_hat - x).square().sum(1).mean().item()

    assert error_when_the_whole_begins("greedy") < 0.1 * error_when_the_whole_begins("")


@pytest.fixture
def wide(tmp_path):
    return write_store(tmp_path / "store", 600)


@pytest.mark.parametrize(
    "options",
    [
        {"pretrain": "greedy", "noise": "masking:0.2", "activation": "tanh"},
        {"pretrain": "rbm", "activation": "sigmoid"},
        {"pretrain": "rbm", "activation": "sigmoid", "sparsity": "kl-sigmoid", "tied": True},
    ],
)
@pytest.mark.parametrize("killed_at", [1, 2, 3, 6, 8])
def test_a_run_killed_within_a_stage_or_between_two_resumes_to_the_same_bits(
    wide, tmp_path, options, killed_at
):
    """Stages begin at steps 0, 2, 4 and 6 of 12."""
    config = TrainConfig.from_flat(
        {"model": "dense", "latents": 4, "hidden": (8, 6), "batch": 64, "rows": 12 * 64, **options}
    )
    saekit.train(wide, tmp_path / "whole", config=config)

    break_off(wide, tmp_path / "broken", config, killed_at)
    saekit.train(wide, tmp_path / "broken", config=config, resume=True)
    whole, broken = (saekit.load(tmp_path / name).state_dict() for name in ("whole", "broken"))
    assert whole.keys() == broken.keys() and all(
        torch.equal(whole[name], broken[name]) for name in whole
    )

    def steps(path):
        return [
            {k: v for k, v in json.loads(line).items() if k != "rows_per_s"}
            for line in open(path / "metrics.jsonl")
        ]

    assert (
        steps(tmp_path / "whole") == steps(tmp_path / "broken")
        and len(steps(tmp_path / "whole")) == 12
    )
