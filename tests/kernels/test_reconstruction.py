"""The training step, by either path, against dense autograd, over the shapes that break kernels."""

import math

import pytest
import torch
from saekit_kernels import (
    batchtopk_reconstruction,
    encode_threshold,
    encode_topk,
    most_active,
    next_path,
    relu_reconstruction,
    sigmoid_reconstruction,
    topk_reconstruction,
)
from saekit_kernels.dense import kl_of_means
from saekit_kernels.reference import (
    relu_reconstruction_dense,
    sigmoid_reconstruction_dense,
    topk_reconstruction_dense,
)


def parameters(D, F, dtype, seed=0):
    gen = torch.Generator().manual_seed(seed)
    W_enc, W_dec = (torch.randn(F, D, generator=gen, dtype=dtype) / D**0.5 for _ in range(2))
    b_enc, b_dec = (
        torch.randn(F, generator=gen, dtype=dtype) * 0.1,
        torch.randn(D, generator=gen, dtype=dtype),
    )
    return [p.requires_grad_() for p in (W_enc, b_enc, W_dec, b_dec)]


def rows(B, D, dtype, seed=1):
    return torch.randn(B, D, generator=torch.Generator().manual_seed(seed), dtype=dtype)


SHAPES = [
    (B, D, F, k)
    for B in (1, 3, 130)
    for D in (1, 33, 96)
    for F, k in [(1, 1), (7, 5), (130, 32), (1000, 5), (1000, 32), (4096, 32), (130, 130)]
]


PATHS = ["sparse", "dense"]


def assert_gradients_agree(ours, dense, tolerance=1e-6):
    for got, expected in zip(ours, dense):
        scale = expected.grad.norm().clamp_min(1e-30)
        assert got.grad.shape == expected.grad.shape
        assert (got.grad - expected.grad).norm() / scale <= tolerance


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("B,D,F,k", SHAPES)
def test_topk_loss_and_every_gradient_equal_dense_autograd_in_fp64(B, D, F, k, path):
    x, ours, dense = (
        rows(B, D, torch.float64),
        parameters(D, F, torch.float64),
        parameters(D, F, torch.float64),
    )
    made = topk_reconstruction(x, *ours, k, path=path)
    reference, z = topk_reconstruction_dense(x, *dense, k)
    made.total.backward()
    reference.backward()
    torch.testing.assert_close(made.total, reference, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        made.residual_BD, (z @ dense[2] + dense[3] - x).detach(), rtol=0, atol=1e-12
    )
    assert torch.equal(made.fired_F, (z > 0).sum(0)) and made.path == path
    assert_gradients_agree(ours, dense, 1e-12)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("coef", [0.0, 0.7])
@pytest.mark.parametrize("B,D,F", [(1, 1, 1), (3, 33, 7), (130, 33, 130), (37, 96, 1000)])
def test_relu_loss_and_every_gradient_equal_dense_autograd_in_fp64(B, D, F, coef, path):
    x, ours, dense = (
        rows(B, D, torch.float64),
        parameters(D, F, torch.float64),
        parameters(D, F, torch.float64),
    )
    made = relu_reconstruction(x, *ours, coef, path=path)
    reconstruction, l1, z = relu_reconstruction_dense(x, *dense)
    made.total.backward()
    (reconstruction + coef * l1).backward()
    torch.testing.assert_close(made.total, reconstruction + coef * l1, rtol=1e-12, atol=0)
    torch.testing.assert_close(made.reconstruction, reconstruction.detach(), rtol=1e-12, atol=0)
    if coef:
        torch.testing.assert_close(made.penalty, l1.detach(), rtol=1e-12, atol=1e-15)
    assert torch.equal(made.fired_F, (z > 0).sum(0))
    assert_gradients_agree(ours, dense, 1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_with_a_unit_decoder_only_the_parallel_part_of_its_gradient_is_left_out(path):
    def perpendicular(W):
        along = (W.grad * W.detach()).sum(1, keepdim=True)
        return W.grad - along * W.detach()

    x, ours, dense = (
        rows(40, 9, torch.float64),
        parameters(9, 64, torch.float64),
        parameters(9, 64, torch.float64),
    )
    for W in (ours[2], dense[2]):
        W.data /= W.data.norm(dim=1, keepdim=True)
    relu_reconstruction(x, *ours, 0.5, unit_decoder=True, path=path).total.backward()
    reconstruction, l1, _ = relu_reconstruction_dense(x, *dense)
    (reconstruction + 0.5 * l1).backward()
    torch.testing.assert_close(perpendicular(ours[2]), perpendicular(dense[2]), rtol=0, atol=1e-12)
    torch.testing.assert_close(ours[0].grad, dense[0].grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("step", ["topk", "relu"])
def test_gradcheck_of_the_sparse_step_rows_included(step):
    x, values = rows(4, 3, torch.float64).requires_grad_(), parameters(3, 20, torch.float64)

    def total(x, *values):
        if step == "topk":
            return topk_reconstruction(x, *values, 3, path="sparse").total
        return relu_reconstruction(x, *values, 0.3, path="sparse").total

    assert torch.autograd.gradcheck(total, (x, *values), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_gradients_scale_with_the_loss(path):
    x, once, thrice = (
        rows(16, 8, torch.float64),
        parameters(8, 64, torch.float64),
        parameters(8, 64, torch.float64),
    )
    relu_reconstruction(x, *once, 0.2, path=path).total.backward()
    (3 * relu_reconstruction(x, *thrice, 0.2, path=path).total).backward()
    for a, b in zip(once, thrice):
        torch.testing.assert_close(b.grad, 3 * a.grad)


@pytest.mark.parametrize("path", PATHS)
def test_the_same_inputs_give_the_same_bits(path):
    x, first, second = (
        rows(300, 48, torch.float32),
        parameters(48, 1024, torch.float32),
        parameters(48, 1024, torch.float32),
    )
    for values in (first, second):
        topk_reconstruction(x, *values, 16, path=path).total.backward()
        relu_reconstruction(x, *values, 0.1, path=path).total.backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(first, second))


def test_the_filter_gives_the_gradients_of_the_fp32_encoder():
    """One step each with the bf16 filter and without, from the same codes up to the last bits."""
    x, W = rows(200, 64, torch.float32), parameters(64, 4096, torch.float32)
    for codes_of in (
        lambda plan: encode_topk(x, *W[:2], 8, plan=plan),
        lambda plan: encode_threshold(x, W[0], W[1] - 2.0, plan=plan),
    ):
        a, b = codes_of("filter").to_dense(), codes_of("gemm").to_dense()
        assert torch.equal(a != 0, b != 0)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_rows_with_too_many_active_latents_take_the_dense_path():
    x, (W_enc, b_enc, W_dec, b_dec) = (
        rows(600, 32, torch.float32),
        parameters(32, 4000, torch.float32),
    )
    assert relu_reconstruction(x, W_enc, b_enc, W_dec, b_dec, 0.1).path == "dense"
    assert relu_reconstruction(x, W_enc, b_enc - 3.0, W_dec, b_dec, 0.1).path == "sparse"


def test_no_gradient_is_made_where_none_is_wanted():
    x, values = rows(20, 8, torch.float64), parameters(8, 64, torch.float64)
    with torch.no_grad():
        made = topk_reconstruction(x, *values, 4)
    assert not made.total.requires_grad


def test_the_mean_over_an_empty_batch_is_refused():
    values = parameters(6, 40, torch.float32)
    for path in PATHS:
        with pytest.raises(ValueError, match="empty batch"):
            topk_reconstruction(torch.empty(0, 6), *values, 8, path=path)
        with pytest.raises(ValueError, match="empty batch"):
            relu_reconstruction(torch.empty(0, 6), *values, 0.1, path=path)


@pytest.mark.parametrize("path", ["sparse", "dense"])
def test_rows_without_active_latents_reconstruct_to_the_bias_and_give_no_code_gradient(path):
    W_enc, b_enc, W_dec, b_dec = parameters(6, 40, torch.float64)
    with torch.no_grad():
        b_enc.fill_(-1e6)
    x = rows(3, 6, torch.float64)
    made = topk_reconstruction(x, W_enc, b_enc, W_dec, b_dec, 8, path=path)
    made.total.backward()
    assert made.fired_F.sum() == 0
    torch.testing.assert_close(made.residual_BD, b_dec - x)
    assert (
        W_enc.grad.abs().max() == 0 and W_dec.grad.abs().max() == 0 and b_dec.grad.abs().max() > 0
    )


@pytest.mark.parametrize("rate", [0.01, 0.3])
@pytest.mark.parametrize("B,D,F", [(1, 1, 1), (3, 33, 7), (130, 33, 130), (1030, 8, 20)])
def test_sigmoid_loss_and_every_gradient_equal_dense_autograd_in_fp64(B, D, F, rate):
    x, ours, dense = (
        rows(B, D, torch.float64),
        parameters(D, F, torch.float64),
        parameters(D, F, torch.float64),
    )
    made = sigmoid_reconstruction(x, *ours, 0.7, rate)
    reconstruction, kl, f = sigmoid_reconstruction_dense(x, *dense, rate)
    made.total.backward()
    (reconstruction + 0.7 * kl).backward()
    torch.testing.assert_close(made.total, reconstruction + 0.7 * kl, rtol=1e-12, atol=0)
    torch.testing.assert_close(made.penalty, kl.detach(), rtol=1e-12, atol=1e-15)
    assert torch.equal(made.fired_F, (f > 0.5).sum(0))
    assert_gradients_agree(ours, dense, 1e-12)


def test_kl_by_hand_and_beyond_the_clamp():
    means = torch.tensor([0.3, 0.6, 0.1, 0.0, 1.0], dtype=torch.float64)
    kl, derivative = kl_of_means(means[:3], 0.1)
    assert kl.item() == pytest.approx(
        sum(0.1 * math.log(0.1 / m) + 0.9 * math.log(0.9 / (1 - m)) for m in (0.3, 0.6)), rel=1e-12
    )
    assert derivative.tolist() == pytest.approx(
        [0.9 / 0.7 - 0.1 / 0.3, 0.9 / 0.4 - 0.1 / 0.6, 0], abs=1e-12
    )
    kl, derivative = kl_of_means(means, 0.1)
    assert math.isfinite(kl.item()) and derivative[3:].tolist() == [0, 0]


def test_the_crossover_grows_with_the_latents_and_vanishes_for_small_steps():
    x = torch.empty(4096, 576)
    assert most_active(x, 18_432) == pytest.approx(18_432 / (6.3 * (1 + 129 / 576)), rel=0.01)
    assert most_active(x, 36_864) > 1.99 * most_active(x, 18_432)
    assert most_active(torch.empty(1024, 64), 512) == 0


def test_paths_change_with_hysteresis():
    assert [next_path("dense", l0, 100) for l0 in (60, 80, 95)] == ["sparse", "dense", "dense"]
    assert [next_path("sparse", l0, 100) for l0 in (60, 80, 95)] == ["sparse", "sparse", "dense"]


@pytest.mark.parametrize("path", PATHS)
def test_a_decoder_row_of_zeros_gets_the_gradient_of_autograd(path):
    x, ours, dense = (
        rows(30, 6, torch.float64),
        parameters(6, 50, torch.float64),
        parameters(6, 50, torch.float64),
    )
    for values in (ours, dense):
        values[2].data[4] = 0
    relu_reconstruction(x, *ours, 0.5, path=path).total.backward()
    reconstruction, l1, _ = relu_reconstruction_dense(x, *dense)
    (reconstruction + 0.5 * l1).backward()
    assert_gradients_agree(ours, dense, 1e-12)


def test_both_paths_report_the_penalty_even_at_coefficient_zero():
    x, values = rows(30, 6, torch.float64), parameters(6, 50, torch.float64)
    sparse, dense = (relu_reconstruction(x, *values, 0.0, path=path) for path in PATHS)
    assert sparse.penalty > 0
    torch.testing.assert_close(sparse.penalty, dense.penalty)
    torch.testing.assert_close(sparse.total, sparse.reconstruction)


def test_what_cannot_be_had_is_refused():
    x, values = rows(30, 6, torch.float64), parameters(6, 50, torch.float64)
    with pytest.raises(ValueError, match="no gradient to x"):
        relu_reconstruction(x.clone().requires_grad_(), *values, 0.1, path="dense")
    for wrong, match in (({"path": "spars"}, "path spars"), ({"backend": "cuda"}, "backend cuda")):
        with pytest.raises(ValueError, match=match):
            topk_reconstruction(x, *values, 4, **wrong)


@pytest.mark.parametrize("bound", [0.0, 0.2, 9.0])
@pytest.mark.parametrize("B,D,F,k", [(1, 3, 7, 2), (37, 33, 130, 5), (130, 16, 1000, 8)])
def test_batchtopk_loss_and_every_gradient_equal_dense_autograd_in_fp64(B, D, F, k, bound):
    x, ours, dense = (
        rows(B, D, torch.float64),
        parameters(D, F, torch.float64),
        parameters(D, F, torch.float64),
    )
    made, smallest = batchtopk_reconstruction(x, *ours, k, torch.tensor(bound))
    W_enc, b_enc, W_dec, b_dec = dense
    pre = x @ W_enc.T + b_enc
    kept = min(B * k, int((pre > 0).sum()))
    limit = pre.detach().flatten().topk(kept).values[-1]
    z = torch.where(pre >= limit, pre, 0.0)
    reference = (z @ W_dec + b_dec - x).square().sum(1).mean()
    made.total.backward()
    reference.backward()
    torch.testing.assert_close(made.total, reference, rtol=1e-12, atol=0)
    torch.testing.assert_close(smallest, limit)
    assert torch.equal(made.fired_F, (z > 0).sum(0)) and int(made.fired_F.sum()) == kept
    assert_gradients_agree(ours, dense, 1e-12)
