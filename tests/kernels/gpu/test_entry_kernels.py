"""Decoder, products and nested errors of codes whose values go through autograd, against fp64."""

from __future__ import annotations

import pytest
import torch
from saekit_kernels import nested_error
from saekit_kernels.gpu.entries import decode, nested_row_errors, products
from sparse_rows import close, dense, device, end_to_end, normal, random_codes

SHAPES = [(1, 1, 1, 1), (3, 33, 7, 5), (9, 96, 130, 32), (4, 300, 40, 6)]


def forms(B: int, F: int, K: int):
    padded = random_codes(B, F, K)
    return {"padded": padded, "ragged": end_to_end(padded)}


@pytest.mark.parametrize("form", ["padded", "ragged"])
@pytest.mark.parametrize(("B", "D", "F", "K"), SHAPES)
def test_decode_and_products_are_those_of_dense_codes(B, D, F, K, form):
    codes, W, b, g = forms(B, F, K)[form], normal(F, D), normal(D), normal(B, D)
    z = codes.to_dense().double()
    close(decode(codes, W, b), z @ W.double() + b.double(), K)
    row, latent, _ = codes.entries()
    expected = (g[row].double() * W[latent].double()).sum(1)
    got = products(codes, g, W)
    assert got.shape == codes.vals.shape
    kept = got[codes.active()] if form == "padded" else got
    close(kept, expected, D)
    assert form == "ragged" or not got[~codes.active()].any()


@pytest.mark.parametrize("form", ["padded", "ragged"])
@pytest.mark.parametrize("by_latent", [True, False])
@pytest.mark.parametrize(("B", "D", "F", "K"), SHAPES)
def test_nested_errors_and_their_gradients_are_those_of_autograd(B, D, F, K, form, by_latent):
    codes, W, b, x = forms(B, F, K)[form], normal(F, D), normal(D), normal(B, D)
    levels = 3
    generator = torch.Generator().manual_seed(2)
    if by_latent:
        level = (torch.arange(F, device=device) * levels // F)[codes.idx.long()]
    else:  # as of `hierarchical`: levels by size
        level = torch.randint(0, levels, codes.vals.shape, generator=generator).to(device)
    row, latent, value = codes.entries()
    own = level[codes.active()] if form == "padded" else level
    value = value.double().requires_grad_()
    W64, b64 = W.double().requires_grad_(), b.double()
    parts = torch.zeros(B, levels, D, dtype=torch.float64, device=device)
    parts = parts.index_put((row, own), value[:, None] * W64[latent], accumulate=True)
    parts.retain_grad()
    nested = parts.cumsum(1) + b64
    error = (nested - x.double()[:, None]).square().sum(2).mean()
    error.backward()

    x_hat, got, later, dvals = nested_row_errors(codes, W, b, x, level, levels, True)
    close(x_hat, nested[:, -1].detach(), K)
    close(got, error.detach(), K * D)
    close(later, parts.grad, K)
    kept = dvals[codes.active()] if form == "padded" else dvals
    close(kept, value.grad, K * D)
    bare = nested_row_errors(codes, W, b, x, level, levels, False)
    assert torch.equal(bare[0], x_hat) and torch.equal(bare[1], got)
    assert bare[2].numel() == bare[3].numel() == 0


@pytest.mark.parametrize("form", ["padded", "ragged"])
def test_nested_errors_have_the_gradients_of_the_torch_path(form):
    B, D, F, K = 9, 40, 30, 8
    codes, level = forms(B, F, K)[form], torch.arange(F, device=device) // 11
    leaves = [codes.vals.clone(), normal(F, D), normal(D), normal(B, D)]
    gradients = []
    for backend in ("torch", "triton"):
        values, W, b, x = (t.clone().requires_grad_() for t in leaves)
        x_hat, error = nested_error(codes, values, W, b, x, level[codes.idx.long()], 3, backend)
        (3 * error).backward()
        kept = values.grad[codes.active()] if form == "padded" else values.grad
        gradients.append((x_hat, error.detach(), kept, W.grad, b.grad, x.grad))
    for expected, got in zip(*gradients):
        close(got, expected.double(), K * D)


def test_rows_that_do_not_fit_are_refused():
    codes, W, b, x = random_codes(3, 7, 2), normal(7, 5), normal(5), normal(3, 5)
    with pytest.raises(ValueError, match="g must have shape"):
        products(codes, x[:2], W)
    with pytest.raises(ValueError, match="expected x"):
        nested_row_errors(codes, W, b, x, codes.idx[:, :1], 2, True)
    empty = random_codes(0, 7, 2)
    assert products(empty, x[:0], W).shape == (0, 2)
    assert nested_row_errors(empty, W, b, x[:0], empty.idx, 2, True)[0].shape == (0, 5)
    for backend in ("torch", "triton"):
        with pytest.raises(ValueError, match="the mean over an empty batch is not defined"):
            nested_error(empty, empty.vals, W, b, x[:0], empty.idx, 2, backend)


def test_dense_is_what_the_codes_say():
    codes = random_codes(4, 9, 3)
    assert torch.equal(dense(codes, codes.vals).float(), end_to_end(codes).to_dense())
