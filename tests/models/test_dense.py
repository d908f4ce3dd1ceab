"""Mirrored layers: the maps by hand, tied weights, contraction, and a linear autoencoder that finds
PCA's subspace."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from batches import batch_of
from torch.autograd.functional import jacobian
from torch.nn import functional

from saekit.errors import UsageError
from saekit.models.catalog import build
from saekit.models.dense import Dense, DenseConfig, Linear, LinearConfig
from saekit.store.memory import ArraySource
from saekit.training.config import TrainConfig
from saekit.training.defaults import resolved
from saekit.training.fit import fit


def filled(model, seed=0):
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=gen, dtype=torch.float64))
    return model


def set_(layer, **values):
    with torch.no_grad():
        for name, value in values.items():
            getattr(layer, name).copy_(torch.tensor(value))


def test_code_and_reconstruction_of_known_weights():
    model = Dense(DenseConfig(2, latents=1, hidden=(2,), activation="relu")).double()
    set_(
        model.layers[0],
        W_up=[[1.0, 2.0], [-1.0, 1.0]],
        b_up=[0.5, -0.5],
        W_down=[[2.0, 0.0], [1.0, -1.0]],
        b_down=[0.1, 0.2],
    )
    set_(model.layers[1], W_up=[[3.0, -1.0]], b_up=[1.0], W_down=[[1.0], [-2.0]], b_down=[0.0, 5.0])
    x = torch.tensor([[1.0, 1.0], [-4.0, 0.0]], dtype=torch.float64)
    # Row 0: up (3.5, -0.5) -> (3.5, 0); code 3 * 3.5 + 1 = 11.5; down (11.5, -23 + 5) -> (11.5, 0);
    # out (23.1, 11.7). Row 1: up (-3.5, 3.5) -> (0, 3.5); code -3.5 + 1 = -2.5, linear; down
    # (-2.5, 10) -> (0, 10); out (0.1, -9.8).
    output = model(x)
    torch.testing.assert_close(output.code, torch.tensor([[11.5], [-2.5]], dtype=torch.float64))
    torch.testing.assert_close(
        output.x_hat, torch.tensor([[23.1, 11.7], [0.1, -9.8]], dtype=torch.float64)
    )


@pytest.mark.parametrize("sparsity,code", [("l1", 0.0), ("kl-sigmoid", 1 / (1 + math.exp(2.5)))])
def test_the_code_bends_as_its_sparsity_asks(sparsity, code):
    model = Dense(DenseConfig(1, latents=1, hidden=(), sparsity=sparsity)).double()
    set_(model.layers[0], W_up=[[1.0]], b_up=[-0.5])
    assert model.encode(torch.tensor([[-2.0]], dtype=torch.float64)).item() == pytest.approx(code)


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh", "silu", "gelu"])
@pytest.mark.parametrize("hidden", [(), (7,), (7, 4), (9, 6, 4)])
def test_a_deep_stack_is_the_plain_composition_of_its_layers(activation, hidden):
    model = filled(Dense(DenseConfig(5, latents=3, hidden=hidden, activation=activation)).double())
    activation_function = (
        getattr(torch, activation)
        if activation in ("relu", "sigmoid", "tanh")
        else getattr(functional, activation)
    )
    x = torch.randn(6, 5, dtype=torch.float64)
    widths = [(layer.W_up.shape[1], layer.W_up.shape[0]) for layer in model.layers]
    assert widths == list(zip((5, *hidden), (*hidden, 3)))
    h = x
    for layer in model.layers[:-1]:
        h = activation_function(h @ layer.W_up.T + layer.b_up)
    z = h @ model.layers[-1].W_up.T + model.layers[-1].b_up
    torch.testing.assert_close(model.encode(x), z)
    h = z
    for layer in reversed(model.layers[1:]):
        h = activation_function(h @ layer.W_down.T + layer.b_down)
    torch.testing.assert_close(
        model.decode(z), h @ model.layers[0].W_down.T + model.layers[0].b_down
    )


def test_tied_weights_are_the_transpose_and_get_both_gradients():
    tied, free = (
        Dense(DenseConfig(5, latents=3, hidden=(4,), tied=t, activation="tanh")).double()
        for t in (True, False)
    )
    filled(tied)
    assert not any("W_down" in name for name, _ in tied.named_parameters())
    with torch.no_grad():
        for a, b in zip(tied.layers, free.layers):
            for name in ("W_up", "b_up", "b_down"):
                getattr(b, name).copy_(getattr(a, name))
            b.W_down.copy_(a.W_up.T)
    batch = batch_of(torch.randn(6, 5, dtype=torch.float64))
    torch.testing.assert_close(tied(batch.x).x_hat, free(batch.x).x_hat)
    for model in (tied, free):
        model.loss(batch).total.backward()
    for a, b in zip(tied.layers, free.layers):
        assert b.W_up.grad.abs().sum() > 0 and b.W_down.grad.abs().sum() > 0
        torch.testing.assert_close(a.W_up.grad, b.W_up.grad + b.W_down.grad.T)


@pytest.mark.parametrize("hidden", [(), (4,), (6, 4)])
@pytest.mark.parametrize("sparsity", ["none", "l1", "kl-sigmoid"])
def test_contraction_is_the_squared_jacobian_of_the_encoder(hidden, sparsity):
    model = filled(
        Dense(
            DenseConfig(
                5, latents=3, hidden=hidden, activation="silu", sparsity=sparsity, contractive=1.0
            )
        ).double()
    )
    x = torch.randn(6, 5, dtype=torch.float64)
    expected = torch.stack(
        [jacobian(lambda row: model.encode(row[None])[0], row).square().sum() for row in x]
    ).mean()
    torch.testing.assert_close(model.contraction(x), expected)


def test_the_decoder_has_a_direction_for_each_latent_where_it_is_one_layer():
    shallow = filled(Dense(DenseConfig(5, latents=3, hidden=())).double())
    step = shallow.decode(torch.eye(3, dtype=torch.float64)) - shallow.decode(
        torch.zeros(3, 3, dtype=torch.float64)
    )
    torch.testing.assert_close(shallow.W_dec, step)
    assert Dense(DenseConfig(5, latents=3, hidden=(4,))).W_dec is None
    torch.testing.assert_close(shallow.leaving_norms(), step.norm(dim=1))


@pytest.mark.parametrize(
    "activation,gain",
    [("relu", 2.0), ("gelu", 2.0), ("silu", 2.0), ("tanh", 1.0), ("sigmoid", 1.0)],
)
def test_first_weights_have_the_variance_of_gain_over_fan_in(activation, gain):
    model = Dense(DenseConfig(300, latents=100, hidden=(200,), activation=activation))
    model.initialise_from(torch.zeros(4, 300), torch.Generator().manual_seed(0))
    for layer, (below, above) in zip(model.layers, ((300, 200), (200, 100))):
        for W, fan_in in ((layer.W_up, below), (layer.W_down, above)):
            assert W.var().item() * fan_in == pytest.approx(gain, rel=5 * (2 / W.numel()) ** 0.5)
        assert not layer.b_up.any() and not layer.b_down.any()


def test_a_saved_config_is_the_config_again():
    config = DenseConfig(5, hidden=[7, 4])
    assert config.hidden == (7, 4) and config == DenseConfig(5, hidden=(7, 4))


@pytest.mark.parametrize(
    "options,cause",
    [
        ({"hidden": (8, 0)}, r"hidden=\(8, 0\): widths must be at least 1"),
        ({"activation": "linear"}, 'activation="linear": .*choose relu, sigmoid, tanh, silu, gelu'),
        ({"pretrain": "greedyy"}, 'pretrain="greedyy": did you mean greedy'),
        ({"pretrain": "greedy", "pretrain_share": 1.0}, r"pretrain_share=1 must be in \(0, 1\)"),
        ({"pretrain": "greedy", "pretrain_share": 0.0}, r"pretrain_share=0 must be in \(0, 1\)"),
        (
            {"pretrain": "rbm", "activation": "relu"},
            'pretrain="rbm": the mean of a binary unit is a sigmoid, not relu',
        ),
        (
            {"pretrain": "rbm", "activation": "sigmoid", "sparsity": "l1"},
            'pretrain="rbm": code units are binary or Gaussian',
        ),
    ],
)
def test_options_that_cannot_be_are_refused(options, cause):
    with pytest.raises(UsageError, match=cause):
        build("dense", 16, options)


def test_a_target_of_another_width_has_no_tied_weights_and_no_layers_to_pretrain():
    with pytest.raises(UsageError, match="tied=True: the target's width differs"):
        build("dense", 16, {"tied": True}, d_out=8)
    with pytest.raises(UsageError, match='pretrain="greedy": layers reconstruct their input'):
        build("dense", 16, {"pretrain": "greedy"}, d_out=8)
    assert build("dense", 16, {"tied": True}, d_out=16)(torch.zeros(2, 16)).x_hat.shape == (2, 16)


def spectrum_rows(rows=4000, width=12, strong=(6.0, 5.0, 4.0, 3.0), weak=1.0, seed=0):
    """Gaussian rows whose covariance has `strong` standard deviations along a random basis and
    `weak` along the rest."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(width, width)))[0]
    deviations = np.array([*strong, *[weak] * (width - len(strong))])
    return (rng.normal(size=(rows, width)) * deviations) @ basis.T + rng.normal(size=width)


@pytest.mark.parametrize("tied", [False, True])
def test_a_linear_autoencoder_reaches_the_subspace_and_the_error_of_pca(tied):
    x = spectrum_rows()
    model = Linear(LinearConfig(12, latents=4, tied=tied))
    config = TrainConfig.from_flat(
        {"model": "linear", "rows": 120_000, "normalize": "center+scale"}
    )
    config = resolved(config, model, len(x))
    fitted = fit(
        model,
        ArraySource(x.astype(np.float32)),
        config,
        config.rows // config.batch,
        torch.device("cpu"),
    )
    outside = build("linear", 12, {"latents": 4, "tied": tied})
    outside.load_state_dict(fitted.tensors)
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    ours = np.linalg.qr(outside.W_dec.detach().numpy().astype(np.float64).T)[0]
    cosines = np.linalg.svd(ours.T @ vectors[:, -4:])[1]
    assert np.degrees(np.arccos(np.clip(cosines.min(), -1, 1))) < 2.0
    x_hat = outside(torch.from_numpy(x).float()).x_hat.detach().double().numpy()
    error = np.square(x - x_hat).sum(1).mean()
    assert values[:-4].sum() * (1 - 1e-5) <= error < 1.01 * values[:-4].sum()
