"""What a run does where the user left it open: batch, rows, rate, decay, normalisation."""

from __future__ import annotations

import pytest
import torch

from saekit.models.catalog import CATALOG, build
from saekit.models.sae.module import PEAK_LR, peak_lr
from saekit.training.config import TrainConfig
from saekit.training.defaults import resolved


def filled(model, units, **options):
    return resolved(TrainConfig(model, **options), build(model, 16, {}), units)


@pytest.mark.parametrize(
    "units,batch,rows",
    [
        (1, 1, 8),
        (7, 1, 56),
        (1_000, 64, 8_000),  # an eighth of the rows is 125
        (4_096, 512, 32_768),
        (32_767, 2048, 262_136),
        (32_768, 4096, 262_144),
        (10_000_000, 4096, 80_000_000),
    ],
)
def test_an_sae_takes_eight_epochs_in_batches_of_an_eighth_of_the_rows_at_most(units, batch, rows):
    config = filled("sae", units)
    assert (config.batch, config.rows, config.weight_decay) == (batch, rows, 0.0)


@pytest.mark.parametrize(
    "model", [name for name, entry in CATALOG.items() if name not in ("sae", "pca", "kmeans")]
)
@pytest.mark.parametrize(
    "units,batch,rows",
    [
        (1, 1, 60),
        (20, 20, 1_200),  # a batch is not larger than the data
        (500, 32, 30_000),
        (1_024, 32, 61_440),
        (4_000, 64, 240_000),  # a thirty-second of the rows is 125
        (131_071, 2048, 7_864_260),
        (131_072, 4096, 7_864_320),
        (500_000, 4096, 8_000_000),  # sixty epochs would be 30 million
        (1_000_000, 4096, 8_000_000),
        (5_000_000, 4096, 40_000_000),  # eight epochs, as an SAE
    ],
)
def test_classic_models_take_sixty_epochs_of_small_data_and_eight_of_large(
    model, units, batch, rows
):
    built = build(
        model,
        16,
        {},
        (4, 4, 1)
        if CATALOG[model].model.takes == "grid"
        else (None, 16)
        if CATALOG[model].model.takes == "sequence"
        else None,
        classes=("a", "b"),
    )
    config = resolved(TrainConfig(model), built, units)
    assert (config.batch, config.rows) == (batch, rows)
    rates = {"linear": (1e-2, 0.0), "dcgan": (1e-3, 0.0), "aae": (1e-3, 0.0)}
    rates |= dict.fromkeys(("gan", "cgan"), (5e-4, 0.0))  # cgan: dense, as these are not images
    assert (config.lr, config.weight_decay) == rates.get(model, (1e-3, 1e-2))


def test_rates_of_saes_fall_with_the_width_beyond_the_measured_one():
    assert (
        peak_lr(1_000, dense=False)
        == peak_lr(18_432, dense=False)
        == peak_lr(2_048, dense=True)
        == PEAK_LR
    )
    assert peak_lr(4 * 18_432, dense=False) == pytest.approx(PEAK_LR / 2)
    assert peak_lr(4 * 2_048, dense=True) == pytest.approx(PEAK_LR / 4)
    wide = {"latents": 4 * 2_048}
    for options, share in (
        ({"sparsity": "l1"}, 1 / 4),
        ({"sparsity": "kl-sigmoid"}, 1 / 4),
        ({"sparsity": "l1", "target_l0": 32}, 1),
        ({}, 1),
    ):
        assert resolved(
            TrainConfig("sae"), build("sae", 16, wide | options), 100
        ).lr == pytest.approx(PEAK_LR * share)


@pytest.mark.parametrize("model", ["sae", "dense", "linear", "vae"])
def test_what_the_user_sets_stays(model):
    asked = {"batch": 3, "rows": 17, "lr": 0.5, "weight_decay": 0.25}
    config = filled(model, 100_000, **asked)
    assert {name: getattr(config, name) for name in asked} == asked
    assert filled(model, 100_000, weight_decay=0.0).weight_decay == 0.0, (
        "0 is a choice, not the lack of one"
    )
    partly = filled(model, 4_000, batch=128)
    assert partly.batch == 128 and partly.rows == filled(model, 4_000).rows


def test_resolving_is_idempotent_and_leaves_the_rest_alone():
    model = build("dense", 16, {"latents": 3})
    config = TrainConfig("dense", {"latents": 3}, clip=2.0, seed=5, normalize="scale")
    once = resolved(config, model, 4_000)
    assert resolved(once, model, 99) == once
    assert (once.clip, once.seed, once.normalize, once.options, once.model) == (
        2.0,
        5,
        "scale",
        {"latents": 3},
        "dense",
    )


def test_a_decay_is_decoupled_from_the_gradient():
    from saekit.training.optim import make_adam

    model = torch.nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.fill_(3.0)
    optimizer = make_adam(model, 0.1, 0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.weight.data, torch.full((2, 2), 3.0 * (1 - 0.1 * 0.5)))
    assert type(make_adam(model, 0.1)) is torch.optim.Adam
