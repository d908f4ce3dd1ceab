"""Penalties on dense codes against fp64, by autograd through the plain formulas. B rows, D width, F
latents."""

from __future__ import annotations

import pytest
import torch
from saekit_kernels.gpu import penalty

# numpy, in the interpreter, on rows with NaN
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
device = "cuda" if torch.cuda.is_available() else "cpu"
needs_gpu = pytest.mark.skipif(device == "cpu", reason="needs a CUDA device")

# (B, D, F): one row and one latent, no multiple of a tile, several tiles of each size, an exact
# fit, more row blocks than a group.
SHAPES = [
    (1, 1, 1),
    (3, 33, 7),
    (64, 96, 130),
    (65, 130, 257),
    (130, 16, 40),
    (128, 64, 128),
    (150, 48, 144),
    (577, 3, 70),
]
UNIT_ROUNDOFF = {torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def normal(*shape, dtype=torch.float32, scale=1.0, shift=0.0):
    return (torch.randn(*shape) * scale + shift).to(device=device, dtype=dtype)


def rounding(dtype: torch.dtype, D: int = 1) -> float:
    """Relative tolerance of a value stored in `dtype` after a sum of D products in fp32. The
    interpreter truncates to bf16."""
    return UNIT_ROUNDOFF[dtype] * (1 if device == "cuda" else 2) + 4e-7 * max(D, 16) ** 0.5


def close(actual, expected, rtol, atol=0.0):
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=rtol, atol=atol, equal_nan=True
    )


def kl(mean_F, rho=0.05):
    return (rho * torch.log(rho / mean_F) + (1 - rho) * torch.log((1 - rho) / (1 - mean_F))).sum()


# -- KL, sigmoid -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("B", "D", "F"), SHAPES)
def test_sigmoid_encode_gives_codes_and_their_unrounded_means(B, D, F, dtype):
    x, W, b = (
        normal(B, D, dtype=dtype),
        normal(F, D, dtype=dtype, scale=D**-0.5),
        normal(F, shift=-2.0),
    )
    f, mean = penalty.sigmoid_encode(x, W, b)
    expected = torch.sigmoid(x.double() @ W.double().T + b.double())
    assert f.dtype == dtype and mean.dtype == torch.float32
    close(f, expected, rounding(dtype, D))
    # also when f is bf16: the mean never sees the rounded codes
    close(mean, expected.mean(0), 3e-6)


def test_mean_is_not_the_mean_of_the_rounded_codes():
    x, W, b = (
        normal(64, 32, dtype=torch.bfloat16),
        torch.zeros(3, 32, dtype=torch.bfloat16, device=device),
        normal(3, shift=-4.0),
    )
    f, mean = penalty.sigmoid_encode(x, W, b)
    expected = torch.sigmoid(b.double())
    close(mean, expected, 1e-6)
    assert ((f.double().mean(0) - expected).abs() / expected).max() > 1e-4


def test_weights_of_another_type_are_rounded_to_the_type_of_x():
    x, W, b = normal(5, 40, dtype=torch.bfloat16), normal(9, 40), normal(9, dtype=torch.bfloat16)
    f, mean = penalty.sigmoid_encode(x, W, b)
    expected = torch.sigmoid(x.double() @ W.bfloat16().double().T + b.double())
    close(f, expected, rounding(torch.bfloat16, 40))
    close(mean, expected.mean(0), 3e-6)


@pytest.mark.parametrize("B", [37, 150])
def test_weighted_mean_leaves_out_rows_of_weight_zero_even_with_nan(B):
    x, W, b = normal(B, 20), normal(70, 20), normal(70)
    weight = torch.rand(B).to(device)
    weight[::3] = 0.0
    x[3], x[6, 0] = torch.nan, torch.inf
    f, mean = penalty.sigmoid_encode(x, W, b, weight)
    kept = weight > 0
    dense = torch.sigmoid(x[kept].double() @ W.double().T + b.double())
    close(mean, (dense * weight[kept].double()[:, None]).sum(0) / weight.double().sum(), 3e-6)
    assert f[3].isnan().all() and not f[kept].isnan().any()


def test_nan_and_infinite_rows_stay_in_their_rows_and_spoil_the_plain_mean():
    x, W, b = normal(6, 8), normal(5, 8).abs(), normal(5)
    x[1], x[2], x[4] = torch.nan, torch.inf, -torch.inf
    f, mean = penalty.sigmoid_encode(x, W, b)
    assert f[1].isnan().all() and (f[2] == 1).all() and (f[4] == 0).all()
    assert f[[0, 3, 5]].isfinite().all() and mean.isnan().all()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("B", "D", "F"), SHAPES)
def test_sigmoid_dpre_is_the_gradient_of_reconstruction_plus_penalty(B, D, F, dtype, weighted):
    """The formula is checked on the stored f; that the formula is the gradient is checked by
    autograd below."""
    g, W_dec, c = normal(B, D, dtype=dtype), normal(F, D, dtype=dtype, scale=D**-0.5), normal(F)
    f = torch.rand(B, F).to(device=device, dtype=dtype)
    weight = torch.rand(B).to(device) if weighted else None
    dpre, db = penalty.sigmoid_dpre(g, W_dec, f, c, weight)
    w = weight.double()[:, None] if weighted else 1.0
    slope = f.double() * (1 - f.double())
    expected = (g.double() @ W_dec.double().T + c.double() * w) * slope
    # what the sum may cancel from
    scale = (
        g.double().norm(dim=1)[:, None] * W_dec.double().norm(dim=1) + c.double().abs()
    ) * slope
    assert dpre.dtype == dtype and db.dtype == torch.float32
    assert (
        (dpre.double() - expected).abs() <= rounding(dtype, D) * expected.abs() + 2e-6 * scale
    ).all()
    # sums of unrounded values in both types
    assert ((db.double() - expected.sum(0)).abs() <= 3e-6 * scale.sum(0)).all()


def test_forward_and_backward_equal_autograd_through_the_whole_objective():
    B, D, F, coef = 50, 24, 90, 3.0
    x, W_enc, b = normal(B, D), normal(F, D, scale=0.3), normal(F, shift=-1.0)
    W_dec, weight = normal(F, D, scale=0.2), (torch.rand(B) > 0.3).float().to(device)
    f, mean = penalty.sigmoid_encode(x, W_enc, b, weight)
    mean.requires_grad_()
    (coef * kl(mean)).backward()
    c = mean.grad / weight.sum()
    g = 2 * (f @ W_dec - x) * weight[:, None] / weight.sum()
    dpre, db = penalty.sigmoid_dpre(g, W_dec, f, c, weight)

    W64, b64 = W_enc.double().requires_grad_(), b.double().requires_grad_()
    z = torch.sigmoid(x.double() @ W64.T + b64)
    w = weight.double()[:, None] / weight.double().sum()
    loss = ((z @ W_dec.double() - x.double()) ** 2 * w).sum() + coef * kl((z * w).sum(0))
    loss.backward()
    close(db, b64.grad, 2e-5, 1e-6)
    close(dpre.T @ x, W64.grad, 2e-5, 1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("B", "F"), [(1, 1), (3, 7), (130, 300), (128, 256), (300, 33)])
def test_sigmoid_pull_is_the_penalty_gradient_alone(B, F, dtype, weighted):
    f, c = torch.rand(B, F).to(device=device, dtype=dtype), normal(F)
    weight = (torch.rand(B) > 0.4).float().to(device) if weighted else None
    dpre, db = penalty.sigmoid_pull(f, c, weight)
    expected = (
        c.double() * f.double() * (1 - f.double()) * (weight.double()[:, None] if weighted else 1.0)
    )
    close(dpre, expected, rounding(dtype))
    close(db, expected.sum(0), 3e-6)


def test_pull_of_a_row_of_weight_zero_is_zero_even_with_nan():
    f, c, weight = torch.rand(9, 20).to(device), normal(20), torch.ones(9, device=device)
    f[4], weight[4] = torch.nan, 0.0
    dpre, db = penalty.sigmoid_pull(f, c, weight)
    assert (dpre[4] == 0).all() and db.isfinite().all()
    assert penalty.sigmoid_pull(f, c)[1].isnan().all()  # without weights it is seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strided_operands_give_the_same_bits(dtype):
    B, D, F = 20, 30, 50
    x, W, b, c = normal(B, D, dtype=dtype), normal(F, D, dtype=dtype), normal(F), normal(F)
    wide_x, tall_W, twice = (
        torch.zeros(B, D + 7, dtype=dtype, device=device),
        W.T.contiguous().T,
        c.repeat_interleave(2),
    )
    wide_x[:, 3 : D + 3] = x
    f, mean = penalty.sigmoid_encode(x, W, b)
    for a, w in ((wide_x[:, 3 : D + 3], W), (x.T.contiguous().T, tall_W)):
        assert all(torch.equal(p, q) for p, q in zip(penalty.sigmoid_encode(a, w, b), (f, mean)))
        for codes in (f.T.contiguous().T, torch.cat([f, f], 1)[:, F:]):
            assert all(
                torch.equal(p, q)
                for p, q in zip(
                    penalty.sigmoid_dpre(a, w, codes, twice[::2]), penalty.sigmoid_dpre(x, W, f, c)
                )
            )
            assert all(
                torch.equal(p, q)
                for p, q in zip(penalty.sigmoid_pull(codes, twice[::2]), penalty.sigmoid_pull(f, c))
            )


def test_empty_batch_and_no_latent():
    W, b, c = normal(7, 5), normal(7), normal(7)
    f, mean = penalty.sigmoid_encode(normal(0, 5), W, b)
    assert f.shape == (0, 7) and mean.shape == (7,) and mean.isnan().all()
    for dpre, db in (penalty.sigmoid_dpre(normal(0, 5), W, f, c), penalty.sigmoid_pull(f, c)):
        assert dpre.shape == (0, 7) and torch.equal(db, torch.zeros(7, device=device))
    f, mean = penalty.sigmoid_encode(normal(3, 5), normal(0, 5), normal(0))
    assert f.shape == (3, 0) and mean.shape == (0,)


# -- L1, ReLU --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("B", "F"), [(1, 1), (3, 7), (5, 513), (9, 1000), (130, 30)])
def test_relu_forward_in_place_with_l1_and_count(B, F, dtype):
    pre, norm = normal(B, F, dtype=dtype), normal(F).abs()
    z = pre.clone()
    l1, nnz = penalty.relu_forward(z, norm)
    expected = pre.clamp(min=0)
    assert torch.equal(z, expected) and l1.dtype == torch.float32 and nnz.dtype == torch.int32
    close(l1, expected.double() @ norm.double(), 1e-6)
    assert torch.equal(nnz.long(), (pre > 0).sum(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("B", "F"), [(1, 1), (3, 7), (130, 300), (128, 256), (300, 33)])
def test_relu_backward_in_place_equals_autograd(B, F, dtype):
    pre, pull = normal(B, F, dtype=dtype), normal(F)
    upstream = normal(B, F, dtype=dtype)
    leaf = pre.double().requires_grad_()
    z = leaf.relu()
    (z * (upstream.double() + pull.double())).sum().backward()
    dz = upstream.clone()
    db = penalty.relu_backward(z.detach().to(dtype), dz, pull)
    close(dz, leaf.grad, rounding(dtype), 1e-6)
    close(db, leaf.grad.sum(0), 3e-6, 1e-6 * B)
    assert (dz[pre <= 0] == 0).all()


def test_relu_keeps_nan_and_infinity_and_counts_them():
    pre = torch.tensor(
        [[1.0, -2.0, torch.nan, 0.0], [torch.inf, -torch.inf, 3.0, -0.0], [-1.0, -1.0, 0.0, 2.0]],
        device=device,
    )
    z = pre.clone()
    l1, nnz = penalty.relu_forward(z, torch.tensor([1.0, 2.0, 3.0, 4.0], device=device))
    assert torch.equal(
        z.nan_to_num(-7.0, 99.0),
        torch.tensor([[1.0, 0, -7, 0], [99, 0, 3, 0], [0, 0, 0, 2]], device=device),
    )
    assert l1[0].isnan() and l1[1] == torch.inf and l1[2] == 8 and nnz.tolist() == [2, 2, 1]
    dz = torch.full_like(z, 10.0)
    db = penalty.relu_backward(z, dz, torch.tensor([1.0, 2.0, 3.0, 4.0], device=device))
    assert torch.equal(
        dz, torch.tensor([[11.0, 0, 13, 0], [11, 0, 13, 0], [0, 0, 0, 14]], device=device)
    )
    assert db.tolist() == [22.0, 0.0, 26.0, 14.0]


def test_nan_gradient_behind_an_inactive_latent_is_cut():
    z, dz = (
        torch.tensor([[0.0, 1.0]], device=device),
        torch.tensor([[torch.nan, torch.nan]], device=device),
    )
    db = penalty.relu_backward(z, dz, torch.zeros(2, device=device))
    assert dz[0, 0] == 0 and db[0] == 0 and dz[0, 1].isnan() and db[1].isnan()


def test_in_place_passes_write_views_and_nothing_beside_them():
    store, norm = normal(6, 40), normal(40).abs()
    before = store.clone()
    l1, _ = penalty.relu_forward(store[::2, 5:25], norm[:20])
    assert torch.equal(store[::2, 5:25], before[::2, 5:25].clamp(min=0))
    rest = torch.ones_like(store, dtype=torch.bool)
    rest[::2, 5:25] = False
    assert torch.equal(store[rest], before[rest])
    close(l1, before[::2, 5:25].clamp(min=0).double() @ norm[:20].double(), 1e-6)
    gradients = before.clone()
    db = penalty.relu_backward(store[::2, 5:25].T.contiguous().T, gradients[::2, 5:25], norm[::2])
    expected = torch.where(before[::2, 5:25] > 0, before[::2, 5:25] + norm[::2], 0.0)
    assert torch.equal(gradients[::2, 5:25], expected) and torch.equal(
        gradients[rest], before[rest]
    )
    close(db, expected.double().sum(0), 1e-6, 1e-6)


def test_relu_of_empty_batches():
    l1, nnz = penalty.relu_forward(normal(0, 5), normal(5))
    assert l1.shape == nnz.shape == (0,)
    l1, nnz = penalty.relu_forward(normal(3, 0), normal(0))
    assert l1.tolist() == [0, 0, 0] and nnz.tolist() == [0, 0, 0]
    assert penalty.relu_backward(normal(0, 5), normal(0, 5), normal(5)).tolist() == [0.0] * 5


# -------------------------------------------------------------------------------------------------
# both: bits and misuse


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_twice_the_same_bits(dtype):
    B, D, F = 140, 20, 150
    x, W, b, c, weight = (
        normal(B, D, dtype=dtype),
        normal(F, D, dtype=dtype),
        normal(F),
        normal(F),
        torch.rand(B).to(device),
    )

    def all_of_them():
        f, mean = penalty.sigmoid_encode(x, W, b, weight)
        z = x @ W.T
        l1, nnz = penalty.relu_forward(z, c)
        dz = f.clone()
        db = penalty.relu_backward(z, dz, c)
        return (
            f,
            mean,
            *penalty.sigmoid_dpre(x, W, f, c, weight),
            *penalty.sigmoid_pull(f, c),
            z,
            l1,
            nnz,
            dz,
            db,
        )

    assert all(torch.equal(p, q) for p, q in zip(all_of_them(), all_of_them()))


def test_wrong_arguments_are_refused():
    x, W, b, f = normal(4, 6), normal(9, 6), normal(9), normal(4, 9)
    for call in (
        lambda: penalty.sigmoid_encode(x.double(), W, b),
        lambda: penalty.sigmoid_encode(x.half(), W, b),
        lambda: penalty.sigmoid_encode(x, W[:, :5], b),
        lambda: penalty.sigmoid_encode(x, W, b[:8]),
        lambda: penalty.sigmoid_encode(x, W, b, torch.ones(5, device=device)),
        lambda: penalty.sigmoid_encode(x, W, b, torch.ones(4, device=device, dtype=torch.bool)),
        lambda: penalty.sigmoid_dpre(x[:3], W, f, b),
        lambda: penalty.sigmoid_dpre(x, W[:8], f, b),
        lambda: penalty.sigmoid_pull(f, b[:8]),
        lambda: penalty.relu_forward(f.double(), b),
        lambda: penalty.relu_forward(f, b[:8]),
        lambda: penalty.relu_forward(f.T.contiguous().T, b),
        lambda: penalty.relu_backward(f, f[:3], b),
        lambda: penalty.relu_backward(f, f.T.contiguous().T, b),
        lambda: penalty.relu_backward(f, f.clone(), b[:8]),
    ):
        with pytest.raises(ValueError):
            call()


# -- on a GPU, full size ---------------------------------------------------------------------------


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    ("B", "D", "F"), [(8192, 768, 24576), (4096, 2304, 73728), (1000, 4096, 9999)]
)
def test_full_size_kl_step_in_bf16(B, D, F):
    x, W, b, c = (
        normal(B, D, dtype=torch.bfloat16),
        normal(F, D, dtype=torch.bfloat16, scale=D**-0.5),
        normal(F, shift=-3.0),
        normal(F, scale=0.01),
    )
    f, mean = penalty.sigmoid_encode(x, W, b)
    total, rows = torch.zeros(F, dtype=torch.float64, device=device), 512
    for start in range(0, B, rows):
        pre = x[start : start + rows].float() @ W.float().T
        total += torch.sigmoid(pre.double() + b.double()).sum(0)
    close(mean, total / B, 5e-6)
    sample = slice(B - 200, B)
    close(
        f[sample],
        torch.sigmoid(x[sample].double() @ W.double().T + b.double()),
        rounding(torch.bfloat16, D),
    )
    dpre, db = penalty.sigmoid_dpre(x, W, f, c)
    codes = f[sample].double()
    expected = (x[sample].double() @ W.double().T + c.double()) * codes * (1 - codes)
    close(dpre[sample], expected, rounding(torch.bfloat16), 1e-5)
    close(db, dpre.double().sum(0), 1e-2, 1e-3 * B**0.5)
    again = penalty.sigmoid_dpre(x, W, f, c)
    assert torch.equal(again[0], dpre) and torch.equal(again[1], db)


@pytest.mark.gpu
@needs_gpu
def test_relu_passes_beyond_two_billion_codes():
    """B F > 2^31: a 32-bit offset would wrap. 8.6 GB a tensor."""
    B, F = 32768, 131072
    if torch.cuda.mem_get_info()[0] < 24e9:
        pytest.skip("needs 24 GB of free device memory")
    z = torch.full((B, F), -1.0, dtype=torch.bfloat16, device=device)
    z[-1, -3:], z[B // 2, 5] = 2.0, 4.0
    l1, nnz = penalty.relu_forward(z, torch.ones(F, device=device))
    assert (
        l1[-1] == 6
        and l1[B // 2] == 4
        and l1.sum() == 10
        and nnz.sum() == 4
        and z[-1, -4:].tolist() == [0, 2, 2, 2]
    )
    dz = torch.ones_like(z)
    db = penalty.relu_backward(z, dz, torch.ones(F, device=device))
    assert (
        db[-3:].tolist() == [2, 2, 2]
        and db.sum() == 8
        and dz[-1, -4:].tolist() == [0, 2, 2, 2]
        and dz[0].sum() == 0
    )
