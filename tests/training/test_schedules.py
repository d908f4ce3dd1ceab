"""How a run's rate rises and falls, what Adam forgets, the average of the weights, and dense
products in bf16."""

from __future__ import annotations

import json
import math
import tomllib

import pytest
import torch
from made_runs import break_off, equal, tensors
from made_stores import make_rows

import saekit
from saekit.errors import DataError, UsageError
from saekit.models.catalog import build
from saekit.models.sparsity.jumprelu import SPEED
from saekit.store.checkpoint import read_train_state
from saekit.training.average import Average
from saekit.training.config import TrainConfig
from saekit.training.fit import holdout_figures
from saekit.training.loop import Trainer
from saekit.training.optim import decay_share, make_adam, products_in_bfloat16, schedule
from saekit.types import ActivationBatch, Step

CPU = torch.device("cpu")
SMALL = {"expansion": 4, "k": 4, "batch": 64, "lr": 3e-3}
DENSE = {"model": "dense", "latents": 4, "hidden": (12,), "batch": 64, "lr": 3e-3}


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def recorded(monkeypatch):
    """(trainers made, the weights after each step of the last one)."""
    trainers, weights = [], []

    def kept(self, raw, original=Trainer.train_step):
        if not trainers or trainers[-1] is not self:
            trainers.append(self)
            weights.clear()
        made = original(self, raw)
        weights.append({name: value.clone() for name, value in self.model.state_dict().items()})
        return made

    monkeypatch.setattr(Trainer, "train_step", kept)
    return trainers, weights


# -- the rate


@pytest.mark.parametrize(
    "shape,fall",
    [
        ("constant", [1.0] * 10),
        ("linear", [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        ("cosine", [math.sin(math.pi * left / 20) ** 2 for left in range(10, 0, -1)]),
    ],
)
def test_every_shape_rises_in_a_line_stays_and_falls_in_its_own_way(shape, fall):
    factors = [schedule(step, 20, 0.5, shape, 0.2) for step in range(20)]
    assert factors[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0]) and factors[4:10] == [1.0] * 6
    assert factors[10:] == pytest.approx(fall)


def test_a_cosine_is_at_half_its_height_half_way_and_near_0_at_the_end():
    assert schedule(15, 20, 0.5, "cosine", 0.05) == pytest.approx(0.5)
    assert schedule(999, 1000, 0.5, "cosine", 0.05) == pytest.approx(
        (math.pi / 2 / 500) ** 2, rel=1e-4
    )


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
def test_shares_of_0_do_not_change_the_peak_rate(shape):
    assert [schedule(step, 7, 0.0, shape, 0.0) for step in range(7)] == [1.0] * 7


@pytest.mark.parametrize("total", [1, 2, 7, 40, 333])
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_the_default_has_the_bits_of_the_one_shape_that_there_was(total, share):
    warmup, decay = max(round(0.05 * total), 1), max(round(share * total), 1)
    before = [min(1.0, (step + 1) / warmup, (total - step) / decay) for step in range(total)]
    assert [schedule(step, total, share, "linear", 0.05) for step in range(total)] == before


@pytest.mark.parametrize(
    "model,settings,share",
    [
        ("sae", {}, 0.2),
        ("dense", {}, 0.5),
        ("dense", {"warmup": 0.7}, 0.3),  # as far as the warm-up leaves it
        ("sae", {"schedule": "cosine"}, 0.95),
        ("dense", {"schedule": "cosine", "warmup": 0.1}, 0.9),
        ("sae", {"schedule": "cosine", "decay": 0.25}, 0.25),
        ("sae", {"schedule": "constant"}, 0.0),
        ("dense", {"decay": 0.0}, 0.0),
    ],
)
def test_the_share_of_the_fall_follows_from_model_and_shape(model, settings, share):
    assert decay_share(TrainConfig(model, **settings), build(model, 16, {})) == pytest.approx(share)


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
def test_a_run_uses_the_rates_of_its_schedule(store, tmp_path, shape):
    settings = {"schedule": shape, "warmup": 0.2} | ({} if shape == "constant" else {"decay": 0.4})
    saekit.train(store.path, tmp_path / "run", **SMALL, **settings, rows=640)
    by_hand = {
        "constant": [0.5, *[1.0] * 9],
        "linear": [0.5, *[1.0] * 6, 0.75, 0.5, 0.25],
        "cosine": [0.5, *[1.0] * 6, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4],
    }
    assert [line["lr"] for line in lines(tmp_path / "run")] == pytest.approx(
        [3e-3 * factor for factor in by_hand[shape]]
    )


def test_every_stage_has_a_rise_and_a_fall_of_its_own(store, tmp_path):
    settings = {"pretrain": "greedy", "schedule": "cosine", "warmup": 0.25, "decay": 0.5}
    # stages of 4, 4 and 8 steps
    saekit.train(store.path, tmp_path / "run", **DENSE, **settings, rows=64 * 16)
    short, long = (
        [1.0, 1.0, 1.0, 0.5],
        [0.5, 1.0, 1.0, 1.0, 1.0, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4],
    )
    assert [line["lr"] / 3e-3 for line in lines(tmp_path / "run")] == pytest.approx(
        [*short, *short, *long]
    )


def test_adam_forgets_squared_gradients_at_the_given_rate(store, tmp_path, recorded):
    for decay in (0.0, 0.1):
        model = torch.nn.Linear(2, 2)
        optimizer = make_adam(model, 0.1, decay, beta2=0.75)
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 2.0)
        optimizer.step()
        assert optimizer.state[model.weight]["exp_avg_sq"].tolist() == [
            [1.0, 1.0],
            [1.0, 1.0],
        ], "(1 - 0.75) 2^2"
    saekit.train(store.path, tmp_path / "run", **SMALL, beta2=0.98, rows=128)
    saekit.train(store.path, tmp_path / "default", **SMALL, rows=128)
    assert [trainer.optimizer.param_groups[0]["betas"] for trainer in recorded[0]] == [
        (0.9, 0.98),
        (0.9, 0.999),
    ]


# -- the average


def averaged(history, decay):
    """sum_i decay^(t-i) w_i / sum_i decay^(t-i), in fp64."""
    shares = torch.tensor(
        [decay ** (len(history) - 1 - i) for i in range(len(history))], dtype=torch.float64
    )
    shares /= shares.sum()
    return {
        name: sum(share * weights[name].double() for share, weights in zip(shares, history))
        for name in history[0]
    }


def close(made, expected, tolerance=1e-6):
    torch.testing.assert_close(made.double(), expected.double(), rtol=tolerance, atol=tolerance)


def test_an_average_weighs_what_is_a_step_older_by_the_decay():
    model = torch.nn.Linear(1, 1, bias=False)
    model.register_buffer("count", torch.tensor(7))
    model.after_step = lambda: None
    average = Average(0.5)
    for value in (8.0, 1.0, 2.0):
        with torch.no_grad():
            model.weight.fill_(value)  # in place, as fused steps do
        average.update(model)
    average.put_into(model)
    assert (
        model.weight.item() == pytest.approx((0.25 * 8 + 0.5 * 1 + 2) / 1.75) and model.count == 7
    )
    assert set(average.tensors) == {"weight"}, "integers are not averaged"


def test_what_does_not_move_is_averaged_to_its_own_bits():
    model = torch.nn.Linear(50, 1)
    model.after_step = lambda: None
    before, average = model.weight.detach().clone(), Average(0.9)
    for _ in range(30):
        average.update(model)
    average.put_into(model)
    assert torch.equal(model.weight, before)


def test_the_checkpoint_holds_the_average_with_unit_decoder_rows(store, tmp_path, recorded):
    result = saekit.train(
        store.path, tmp_path / "run", **{**SMALL, "lr": 0.03}, ema=0.9, rows=64 * 30
    )
    (trainer,), history = recorded
    mean = averaged(history, 0.9)
    norms = mean["W_dec"].norm(dim=1, keepdim=True)
    assert norms.min() < 0.99, "a mean of unit rows is shorter"
    mean["W_dec"] = mean["W_dec"] / norms
    made = trainer.model.state_dict()
    for name, expected in mean.items():
        close(made[name], expected)
    loaded = tensors(tmp_path / "run")
    close(loaded["W_dec"], mean["W_dec"])
    close(
        loaded["b_dec"],
        mean["b_dec"] / trainer.normalize.inputs.scale + trainer.normalize.inputs.mean_D,
        1e-5,
    )
    figures = holdout_figures(saekit.load(tmp_path / "run"), store).scalars()
    assert result.metrics["fvu"] == figures["fvu"], "the figures are those of the average"


def test_trained_thresholds_are_averaged_too(store, tmp_path, recorded):
    settings = {"sparsity": "jumprelu", "target_l0": 4, "expansion": 4, "batch": 64}
    saekit.train(store.path, tmp_path / "run", **settings, ema=0.8, rows=64 * 20)
    (trainer,), history = recorded
    theta = SPEED * averaged(history, 0.8)["slow_theta"]
    assert (theta - history[-1]["threshold"]).abs().max() > 1e-4
    close(trainer.model.threshold, theta)
    close(tensors(tmp_path / "run")["threshold"], theta / trainer.normalize.inputs.scale, 1e-5)


def test_averaging_does_not_change_the_run_itself(store, tmp_path, recorded):
    ends = []
    for name, settings in (("plain", {}), ("average", {"ema": 0.95})):
        saekit.train(store.path, tmp_path / name, **SMALL, **settings, rows=64 * 12)
        ends.append(dict(recorded[1][-1]))
    assert equal(*ends)
    plain, average = (
        [{k: v for k, v in line.items() if k != "rows_per_s"} for line in lines(tmp_path / n)]
        for n in ("plain", "average")
    )
    assert plain == average
    assert not equal(tensors(tmp_path / "plain"), tensors(tmp_path / "average"))


def test_every_stage_begins_an_average_of_its_own(store, tmp_path, recorded):
    saekit.train(store.path, tmp_path / "run", **DENSE, pretrain="greedy", ema=0.9, rows=64 * 16)
    (trainer,), history = recorded
    start = trainer.stages[-1].start
    assert start == 8 and trainer.average.count == 8
    for name, expected in averaged(history[start:], 0.9).items():
        close(trainer.model.state_dict()[name], expected)


def test_fused_steps_on_triton_are_averaged(store, tmp_path, recorded, monkeypatch):
    import saekit.models.sparsity.topk as topk

    fused = []
    monkeypatch.setattr(
        topk,
        "fused_sparse_step",
        lambda *a, original=topk.fused_sparse_step: (fused.append(1), original(*a))[1],
    )
    settings = {
        **SMALL,
        "expansion": 2,
        "batch": 16,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }
    saekit.train(
        store.path,
        tmp_path / "run",
        **settings,
        backend="triton",
        revive="none",
        ema=0.7,
        rows=16 * 3,
    )
    (trainer,), history = recorded
    assert len(fused) == 3
    mean = averaged(history, 0.7)
    close(trainer.model.W_enc, mean["W_enc"])
    close(trainer.model.W_dec, mean["W_dec"] / mean["W_dec"].norm(dim=1, keepdim=True))
    assert not trainer.model.shadows.copies, "copies of other weights would be stale"


@pytest.mark.parametrize(
    "settings",
    [
        {**SMALL, "ema": 0.9, "schedule": "cosine", "beta2": 0.95},
        {
            "sparsity": "jumprelu",
            "target_l0": 4,
            "expansion": 4,
            "batch": 64,
            "ema": 0.5,
            "schedule": "constant",
        },
        {"sparsity": "l1", "target_l0": 4, "expansion": 4, "batch": 64},
        {"sparsity": "kl", "target_l0": 4, "expansion": 4, "batch": 64},
        {"sparsity": "kl-rates", "target_l0": 4, "expansion": 4, "batch": 64},
        {**DENSE, "pretrain": "greedy", "ema": 0.9},  # stages begin at steps 2 and 5
        {**DENSE, "precision": "bfloat16", "warmup": 0.0},
    ],
)
def test_ten_steps_are_five_steps_a_resume_and_five_steps(store, tmp_path, settings):
    config = TrainConfig.from_flat({**settings, "rows": 640})
    saekit.train(store.path, tmp_path / "whole", config=config)

    break_off(store.path, tmp_path / "broken", config, 5)
    saekit.train(store.path, tmp_path / "broken", config=config, resume=True)
    assert equal(tensors(tmp_path / "whole"), tensors(tmp_path / "broken"))
    whole, broken = (read_train_state(tmp_path / name) for name in ("whole", "broken"))
    assert equal(whole[0], broken[0]) and whole[1] == broken[1]


def test_a_run_killed_between_its_last_step_and_its_checkpoint_is_finished_by_a_resume(
    store, tmp_path
):
    settings = {**SMALL, "ema": 0.9, "rows": 640}
    saekit.train(store.path, tmp_path / "run", **settings)
    before = tensors(tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    (tmp_path / "run" / "config.json").unlink()
    saekit.train(store.path, tmp_path / "run", **settings, resume=True)
    assert equal(before, tensors(tmp_path / "run")), (
        "the state holds the weights of the run, not their average"
    )


# -- dense products in bf16


def test_products_are_rounded_and_everything_else_is_not():
    x, W = torch.randn(5, 7), torch.randn(3, 7)
    with products_in_bfloat16(CPU):
        product, exponential = x @ W.T, x.exp()
    assert product.dtype == torch.float32
    torch.testing.assert_close(product, (x.bfloat16() @ W.bfloat16().T).float(), rtol=0, atol=0)
    assert torch.equal(exponential, x.exp()) and not torch.equal(product, x @ W.T)
    assert torch.equal(x @ W.T, torch.nn.functional.linear(x, W)), "the mode ends with the block"


def test_a_product_under_no_grad_does_not_take_the_gradient_of_the_next():
    x, W = torch.randn(5, 7), torch.randn(3, 7, requires_grad=True)
    with products_in_bfloat16(CPU):
        with torch.no_grad():
            torch.nn.functional.linear(x, W)
        torch.nn.functional.linear(x, W).sum().backward()
    close(W.grad, x.sum(0).expand(3, 7), 2e-2)


def rows_of(kind):
    gen = torch.Generator().manual_seed(1)
    if kind == "image":
        return torch.rand(16, 8 * 8, generator=gen), (8, 8, 1)
    if kind == "sequence":
        return torch.randn(16, 6, 5, generator=gen), (None, 5)
    return make_rows(64) - 3.0, None


@pytest.mark.parametrize(
    "model,options,kind",
    [
        ("linear", {"latents": 4}, "rows"),
        ("dense", {"latents": 4, "hidden": (12,), "sparsity": "l1"}, "rows"),
        (
            "dense",
            {
                "latents": 4,
                "hidden": (12, 8),
                "tied": True,
                "contractive": 0.1,
                "sparsity": "kl-sigmoid",
            },
            "rows",
        ),
        ("dense", {"latents": 4, "hidden": (12,), "pretrain": "greedy"}, "rows"),
        ("vae", {"latents": 4, "hidden": (12,)}, "rows"),
        ("conv", {"latents": 4, "channels": (4, 8), "output": "bernoulli"}, "image"),
        ("unet", {"latents": 4, "channels": (4,)}, "image"),
        ("recurrent", {"latents": 4, "width": 12, "cell": "gru"}, "sequence"),
        ("recurrent", {"latents": 4, "width": 12, "cell": "lstm", "layers": 2}, "sequence"),
    ],
)
def test_losses_and_gradients_are_those_of_fp64_but_for_rounding(model, options, kind):
    x, shape = rows_of(kind)
    built = build(model, x.shape[-1], options, shape)
    built.initialise_from(x, torch.Generator().manual_seed(0))
    index = torch.arange(len(x))

    def judged(net, x, step):
        net.zero_grad()
        terms = net.loss(ActivationBatch(x, index, index, index), Step(step, 8))
        terms.total.backward()
        return terms, {
            name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None
        }

    steps = (0, 3, 7) if "pretrain" in options else (7,)  # each layer, then all
    for step in steps:
        with products_in_bfloat16(CPU):
            terms, gradients = judged(built, x, step)
        # whose draws go by dtype
        exact, expected = (
            judged(built.double(), x.double(), step) if model != "vae" else judged(built, x, step)
        )
        built.float()
        assert terms.total.item() == pytest.approx(exact.total.item(), rel=1e-2)
        assert {
            value.dtype for value in (terms.total, *terms.terms.values(), *gradients.values())
        } == {torch.float32}
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            assert (
                torch.cosine_similarity(
                    gradient.double().flatten(), expected[name].double().flatten(), dim=0
                )
                > 0.999
            ), name


@pytest.mark.parametrize(
    "settings",
    [
        DENSE,
        {**DENSE, "model": "vae"},
        {"model": "linear", "latents": 4, "batch": 64, "lr": 1e-2},
    ],
)
def test_a_run_with_products_in_bf16_learns_what_the_fp32_run_learns(
    store, tmp_path, settings, recorded
):
    results = []
    for precision in ("float32", "bfloat16"):
        result = saekit.train(
            store.path, tmp_path / precision, **settings, precision=precision, rows=64 * 200
        )
        results.append(result.metrics["fvu"])
        found = lines(tmp_path / precision)
        assert found[-1]["fvu"] < 0.8 * found[0]["fvu"]
    assert results[1] == pytest.approx(results[0], rel=0.03) and results[0] != results[1]
    trainer = recorded[0][-1]
    state, _ = read_train_state(tmp_path / "bfloat16")
    assert {
        tensor.dtype for name, tensor in state.items() if name.startswith(("model.", "adam."))
    } == {torch.float32}
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


# -- what is refused, and what is kept


@pytest.mark.parametrize(
    "settings,words",
    [
        ({"schedule": "cosin"}, 'schedule="cosin": did you mean cosine'),
        ({"warmup": 1.5}, r"warmup=1.5 is a share of the steps, and must be in \[0, 1\]"),
        ({"warmup": float("nan")}, "warmup=nan"),
        ({"decay": -0.1}, "decay=-0.1 is a share"),
        ({"warmup": 0.5, "decay": 0.6}, "warmup=0.5 and decay=0.6 are more than the whole run"),
        ({"schedule": "constant", "decay": 0.3}, 'decay=0.3 does not apply to schedule="constant"'),
        ({"beta2": 1.0}, "beta2=1 must be above 0 and below 1"),
        ({"beta2": 0.0}, "beta2=0 must be above 0"),
        ({"ema": 1.0}, "ema=1 must be above 0 and below 1"),
        ({"ema": float("nan")}, "ema=nan"),
        (
            {"precision": "float16"},
            'precision="float16": did you mean bfloat16|precision="float16": choose',
        ),
        (
            {"precision": "bfloat16"},
            r'precision="bfloat16": the kernels of sparsity="topk" choose their own precision',
        ),
        (
            {"precision": "bfloat16", "sparsity": "kl"},
            'the kernels of sparsity="kl" choose their own precision',
        ),
        (
            {"precision": "bfloat16", "sparsity": "kl-sigmoid"},
            'the kernels of sparsity="kl-sigmoid" choose their own precision',
        ),
        ({"precision": "bfloat16", "model": "pca", "latents": 4}, 'model="pca" is fitted in fp64'),
        (
            {"ema": 0.9, "model": "kmeans", "latents": 4},
            'ema=0.9: model="kmeans" is fitted in one go',
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(store, tmp_path, settings, words):
    with pytest.raises(UsageError, match=words):
        saekit.train(store.path, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_shares_that_sum_to_the_whole_run_are_taken():
    for warmup, decay in ((0.1, 0.9), (0.3, 0.7), (0.0, 1.0), (1.0, 0.0), (0.05, 0.95)):
        TrainConfig(warmup=warmup, decay=decay)


@pytest.mark.parametrize(
    "settings,decay",
    [
        ({**SMALL, "schedule": "cosine"}, 0.95),
        (DENSE, 0.5),
        ({**SMALL, "schedule": "constant", "ema": 0.9}, 0.0),
    ],
)
def test_the_files_of_a_run_hold_the_values_that_it_used(store, tmp_path, settings, decay):
    saekit.train(store.path, tmp_path / "run", **settings, rows=128)
    shape, ema = settings.get("schedule", "linear"), settings.get("ema")
    expected = {
        "schedule": shape,
        "warmup": 0.05,
        "decay": decay,
        "beta2": 0.999,
        "ema": ema,
        "precision": "float32",
    }
    toml = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    identity = json.loads((tmp_path / "run" / "run.json").read_text())
    training = json.loads((tmp_path / "run" / "config.json").read_text())["training"]
    for found in (toml, identity, training):
        assert {name: found.get(name) for name in expected} == expected


def test_a_resume_with_another_value_is_refused(store, tmp_path):
    saekit.train(store.path, tmp_path / "run", **SMALL, rows=128)
    others = {"schedule": "cosine", "warmup": 0.1, "decay": 0.3, "beta2": 0.9, "ema": 0.9}
    for name, value in others.items():
        with pytest.raises(DataError, match=rf"other settings: .*\b{name} [\w.]+ -> {value}"):
            saekit.train(
                store.path, tmp_path / "run", **SMALL, rows=128, **{name: value}, resume=True
            )
