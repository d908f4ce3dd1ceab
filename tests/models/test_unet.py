from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from batches import batch_of, expect_gradients

from saekit.errors import DataError, UsageError
from saekit.models.catalog import build, restore
from saekit.models.normalizer import Normalizer
from saekit.models.unet import UNet, UNetConfig
from saekit.types import Step


def make(**changes) -> UNet:
    """Of grids (B,6,8,3), unless shape and d_in say otherwise; fp64."""
    model = UNet(
        UNetConfig(**{"d_in": 3, "shape": (6, 8, 3), "latents": 5, "channels": (4, 6)} | changes)
    )
    model.initialise_from(torch.empty(0), torch.Generator().manual_seed(0))
    return model.double()


def overfit(model, x, target, steps) -> torch.Tensor:
    """x_hat after `steps` of Adam on one batch."""
    model.initialise_from(x, torch.Generator().manual_seed(0))
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(steps):
        adam.zero_grad()
        model.loss(batch_of(x, target=target), Step(step)).total.backward()
        adam.step()
    with torch.no_grad():
        return model(x).x_hat


@pytest.mark.parametrize("skips", [True, False])
@pytest.mark.parametrize("shape", [(8, 8, 3), (7, 7, 1), (5, 4, 2)])
def test_grids_and_flat_rows_come_back_in_their_own_shape_odd_sides_too(shape, skips):
    x_BHWC = torch.randn(2, *shape, dtype=torch.float64)
    of_grid = make(d_in=shape[2], shape=shape, skips=skips)(x_BHWC)
    of_flat = make(d_in=x_BHWC[0].numel(), shape=shape, skips=skips)(x_BHWC.flatten(1))
    assert of_grid.x_hat.shape == x_BHWC.shape and of_flat.x_hat.shape == (2, x_BHWC[0].numel())
    torch.testing.assert_close(of_grid.x_hat.flatten(1), of_flat.x_hat)


def test_without_skips_the_code_is_the_bottleneck_map():
    model, x = make(skips=False), torch.randn(2, 6, 8, 3, dtype=torch.float64)
    assert model.latents == 5 * 1 * 2
    torch.testing.assert_close(model.encode(x), model.maps(x)["bottleneck"].flatten(1))


def test_with_skips_the_code_is_the_bottleneck_and_every_skipped_map_more_numbers_than_the_input():
    model, x = make(), torch.randn(2, 6, 8, 3, dtype=torch.float64)
    assert model.latents == 5 * 1 * 2 + 4 * 6 * 8 + 6 * 3 * 4 > 6 * 8 * 3
    maps = model.maps(x)
    expected = torch.cat([maps[name].flatten(1) for name in ("bottleneck", "down0", "down1")], 1)
    assert torch.equal(model.encode(x), expected)


def test_maps_are_named_from_the_finest_and_the_last_gives_the_output():
    model, x = make(), 2 + torch.randn(2, 6, 8, 3, dtype=torch.float64)
    model.input_mean.fill_(2.0)
    maps = model.maps(x)
    shapes = {
        "down0": (2, 4, 6, 8),
        "down1": (2, 6, 3, 4),
        "bottleneck": (2, 5, 1, 2),
        "up1": (2, 6, 3, 4),
        "up0": (2, 4, 6, 8),
    }
    assert {name: tuple(found.shape) for name, found in maps.items()} == shapes and list(
        maps
    ) == list(shapes)
    weight, bias = model.outlet.weight[:, :, 0, 0], model.outlet.bias
    torch.testing.assert_close(model(x).x_hat, maps["up0"].permute(0, 2, 3, 1) @ weight.T + bias)


def test_the_decoder_reads_each_part_of_the_code_where_the_encoder_put_it():
    model, x = make(), torch.randn(2, 6, 8, 3, dtype=torch.float64)
    code = model.encode(x)
    whole = model.decode(code)
    for first, last in ((0, 10), (10, 10 + 192), (202, 274)):
        without = code.clone()
        without[:, first:last] = 0
        assert not torch.allclose(model.decode(without), whole)
    coarse = model.maps(x)["down1"]
    alone = torch.zeros_like(code)
    alone[:, 202:] = coarse.flatten(1)
    maps = model.activation(
        model.up[1](
            torch.cat([model.enlarge[1](torch.zeros(2, 5, 1, 2, dtype=torch.float64)), coarse], 1)
        )
    )
    maps = model.activation(
        model.up[0](
            torch.cat([model.enlarge[0](maps), torch.zeros(2, 4, 6, 8, dtype=torch.float64)], 1)
        )
    )
    torch.testing.assert_close(model.decode(alone), model.outlet(maps).permute(0, 2, 3, 1))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"skips": False},
        {"skips": False, "sparsity": "l1"},
        {"skips": False, "sparsity": "kl-sigmoid"},
        {"noise": "gaussian:0.1"},
    ],
)
def test_the_gradient_reaches_every_parameter(changes):
    model, x = make(**changes), torch.rand(9, 6, 8, 3, dtype=torch.float64)
    expect_gradients(model, model.loss(batch_of(x)))


def test_l1_weighs_every_place_of_a_bottleneck_map_alike():
    model, x = make(skips=False, sparsity="l1"), torch.randn(4, 6, 8, 3, dtype=torch.float64)
    norms = [model.enlarge[-1].weight[i].square().sum().sqrt() for i in range(5)]
    bottleneck = model.encode(x).unflatten(1, (5, 1, 2))
    expected = sum((bottleneck[:, i].sum((1, 2)) * norms[i]).mean() for i in range(5))
    assert model.loss(batch_of(x)).terms["l1"].item() == pytest.approx(expected.item())


def test_eight_grey_images_learn_their_colours():
    generator = torch.Generator().manual_seed(1)
    grey, colours = torch.rand(8, 64, generator=generator), torch.rand(8, 192, generator=generator)
    model = build(
        "unet",
        64,
        {"output": "sigmoid", "channels": (16, 32), "latents": 32},
        shape=(8, 8, 1),
        d_out=192,
    )
    variance = (colours - colours.mean(0)).square().sum()
    assert (overfit(model, grey, colours, 150) - colours).square().sum() < 0.05 * variance


def test_eight_images_learn_their_masks():
    generator = torch.Generator().manual_seed(1)
    images, masks = (
        torch.rand(8, 7, 7, 3, generator=generator),
        (torch.rand(8, 7, 7, 1, generator=generator) < 0.3).float(),
    )
    model = build(
        "unet",
        3,
        {"output": "bernoulli", "channels": (16, 32), "latents": 32},
        shape=(7, 7, 3),
        d_out=1,
    )
    assert torch.equal((overfit(model, images, masks, 200) > 0.5).float(), masks)


def test_skips_carry_what_a_narrow_bottleneck_loses():
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
    options = {"channels": (8, 16), "latents": 1}
    with_skips, without = (
        (overfit(build("unet", 64, options | {"skips": skips}, shape=(8, 8, 1)), x, None, 150) - x)
        .square()
        .mean()
        for skips in (True, False)
    )
    assert with_skips < 0.1 * without


@pytest.mark.slow
def test_without_skips_it_learns_as_an_autoencoder():
    """Rectangles of sixteen shapes through the four numbers of a 2x2 map."""
    x = torch.zeros(16, 8, 8, 1)
    for i in range(16):
        x[i, : 2 + i // 4, : 2 + i % 4] = 1.0
    model = build("unet", 1, {"skips": False, "channels": (8, 16), "latents": 1}, shape=(8, 8, 1))
    error = (overfit(model, x, None, 300) - x).square().sum()
    assert error < 0.1 * (x - x.mean(0)).square().sum()


@pytest.mark.parametrize("skips", [True, False])
def test_a_saved_model_does_to_raw_rows_what_the_trained_one_does_to_normalized_ones(skips):
    model = make(skips=skips, d_out=2)
    raw = 5 + 3 * torch.randn(4, 6, 8, 3, dtype=torch.float64)
    mean, scale, target = (
        torch.tensor([4.0, 5.0, 6.0], dtype=torch.float64),
        0.25,
        (torch.tensor([1.0, -1.0]), 2.0),
    )
    config = json.loads(json.dumps(dataclasses.asdict(model.config)))
    saved = restore(
        "unet",
        config,
        {
            name: tensor.float()
            for name, tensor in model.folded(Normalizer(mean, scale), Normalizer(*target)).items()
        },
    )
    assert saved.config == model.config and saved.latents == model.latents
    expected = model((raw - mean) * scale).x_hat / 2.0 + target[0]
    torch.testing.assert_close(saved(raw.float()).x_hat, expected.float(), atol=1e-4, rtol=1e-4)


def test_a_sparse_code_that_skips_go_around_is_refused():
    with pytest.raises(
        UsageError, match='sparsity="l1": skip connections bypass the bottleneck'
    ) as raised:
        build("unet", 64, {"sparsity": "l1"}, shape=(8, 8, 1))
    assert raised.value.hint == "skips=False"


def test_rows_without_a_shape_and_sides_too_small_are_refused():
    with pytest.raises(DataError, match="unet takes images or grids; these rows have no shape"):
        build("unet", 48, {}, shape=(48,))
    with pytest.raises(
        UsageError, match=r"channels=\(16, 32\) halves the sides 2 times, and 3x9 are too small"
    ) as raised:
        build("unet", 27, {}, shape=(3, 9, 1))
    assert raised.value.hint == "channels=(16,)"
