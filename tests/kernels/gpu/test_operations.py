"""What the Triton backend adds to its kernels: dense products in low precision, sums by latent."""

from __future__ import annotations

import pytest
import torch
from saekit_kernels import operations
from saekit_kernels.operations import OPERATIONS
from sparse_rows import close, device, end_to_end, normal, random_codes


def by_dense(x, W, b, slope, backend):
    leaves = [t.clone().requires_grad_() for t in (x, W, b)]
    pre = OPERATIONS[backend].dense_products(*leaves)
    (pre * slope).sum().backward()
    return pre.detach(), *(t.grad for t in leaves)


def test_dense_products_have_the_gradients_of_torch():
    x, W, b, slope = normal(6, 20), normal(9, 20), normal(9), normal(6, 9)
    ours, theirs = (by_dense(x, W, b, slope, backend) for backend in ("triton", "torch"))
    for got, expected in zip(ours, theirs):
        close(got, expected.double(), 20)


def test_dense_products_multiply_in_the_precision_of_the_backend(monkeypatch):
    """On a device in bf16, with results in fp32: here the same is forced."""
    monkeypatch.setattr(operations, "low", lambda t: t.detach().bfloat16())
    x, W, b, slope = normal(60, 200), normal(90, 200), normal(90), normal(60, 90)
    ours, theirs = (by_dense(x, W, b, slope, backend) for backend in ("triton", "torch"))
    for got, expected in zip(ours, theirs):
        assert got.dtype == torch.float32
        error = (got - expected).norm() / expected.norm()
        assert error < 2**-7
    assert 1e-4 < (ours[0] - theirs[0]).norm() / theirs[0].norm()


@pytest.mark.parametrize("ragged", [False, True])
def test_sums_by_latent_and_their_gradient(ragged):
    codes, weight = random_codes(9, 12, 6), normal(12)
    codes = end_to_end(codes) if ragged else codes
    values = codes.vals.clone().requires_grad_()
    sums = OPERATIONS["triton"].latent_sums(codes, values)
    close(sums.detach(), codes.to_dense().double().sum(0), 9)
    (sums * weight).sum().backward()
    expected = OPERATIONS["torch"].latent_sums(codes, values)
    close(expected.detach(), sums.detach().double(), 9)
    row, latent, _ = codes.entries()
    gradient = values.grad if ragged else values.grad[codes.active()]
    assert torch.equal(gradient, weight[latent])
    assert device == "cuda" or len(row) == len(gradient)
