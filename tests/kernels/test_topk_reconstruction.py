"""The sparse step against dense autograd, over the shapes that break kernels."""

import pytest
import torch
from saekit_kernels import (
    SparseCodes,
    decode,
    encode_topk,
    from_dense,
    sampled_products,
    sparse_weight_grad,
    topk_reconstruction,
    topk_rows,
)
from saekit_kernels.reference import encode_topk_dense, topk_reconstruction_dense


def parameters(D, F, dtype, seed=0):
    gen = torch.Generator().manual_seed(seed)
    W_enc, W_dec = (torch.randn(F, D, generator=gen, dtype=dtype) / D**0.5 for _ in range(2))
    b_enc, b_dec = torch.randn(F, generator=gen, dtype=dtype) * 0.1, torch.randn(D, generator=gen, dtype=dtype)
    return [p.requires_grad_() for p in (W_enc, b_enc, W_dec, b_dec)]


def rows(B, D, dtype, seed=1):
    return torch.randn(B, D, generator=torch.Generator().manual_seed(seed), dtype=dtype)


SHAPES = [
    (B, D, F, k)
    for B in (1, 3, 130)
    for D in (1, 33, 96)
    for F, k in [(1, 1), (7, 5), (130, 32), (1000, 5), (1000, 32), (4096, 32), (130, 130)]
]


@pytest.mark.parametrize("B,D,F,k", SHAPES)
def test_loss_and_every_gradient_equal_dense_autograd_in_fp64(B, D, F, k):
    x, ours, dense = rows(B, D, torch.float64), parameters(D, F, torch.float64), parameters(D, F, torch.float64)
    loss, residual, codes = topk_reconstruction(x, *ours, k)
    reference, z = topk_reconstruction_dense(x, *dense, k)
    loss.backward()
    reference.backward()
    assert torch.equal(codes.to_dense(), encode_topk_dense(x, *dense[:2], k)) or torch.allclose(codes.to_dense(), z, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss, reference, rtol=1e-12, atol=0)
    torch.testing.assert_close(residual, z @ dense[2] + dense[3] - x, rtol=0, atol=1e-12)
    for got, expected in zip(ours, dense):
        scale = expected.grad.norm().clamp_min(1e-30)
        assert (got.grad - expected.grad).norm() / scale <= 1e-6
        assert got.grad.shape == expected.grad.shape


def test_gradients_scale_with_the_loss():
    x, once, thrice = rows(16, 8, torch.float64), parameters(8, 64, torch.float64), parameters(8, 64, torch.float64)
    topk_reconstruction(x, *once, 4)[0].backward()
    (3 * topk_reconstruction(x, *thrice, 4)[0]).backward()
    for a, b in zip(once, thrice):
        torch.testing.assert_close(b.grad, 3 * a.grad)


def test_the_same_inputs_give_the_same_bits():
    x, first, second = rows(300, 48, torch.float32), parameters(48, 1024, torch.float32), parameters(48, 1024, torch.float32)
    topk_reconstruction(x, *first, 16)[0].backward()
    topk_reconstruction(x, *second, 16)[0].backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(first, second))


@pytest.mark.parametrize("F,k", [(64, 4), (3200, 8), (3200, 32)])
def test_ties_go_to_the_smallest_column(F, k):
    vals, idx = topk_rows(torch.ones(3, F), k)
    assert torch.equal(idx.sort(1).values, torch.arange(k).expand(3, k))
    assert torch.equal(vals, torch.ones(3, k))
    duplicated = torch.tensor([0.5, 2.0, 1.0, 1.0]).repeat(F // 4)[None]
    assert set(topk_rows(duplicated, k)[1][0].tolist()) == set(range(1, 4 * k, 4))


@pytest.mark.parametrize("F", [1000, 3200, 4096])
def test_group_selection_equals_a_full_sort(F):
    pre = torch.randn(64, F, generator=torch.Generator().manual_seed(3))
    vals, idx = topk_rows(pre, 32)
    assert torch.equal(vals, pre.sort(dim=1, descending=True).values[:, :32])
    assert torch.equal(pre.gather(1, idx), vals)


def test_codes_are_column_ascending_with_padding_behind():
    x = rows(40, 5, torch.float32)
    W, b = torch.randn(64, 5), torch.full((64,), -2.0)
    codes = encode_topk(x, W, b, 32)
    assert (codes.nnz < 32).any() and (codes.nnz == (codes.vals > 0).sum(1)).all()
    for row in range(40):
        n = int(codes.nnz[row])
        assert (codes.idx[row, :n].diff() > 0).all()
        assert (codes.vals[row, n:] == 0).all() and (codes.idx[row, n:] == 0).all()


def test_a_row_without_active_latents_reconstructs_to_the_bias_and_gets_no_code_gradient():
    W_enc, b_enc, W_dec, b_dec = parameters(6, 40, torch.float64)
    with torch.no_grad():
        b_enc.fill_(-1e6)
    x = rows(3, 6, torch.float64)
    loss, residual, codes = topk_reconstruction(x, W_enc, b_enc, W_dec, b_dec, 8)
    loss.backward()
    assert codes.nnz.tolist() == [0, 0, 0]
    torch.testing.assert_close(residual, b_dec - x)
    assert W_enc.grad.abs().max() == 0 and W_dec.grad.abs().max() == 0 and b_dec.grad.abs().max() > 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_row_reaches_its_own_loss_and_leaves_the_others_alone(bad):
    W_enc, b_enc, W_dec, b_dec = (p.detach() for p in parameters(6, 40, torch.float32))
    x = rows(4, 6, torch.float32)
    clean = encode_topk(x, W_enc, b_enc, 8)
    x[2, 1] = bad
    codes = encode_topk(x, W_enc, b_enc, 8)
    x_hat = decode(codes, W_dec, b_dec)
    assert not torch.isfinite(x_hat[2] - x[2]).all()
    keep = [0, 1, 3]
    assert torch.equal(codes.vals[keep], clean.vals[keep]) and torch.isfinite(x_hat[keep]).all()


def test_empty_batches():
    W_enc, b_enc, W_dec, b_dec = (p.detach() for p in parameters(6, 40, torch.float32))
    codes = encode_topk(torch.empty(0, 6), W_enc, b_enc, 8)
    assert codes.vals.shape == (0, 8) and codes.to_dense().shape == (0, 40)
    assert decode(codes, W_dec, b_dec).shape == (0, 6)
    assert torch.equal(sparse_weight_grad(codes, codes.vals, torch.empty(0, 6)), torch.zeros(40, 6))
    with pytest.raises(ValueError, match="empty batch"):
        topk_reconstruction(torch.empty(0, 6), W_enc, b_enc, W_dec, b_dec, 8)


@pytest.mark.parametrize("k", [0, 41])
def test_k_outside_the_latents_is_refused(k):
    with pytest.raises(ValueError, match=r"k must lie in \[1, 40\]"):
        encode_topk(torch.randn(2, 6), torch.randn(40, 6), torch.zeros(40), k)


def test_strided_inputs_give_the_same_result():
    W_enc, b_enc, _, _ = (p.detach() for p in parameters(12, 96, torch.float32))
    x = rows(12, 50, torch.float32).T[5:45]
    strided = encode_topk(x, W_enc.T.contiguous().T, b_enc, 7)
    assert torch.equal(strided.idx, encode_topk(x.contiguous(), W_enc, b_enc, 7).idx)


def test_chunks_of_rows_do_not_change_the_codes(monkeypatch):
    import saekit_kernels.encode as module

    W_enc, b_enc, _, _ = (p.detach() for p in parameters(12, 96, torch.float64))
    x = rows(50, 12, torch.float64)
    whole = encode_topk(x, W_enc, b_enc, 7)
    monkeypatch.setattr(module, "CHUNK_ROWS", 16)
    chunked = encode_topk(x, W_enc, b_enc, 7)
    assert torch.equal(whole.idx, chunked.idx)
    torch.testing.assert_close(whole.vals, chunked.vals)


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
    codes = SparseCodes(torch.full((500, 1), 0.1), torch.zeros(500, 1, dtype=torch.int32), torch.ones(500, dtype=torch.int32), 3)
    grad = sparse_weight_grad(codes, codes.vals, torch.ones(500, 2))
    # 500 additions in order: the error grows at most by one rounding each.
    tolerance = 500 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(grad, torch.tensor([[50.0, 50.0], [0, 0], [0, 0]]), rtol=tolerance, atol=0)
