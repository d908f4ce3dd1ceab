"""Means of sigmoids over a batch against dense autograd in fp64."""

from functools import partial

import pytest
import torch
from saekit_kernels import sigmoid, sigmoid_means

from saekit.bench.reference import dense_copy
from saekit.bench.shapes import Shape, hidden_rows, sae_for
from saekit.bench.steps import batch_of
from saekit.types import Step


def inputs(B: int, D: int, F: int):
    """Rows like hidden states, and latents that are active in a few of them."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(F, D, generator=generator) / D**0.5
    b = torch.randn(F, generator=generator) * 0.5 - 3
    weights = torch.randn(F, generator=generator)  # what a loss makes of each mean
    return hidden_rows(B, D), W, b, weights


def by_autograd(x, W, b, weights, means):
    """[means, gradients of the weighted means by W and by b]."""
    W, b = W.clone().requires_grad_(), b.clone().requires_grad_()
    result = means(x, W, b)
    (result @ weights).backward()
    return [result.detach(), W.grad, b.grad]


def dense(x, W, b):
    return (x @ W.T + b).sigmoid().mean(0)


@pytest.mark.parametrize("block_bytes", [1, 1 << 12, 1 << 22])
def test_means_and_gradients_are_those_of_dense_autograd(monkeypatch, block_bytes):
    monkeypatch.setitem(sigmoid.BLOCK_BYTES, "cpu", block_bytes)
    x, W, b, weights = (tensor.double() for tensor in inputs(50, 12, 77))
    for fast, expected in zip(
        by_autograd(x, W, b, weights, sigmoid_means), by_autograd(x, W, b, weights, dense)
    ):
        torch.testing.assert_close(fast, expected, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(sigmoid_means(x, W, b), dense(x, W, b))


def test_in_bf16_means_are_within_a_500th_and_gradients_within_a_100th():
    x, W, b, weights = inputs(1024, 256, 2048)
    in_bf16 = partial(sigmoid_means, plan="filter")
    means, dW, db = by_autograd(x, W, b, weights, in_bf16)
    exact = by_autograd(*(tensor.double() for tensor in (x, W, b, weights)), dense)
    assert {tensor.dtype for tensor in (means, dW, db)} == {torch.float32}
    torch.testing.assert_close(means.double(), exact[0], rtol=2e-3, atol=0)
    torch.testing.assert_close(db.double(), exact[2], rtol=1e-2, atol=0)
    lost = (dW - exact[1]).norm(dim=1) / exact[1].norm(dim=1)
    assert lost.max() < 1e-2 and lost.mean() < 5e-3
    # Errors have no common direction: those of the whole gradient are as small.
    assert (dW - exact[1]).norm() < 5e-3 * exact[1].norm()


def test_the_rows_have_a_gradient_too_and_an_empty_batch_is_refused():
    x, W, b, weights = (tensor.double() for tensor in inputs(9, 5, 20))
    x.requires_grad_()
    gradients = [
        torch.autograd.grad(means(x, W, b) @ weights, [x])[0] for means in (sigmoid_means, dense)
    ]
    torch.testing.assert_close(*gradients)
    with pytest.raises(ValueError, match="empty batch"):
        sigmoid_means(x[:0], W, b)


def test_a_nan_row_makes_the_means_nan():
    x, W, b, _ = inputs(9, 5, 20)
    x[3, 1] = torch.nan
    assert sigmoid_means(x, W, b).isnan().all()


@pytest.mark.parametrize("target_l0", [8, 0])
def test_a_step_with_few_active_latents_is_the_dense_one(target_l0):
    shape = Shape(32, 8192, 256)
    x = hidden_rows(shape.B, shape.D).double()
    sae = sae_for(shape, x.float(), "kl", 8).double()
    sae.config = type(sae.config)(**(vars(sae.config) | {"target_l0": target_l0}))
    results = []
    for model in (sae, dense_copy(sae)):
        model.zero_grad()
        terms = model.loss(batch_of(x), Step(0, 0))
        terms.total.backward()
        results.append((terms, {name: p.grad for name, p in model.named_parameters()}))
    (fast, gradients), (expected, dense_gradients) = results
    pre = sae.preactivations(x, Step(0, 0))
    assert pre.values.shape != (shape.B, shape.F)
    assert torch.equal(fast.fired, expected.fired) and fast.fired.sum() > shape.B
    for name, term in expected.terms.items():
        assert fast.terms[name].item() == pytest.approx(term.item(), rel=1e-9), name
    for name, gradient in dense_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-7, atol=1e-9, msg=name)


def test_a_device_takes_few_blocks_and_a_cpu_those_that_fit_its_cache():
    """8,192 rows of bf16 at 131,072 latents."""
    assert sigmoid.latents_of_a_block("cpu", 2 * 8192, 131_072) == 256
    assert 131_072 / sigmoid.latents_of_a_block("cuda", 2 * 8192, 131_072) == 8
    assert sigmoid.latents_of_a_block("cuda", 2 * 8192, 500) == 500
    assert sigmoid.latents_of_a_block("cpu", 1 << 24, 500) == 16
