"""Models take NumPy arrays, DataFrames and stores where they take tensors."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import saekit
from saekit.errors import DataError
from saekit.models.catalog import build
from saekit.models.sae import SAE


@pytest.fixture(scope="module")
def x_ND() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)


MODELS = {
    "sae": {"latents": 32, "k": 4},
    "pca": {"latents": 4},
    "kmeans": {"latents": 4},
    "linear": {"latents": 4},
    "dense": {"latents": 4, "hidden": (8,)},
    "vae": {"latents": 4, "hidden": (8,)},
}


@pytest.mark.parametrize("name", MODELS)
def test_arrays_give_what_tensors_give(name, x_ND):
    model = saekit.train(x_ND, model=name, rows=64, batch=32, **MODELS[name]).model
    with torch.no_grad():
        expected = model(torch.from_numpy(x_ND))
    for x in (x_ND, pd.DataFrame(x_ND), x_ND.astype(np.float64), x_ND.astype(">f4")):
        output = model(x)
        assert torch.equal(output.x_hat, expected.x_hat)
        assert torch.equal(model.decode(code=expected.code), model.decode(expected.code))
        code = model.encode(x).to_dense()
        assert np.array_equal(code.numpy(), expected.code.to_dense().numpy())  # without detach
        assert torch.equal(model.decode(code.numpy()), model.decode(code))


def test_whole_examples_of_other_shapes(x_ND):
    images = x_ND.reshape(40, 4, 4, 1)
    model = saekit.train(images, model="conv", rows=64, batch=32).model
    assert model.encode(images).shape == (40, 32)
    sae = build("sae", 16, {"latents": 32, "k": 4})
    assert sae.encode(x_ND.reshape(5, 8, 16)).shape == (5, 8, 32)


def test_integers_become_floats(x_ND):
    sae = build("sae", 16, {"latents": 32, "k": 4})
    whole = np.arange(32).reshape(2, 16)
    assert torch.equal(sae(whole).x_hat, sae(torch.tensor(whole).float()).x_hat)


def test_a_store_is_encoded_as_it_is(store):
    sae = build("sae", 16, {"latents": 32, "k": 4})
    assert sae.encode(store).shape == (2000, 32)


def test_tensors_keep_their_gradient(x_ND):
    sae = build("sae", 16, {"latents": 32, "k": 4})
    x = torch.from_numpy(x_ND).requires_grad_()
    sae(x).x_hat.sum().backward()
    assert x.grad is not None and sae.W_dec.grad is not None
    assert not sae(x_ND).x_hat.requires_grad


def test_a_users_own_model_takes_arrays_too(x_ND):
    class Doubled(SAE):
        def encode(self, x):
            assert isinstance(x, torch.Tensor)
            return 2 * x

    assert torch.equal(Doubled(d_in=16, latents=16).encode(x_ND), 2 * torch.from_numpy(x_ND))


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (pd.DataFrame({"a": ["x"]}), "x is DataFrame of object, not of numbers"),
        (np.array(["a"]), "not of numbers"),
        (np.zeros((2, 3)), "its last dimension must be 16"),
        ([[0.0] * 16], "x is list, not a tensor of floats or an array"),
        (torch.zeros(2, 16, dtype=torch.int64), "x is torch.int64, not a tensor of floats"),
    ],
)
def test_what_cannot_be_rows_is_refused(x, said):
    sae = build("sae", 16, {"latents": 32, "k": 4})
    with pytest.raises(DataError) as raised:
        sae.encode(x)
    assert said in str(raised.value) and raised.value.hint
