"""Formats of codes, their transposes, and the sums over them."""

import pytest
import torch
from saekit_kernels import (
    RaggedCodes,
    SparseCodes,
    decode,
    decode_mse,
    encode_topk,
    from_dense,
    sampled_products,
    sparse_column_sum,
    sparse_weight_grad,
)


def test_dense_codes_convert_without_loss():
    z = torch.randn(9, 30, generator=torch.Generator().manual_seed(0)).relu()
    z[4] = 0
    codes = from_dense(z)
    assert torch.equal(codes.to_dense(), z) and codes.nnz[4] == 0
    above = from_dense(z, above=0.5)
    assert torch.equal(above.to_dense(), torch.where(z > 0.5, z, 0.0))


def test_transpose_lists_the_entries_of_each_latent_in_row_order():
    codes = SparseCodes(
        torch.tensor([[1.0, 2.0], [3.0, 0.0], [4.0, 5.0]]),
        torch.tensor([[0, 2], [2, 0], [1, 2]], dtype=torch.int32),
        torch.tensor([2, 1, 2], dtype=torch.int32),
        4,
    )
    transpose = codes.transpose()
    assert transpose.ptr.tolist() == [0, 1, 2, 5, 5]
    assert transpose.pos[:5].tolist() == [0, 4, 1, 2, 5]
    products = sampled_products(codes, torch.eye(3), torch.arange(12.0).view(4, 3))
    assert products.tolist() == [[0.0, 6.0], [7.0, 0.0], [5.0, 8.0]]


def test_no_double_counting_of_a_latent_that_every_row_hits():
    codes = SparseCodes(
        torch.full((500, 1), 0.1),
        torch.zeros(500, 1, dtype=torch.int32),
        torch.ones(500, dtype=torch.int32),
        3,
    )
    grad = sparse_weight_grad(codes, codes.vals, torch.ones(500, 2))
    # 500 additions in order: the error grows at most by one rounding each.
    tolerance = 500 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(
        grad, torch.tensor([[50.0, 50.0], [0, 0], [0, 0]]), rtol=tolerance, atol=0
    )


def made_codes():
    z = (
        torch.randn(23, 50, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        .sub_(1.0)
        .relu_()
    )
    z[[0, 9]] = 0
    z[:, 13] = 0
    padded = from_dense(z)
    at = padded.active()
    ptr = torch.nn.functional.pad(padded.nnz.cumsum(0), (1, 0)).to(torch.int32)
    return z, padded, RaggedCodes(ptr, padded.vals[at], padded.idx[at], 50)


@pytest.mark.parametrize("ragged", [False, True])
def test_padded_and_ragged_codes_give_the_dense_sums(ragged):
    z, padded, end_to_end = made_codes()
    codes = end_to_end if ragged else padded
    g, W = torch.randn(23, 7, dtype=torch.float64), torch.randn(50, 7, dtype=torch.float64)
    assert torch.equal(codes.to_dense(), z) and torch.equal(codes.nnz, (z > 0).sum(1))
    torch.testing.assert_close(decode(codes, W, W[0]), z @ W + W[0])
    torch.testing.assert_close(sparse_weight_grad(codes, codes.vals, g), z.T @ g)
    torch.testing.assert_close(sparse_column_sum(codes, codes.vals), z.sum(0))
    assert torch.equal(codes.transpose().counts(), (z > 0).sum(0))
    products = from_products(codes, sampled_products(codes, g, W))
    torch.testing.assert_close(products, torch.where(z > 0, g @ W.T, 0.0))


def from_products(codes, values):
    import dataclasses

    return dataclasses.replace(codes, vals=values, _transpose=None).to_dense()


@pytest.mark.parametrize("ragged", [False, True])
def test_the_penalty_of_a_row_and_its_gradient(ragged):
    z, padded, end_to_end = made_codes()
    codes = end_to_end if ragged else padded
    x, W, b = (
        torch.randn(23, 7, dtype=torch.float64),
        torch.randn(50, 7, dtype=torch.float64),
        torch.randn(7, dtype=torch.float64),
    )
    penalty = torch.rand(50, dtype=torch.float64)
    decoded = decode_mse(codes, W, b, x, penalty_F=penalty)
    e = z @ W + b - x
    torch.testing.assert_close(decoded.loss_B, e.square().sum(1))
    torch.testing.assert_close(decoded.l1_B, z @ penalty)
    expected = torch.where(z > 0, (2 * e @ W.T + penalty) / 23, 0.0)
    torch.testing.assert_close(from_products(codes, decoded.dvals_BK), expected)


def test_empty_codes():
    empty = torch.zeros(0, 6)
    codes = encode_topk(empty, torch.randn(40, 6), torch.zeros(40), 8)
    assert codes.vals.shape == (0, 8) and codes.to_dense().shape == (0, 40)
    assert decode(codes, torch.randn(40, 6), torch.zeros(6)).shape == (0, 6)
    assert torch.equal(sparse_weight_grad(codes, codes.vals, empty), torch.zeros(40, 6))
