"""Sparse codes by autograd against the same formulas, dense, in fp64."""

from __future__ import annotations

import pytest
import torch
from saekit_kernels import (
    decode_entries,
    encode_threshold,
    encode_topk,
    nested,
    nested_error,
    preactivations,
    signed_topk,
)

B, D, F = 13, 9, 21


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, D), (F, D), (F,), (F, D), (D,))
    return [
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]


def grads(total, wanted):
    return torch.autograd.grad(total, wanted)


def codes_of(kind, x, W, b):
    if kind == "topk":
        return encode_topk(x, W, b - 1.0 if kind == "sparse" else b, 4)
    if kind == "rows of unequal width":
        return encode_threshold(x, W, b, 0.5)
    return encode_topk(x, W, b - 4.0, 4)  # rows with fewer positive values than k: padding


@pytest.mark.parametrize("kind", ["topk", "rows of unequal width", "padded"])
def test_value_and_gradients_are_those_of_dense_autograd(kind):
    x, W, b, W_dec, b_dec = all_of = tensors()
    shift = 4.0 if kind == "padded" else 0.0
    codes = codes_of(kind, x, W, b)
    assert kind != "padded" or (codes.nnz < 4).any()

    def bend(values):
        return values.square() + torch.tanh(values)  # 0 at 0, as padding must stay

    values = preactivations(codes, x, W, b - shift)
    x_hat = decode_entries(codes, bend(values), W_dec, b_dec)
    penalty = bend(values).sum()
    mask = codes.to_dense() != 0
    pre = torch.where(mask, x @ W.T + b - shift, 0.0)
    expected = bend(pre) @ W_dec + b_dec
    torch.testing.assert_close(x_hat, expected, rtol=1e-12, atol=1e-12)
    weight = torch.randn(B, D, dtype=torch.float64)
    got = grads((x_hat * weight).sum() + 0.3 * penalty, all_of)
    wanted = grads((expected * weight).sum() + 0.3 * bend(pre).sum(), all_of)
    for name, a, e in zip(("x", "W_enc", "b_enc", "W_dec", "b_dec"), got, wanted):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("chunk", [256, 4])
@pytest.mark.parametrize("kind", ["topk", "rows of unequal width", "padded"])
def test_the_nested_error_is_that_of_prefixes(kind, chunk, monkeypatch):
    monkeypatch.setattr(nested, "CHUNK_ROWS", chunk)
    x, W, b, W_dec, b_dec = tensors(1)
    target = torch.randn(B, D, dtype=torch.float64, requires_grad=True)
    shift = 4.0 if kind == "padded" else 0.0
    codes = codes_of(kind, x, W, b)
    level_F = torch.tensor([0] * 5 + [1] * 9 + [2] * 7)
    values = preactivations(codes, x, W, b - shift)
    level = level_F[codes.idx.long()]
    x_hat, error = nested_error(codes, values, W_dec, b_dec, target, level, 3)
    mask = codes.to_dense() != 0
    pre = torch.where(mask, x @ W.T + b - shift, 0.0)
    expected = torch.stack([(pre * (level_F <= g)) @ W_dec + b_dec for g in range(3)], 1)
    wanted = (expected - target[:, None]).square().sum(2).mean()
    torch.testing.assert_close(x_hat, expected[:, -1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(error, wanted, rtol=1e-12, atol=1e-12)
    all_of = (x, W, b, W_dec, b_dec, target)
    for name, a, e in zip(
        "x W_enc b_enc W_dec b_dec target".split(),
        grads(0.7 * error, all_of),
        grads(0.7 * wanted, all_of),
    ):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10, msg=name)


def test_levels_may_follow_any_order_such_as_the_rank_of_a_value():
    x, W, b, W_dec, b_dec = tensors(2)
    codes = encode_topk(x, W, b, 4)
    level = codes.vals.argsort(1, descending=True).argsort(1)
    x_hat, error = nested_error(codes, codes.vals, W_dec, b_dec, x, level, 4)
    errors = []
    for row in range(B):
        order = codes.vals[row].argsort(descending=True)
        for g in range(4):
            chosen = order[: g + 1]
            expected = codes.vals[row, chosen] @ W_dec[codes.idx[row, chosen].long()] + b_dec
            errors.append((expected - x[row]).square().sum())
        torch.testing.assert_close(x_hat[row], expected)
    torch.testing.assert_close(error, torch.stack(errors).mean())


@pytest.mark.parametrize("by_rank", [False, True])
def test_nested_errors_in_fp32_are_the_same_on_threads(by_rank, monkeypatch, two_threads):
    x, W, b, W_dec, b_dec = (t.detach().float().requires_grad_() for t in tensors(4))
    codes, results = encode_topk(x, W, b, 4), []
    level = codes.vals.argsort(1).argsort(1) if by_rank else codes.idx // 6
    monkeypatch.setattr(nested, "CHUNK_ROWS", 4)
    for least in (1 << 30, 0):
        monkeypatch.setattr(nested, "LEAST_THREADED", least)
        values = preactivations(codes, x, W, b)
        x_hat, error = nested_error(codes, values, W_dec, b_dec, x, level, 4)
        results.append([x_hat, error, *grads(error, [x, W, b, W_dec, b_dec])])
    for alone, threaded in zip(*results):
        torch.testing.assert_close(threaded, alone, rtol=1e-6, atol=1e-6)


def test_signed_topk_takes_the_largest_magnitudes_with_their_signs():
    pre = torch.tensor([[1.0, -3.0, 2.0, -0.5], [0.1, 0.2, -0.3, 4.0]])
    codes = signed_topk(pre, 2)
    assert codes.to_dense().tolist() == [
        [0.0, -3.0, 2.0, 0.0],
        [0.0, 0.0, pytest.approx(-0.3), 4.0],
    ]


def test_the_triton_operations_give_the_same_gradients():
    x, W, b, W_dec, b_dec = (t.detach().float().requires_grad_() for t in tensors(3))
    codes = encode_topk(x, W, b, 4)
    found = []
    for backend in ("torch", "triton"):
        values = preactivations(codes, x, W, b, backend)
        x_hat = decode_entries(codes, values * 1.5, W_dec, b_dec, backend)
        found.append(grads(x_hat.square().sum(), [W, b, W_dec, b_dec]))
    for a, e in zip(*found):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)
