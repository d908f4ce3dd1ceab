from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from batches import batch_of, expect_gradients
from sklearn.decomposition import PCA
from torch import nn

from saekit.errors import DataError, UsageError
from saekit.models.catalog import build, restore
from saekit.models.conv import Conv, ConvConfig, doubling
from saekit.models.normalizer import Normalizer
from saekit.types import Step


def make(seed=0, **changes) -> Conv:
    """Of grids (B,6,8,3), unless shape and d_in say otherwise; fp64."""
    model = Conv(
        ConvConfig(**{"d_in": 3, "shape": (6, 8, 3), "latents": 5, "channels": (4, 6)} | changes)
    )
    model.initialise_from(torch.empty(0), torch.Generator().manual_seed(seed))
    return model.double()


def blobs(count, side=8, seed=0):
    """(count, side * side): one smooth spot at a random place: two numbers that no linear map
    finds."""
    centre = 1 + (side - 3) * torch.rand(count, 2, generator=torch.Generator().manual_seed(seed))
    at = torch.arange(side)
    squared = (at[None, :, None] - centre[:, 0, None, None]) ** 2 + (
        at[None, None, :] - centre[:, 1, None, None]
    ) ** 2
    return torch.exp(-squared / 3).flatten(1)


@pytest.mark.parametrize("shape", [(8, 8, 3), (7, 7, 1), (5, 4, 2), (13, 6, 1)])
def test_grids_and_flat_rows_come_back_in_their_own_shape_odd_sides_too(shape):
    x_BHWC = torch.randn(2, *shape, dtype=torch.float64)
    grid, flat = make(d_in=shape[2], shape=shape), make(d_in=x_BHWC[0].numel(), shape=shape)
    of_grid, of_flat = grid(x_BHWC), flat(x_BHWC.flatten(1))
    assert of_grid.x_hat.shape == x_BHWC.shape and of_flat.x_hat.shape == (2, x_BHWC[0].numel())
    assert of_grid.code.shape == (2, 5)
    torch.testing.assert_close(of_grid.code, of_flat.code)
    torch.testing.assert_close(of_grid.x_hat.flatten(1), of_flat.x_hat)


def test_a_code_by_hand():
    """A convolution that copies channel 1 and a linear map that copies its input leave the means of
    2x2 squares of that channel."""
    model = make(d_in=2, shape=(4, 6, 2), channels=(1,), latents=6, activation="relu")
    with torch.no_grad():
        model.down[0].weight.zero_()[0, 1, 1, 1] = 1.0
        model.into.weight.copy_(torch.eye(6))
    x = torch.rand(3, 4, 6, 2, dtype=torch.float64)
    channel = x[..., 1]
    means = [channel[:, r : r + 2, c : c + 2].mean((1, 2)) for r in (0, 2) for c in (0, 2, 4)]
    torch.testing.assert_close(model.encode(x), torch.stack(means, 1))


def test_values_after_a_transposed_convolution_are_sums_of_four_products_and_borders_are_reached():
    layer = doubling(1, 1, (7, 8))
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.zero_()
        y = layer(torch.ones(1, 1, 3, 4))[0, 0]
    assert y.shape == (7, 8)
    assert (y[1:-2, 1:-1] == 4).all() and y.min() == 1


def test_first_weights_keep_the_variance_on_the_way_up():
    """A rectifier halves E[h^2] of N(0, s^2), weights of variance 2 / fan-in double it: 1 stays 1,
    in the borders less."""
    model = make(channels=(32, 64), shape=(32, 32, 3), activation="relu")
    maps = torch.randn(64, 64, 8, 8, dtype=torch.float64)
    for layer in reversed(model.up):
        maps = layer(maps.relu())
        assert maps[..., 2:-2, 2:-2].square().mean().item() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sparsity": "l1"},
        {"sparsity": "kl-sigmoid"},
        {"output": "bernoulli"},
        {"d_in": 144, "noise": "masking:0.5"},
    ],
)
def test_the_gradient_reaches_every_parameter(changes):
    model = make(**changes)
    x = torch.rand(9, 6, 8, 3, dtype=torch.float64)
    expect_gradients(model, model.loss(batch_of(x if model.d_in == 3 else x.flatten(1))))


def test_the_loss_of_grids_is_a_mean_over_patches_and_of_flat_rows_over_images():
    x = torch.randn(4, 6, 8, 3, dtype=torch.float64)
    error = (make()(x).x_hat - x).square().sum().item()
    assert make().loss(batch_of(x)).total.item() == pytest.approx(error / (4 * 48))
    assert make(d_in=144).loss(batch_of(x.flatten(1))).total.item() == pytest.approx(error / 4)


def test_l1_weighs_a_latent_by_the_weights_that_leave_it():
    model, x = make(sparsity="l1", coef=0.3), torch.randn(4, 6, 8, 3, dtype=torch.float64)
    terms = model.loss(batch_of(x))
    norms = [model.out_of.weight[:, latent].square().sum().sqrt() for latent in range(5)]
    expected = sum((model.encode(x)[:, latent] * norms[latent]).mean() for latent in range(5))
    assert terms.terms["l1"].item() == pytest.approx(expected.item()) and terms.weights["l1"] == 0.3


def test_targets_of_another_width():
    x, target = torch.rand(3, 48, dtype=torch.float64), torch.rand(3, 48 * 3, dtype=torch.float64)
    flat, grid = make(d_in=48, shape=(6, 8, 1), d_out=144), make(d_in=1, shape=(6, 8, 1), d_out=3)
    assert flat(x).x_hat.shape == (3, 144)
    assert grid(x.view(3, 6, 8, 1)).x_hat.shape == (3, 6, 8, 3)
    expected = (flat(x).x_hat - target).square().sum(1).mean().item()
    assert flat.loss(batch_of(x, target=target)).total.item() == pytest.approx(expected)
    with pytest.raises(DataError, match="width 50 in the target store are not images of 6x8"):
        make(d_in=48, shape=(6, 8, 1), d_out=50)


@pytest.mark.parametrize("d_in", [3, 144])
def test_a_saved_model_does_to_raw_rows_what_the_trained_one_does_to_normalized_ones(d_in):
    model = make(d_in=d_in)
    raw = 5 + 3 * torch.randn(4, *((6, 8, 3) if d_in == 3 else (144,)), dtype=torch.float64)
    mean, scale = torch.linspace(4, 6, d_in, dtype=torch.float64), 0.25
    config = json.loads(json.dumps(dataclasses.asdict(model.config)))
    saved = restore(
        "conv",
        config,
        {name: tensor.float() for name, tensor in model.folded(Normalizer(mean, scale)).items()},
    )
    assert saved.config == model.config
    inside = model((raw - mean) * scale)
    torch.testing.assert_close(
        saved(raw.float()).x_hat, (inside.x_hat / scale + mean).float(), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(saved(raw.float()).code, inside.code.float(), atol=1e-4, rtol=1e-4)


def test_two_numbers_describe_a_spot_better_than_principal_components():
    train, held_out = blobs(256), blobs(100, seed=1)
    model = build("conv", 64, {"latents": 2, "channels": (8, 16)}, shape=(8, 8, 1))
    model.initialise_from(train, torch.Generator().manual_seed(0))
    adam = torch.optim.Adam(model.parameters(), 5e-3)
    for step in range(400):
        adam.zero_grad()
        model.loss(batch_of(train[torch.randperm(256)[:64]]), Step(step)).total.backward()
        adam.step()
    pca = PCA(2).fit(train)
    floor = ((pca.inverse_transform(pca.transform(held_out)) - held_out.numpy()) ** 2).sum(1).mean()
    with torch.no_grad():
        error = (model(held_out).x_hat - held_out).square().sum(1).mean().item()
    assert error < 0.2 * floor


def test_the_same_seed_and_step_give_the_same_loss():
    x = torch.randn(4, 6, 8, 3, dtype=torch.float64)
    model = make(noise="gaussian:0.5")
    first, again, later = (model.loss(batch_of(x), Step(step)).total.item() for step in (7, 7, 8))
    assert first == again != later
    same, other = make(seed=3), make(seed=4)
    assert torch.equal(same.encode(x), make(seed=3).encode(x)) and not torch.equal(
        same.encode(x), other.encode(x)
    )


def test_rows_without_a_shape_are_refused():
    with pytest.raises(
        DataError, match="conv takes images or grids; these rows have no shape"
    ) as raised:
        build("conv", 48, {}, shape=(48,))
    assert 'layout="grid"' in raised.value.hint
    with pytest.raises(DataError, match="width 48 are neither patches nor images"):
        build("conv", 48, {}, shape=(4, 4, 1))


def test_more_poolings_than_the_sides_allow_are_refused_with_what_would_do():
    with pytest.raises(
        UsageError, match="halves the sides 3 times, and 5x13 are too small"
    ) as raised:
        build("conv", 65, {"channels": (16, 32, 64)}, shape=(5, 13, 1))
    assert raised.value.hint == "channels=(16, 32)"
    assert isinstance(
        build("conv", 65, {"channels": (16, 32)}, shape=(5, 13, 1)).up[0], nn.ConvTranspose2d
    )
    with pytest.raises(DataError, match="1x5 are too small for conv"):
        build("conv", 5, {}, shape=(1, 5, 1))


@pytest.mark.parametrize(
    "options",
    [{"channels": ()}, {"channels": (16, 0)}, {"activation": "linear"}, {"activation": "gleu"}],
)
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(UsageError):
        build("conv", 64, options, shape=(8, 8, 1))
