"""Which latents are chosen: by every plan, exactly, ties and bad rows included."""

import pytest
import torch
from saekit_kernels import (
    Workspace,
    decode,
    encode_abs_topk,
    encode_batchtopk,
    encode_threshold,
    encode_topk,
    topk_rows,
)
from saekit_kernels.reference import encode_topk_dense
from saekit_kernels.select import largest


def parameters(D, F, dtype=torch.float32, seed=0):
    gen = torch.Generator().manual_seed(seed)
    return torch.randn(F, D, generator=gen, dtype=dtype) / D**0.5, torch.randn(
        F, generator=gen, dtype=dtype
    ) * 0.1


def rows(B, D, dtype=torch.float32, seed=1):
    return torch.randn(B, D, generator=torch.Generator().manual_seed(seed), dtype=dtype)


PLANS = ["gemm", "filter"]


def hard_rows(B, D):
    """Rows like hidden states: two dimensions carry most of the norm, some rows are far larger, one
    is zero."""
    x = rows(B, D)
    x[:, 0] *= 12
    x[:, 1] = 5 + x[:, 1]
    x[::17] *= 9
    x[3] = 0
    return x


@pytest.mark.parametrize("D,F,k", [(64, 4096, 8), (33, 3000, 5), (96, 2049, 32), (7, 640, 10)])
@pytest.mark.parametrize("scale", [0.02, 1.0, 1e4])
def test_the_filter_selects_what_fp64_selects(D, F, k, scale):
    W, b = parameters(D, F)
    W *= torch.logspace(-1, 1, F)[torch.randperm(F)][:, None]  # norms of latents over two decades
    x = hard_rows(600, D) * scale
    codes = encode_topk(x, W, b, k, plan="filter")
    pre = x.double() @ W.double().T + b
    kth = pre.topk(k, dim=1).values[:, -1:]
    slack = 2.0**-20 * x.double().norm(dim=1, keepdim=True) * W.double().norm(dim=1).max()
    chosen = codes.to_dense() != 0
    assert (pre[chosen] >= (kth - slack).expand_as(pre)[chosen]).all()
    assert chosen[(pre > kth + slack) & (pre > slack)].all()
    torch.testing.assert_close(
        codes.to_dense()[chosen].double(), pre[chosen], rtol=1e-5, atol=slack.max().item()
    )


def test_the_filter_did_the_work(monkeypatch):
    """The comparison above must not be won by redoing everything in fp32."""
    import saekit_kernels.by_filter as module

    W, b = parameters(64, 4096)
    x, redone = rows(600, 64), []
    original = module.topk_rows
    monkeypatch.setattr(
        module, "topk_rows", lambda pre, k: redone.append(pre.shape) or original(pre, k)
    )
    encode_topk(x, W, b, 8, plan="filter")
    assert redone and all(width < 600 for _, width in redone), (
        "only tables of survivors were selected from"
    )
    x[5] = torch.nan
    encode_topk(x, W, b, 8, plan="filter")
    assert redone[-1] == (1, 4096)


def test_rows_that_are_long_in_one_dimension_are_not_redone(monkeypatch):
    """A row of many times the usual norm has a wide bound in all latents, unless its largest
    dimension is represented more exactly."""
    import saekit_kernels.by_filter as module

    W, b = parameters(64, 4096)
    W[:, 5] *= 0.01
    x, widths = rows(600, 64), []
    x[::20, 5] = 300.0
    expected = encode_topk(x, W, b, 8, plan="gemm")
    original = module.topk_rows
    monkeypatch.setattr(
        module, "topk_rows", lambda pre, k: widths.append(pre.shape[1]) or original(pre, k)
    )
    assert torch.equal(encode_topk(x, W, b, 8, plan="filter").idx, expected.idx)
    assert widths and max(widths) < 600


@pytest.mark.parametrize("plan", PLANS)
def test_equal_latents_tie_to_the_smallest_column(plan):
    W, b = parameters(16, 1024)
    W, b = W.repeat(4, 1), b.repeat(4)
    codes = encode_topk(rows(50, 16), W, b, 6, plan=plan)
    dense = encode_topk_dense(rows(50, 16), W, b, 6)
    assert torch.equal(codes.to_dense() != 0, dense != 0)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("offset", [0.0, 2.0, 1e6])
def test_a_relu_keeps_every_positive_pre_activation(plan, offset):
    W, b = parameters(32, 2050)
    x = hard_rows(530, 32)
    codes = encode_threshold(x, W, b - offset, plan=plan)
    expected = (x @ W.T + (b - offset)).relu()
    borderline = (expected < 1e-4) & (x @ W.T + (b - offset) > -1e-4)
    agree = (codes.to_dense() > 0) == (expected > 0)
    assert (agree | borderline).all()
    torch.testing.assert_close(codes.to_dense(), expected, rtol=1e-5, atol=2e-4)
    assert (codes.idx.diff()[(codes.row_of(torch.arange(len(codes.idx))).diff() == 0)] > 0).all(), (
        "columns ascend"
    )


@pytest.mark.parametrize("plan", PLANS)
def test_a_threshold_for_each_latent_and_one_for_all(plan):
    W, b = parameters(32, 2048)
    x, theta = rows(530, 32), torch.rand(2048) * 2
    pre = x @ W.T + b
    codes = encode_threshold(x, W, b, theta, plan=plan)
    torch.testing.assert_close(
        codes.to_dense(), torch.where(pre > theta, pre, 0.0), rtol=1e-5, atol=1e-5
    )
    scalar = encode_threshold(x, W, b, torch.tensor(1.5), plan=plan)
    torch.testing.assert_close(
        scalar.to_dense(), torch.where(pre > 1.5, pre, 0.0), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("plan", PLANS)
def test_codes_that_would_be_too_dense_are_not_made(plan):
    W, b = parameters(32, 2048)
    assert encode_threshold(rows(530, 32), W, b, most=100, plan=plan) is None
    assert encode_threshold(rows(530, 32), W, b - 3, most=100, plan=plan) is not None


@pytest.mark.parametrize("B,F,k", [(1, 7, 3), (37, 1000, 5), (130, 64, 64), (2100, 130, 2)])
def test_batchtopk_keeps_exactly_the_largest_of_the_batch(B, F, k):
    W, b = parameters(12, F, torch.float64)
    x = rows(B, 12, torch.float64)
    codes, threshold = encode_batchtopk(x, W, b, k)
    pre = (x @ W.T + b).relu()
    count = min(B * k, int((pre > 0).sum()))
    assert len(codes.vals) == count
    torch.testing.assert_close(threshold, pre.flatten().topk(count).values[-1])
    torch.testing.assert_close(codes.to_dense(), torch.where(pre >= threshold - 1e-12, pre, 0.0))


def test_batchtopk_ties_go_to_the_first_rows_and_a_silent_batch_has_no_threshold():
    W, b = torch.ones(4, 2), torch.zeros(4)
    codes, threshold = encode_batchtopk(torch.ones(3, 2), W, b, 2)
    assert (
        codes.nnz.tolist() == [4, 2, 0]
        and codes.idx.tolist() == [0, 1, 2, 3, 0, 1]
        and threshold == 2.0
    )
    codes, threshold = encode_batchtopk(torch.ones(3, 2), W, b - 5, 2)
    assert codes.nnz.tolist() == [0, 0, 0] and threshold == 0


@pytest.mark.parametrize("plan", PLANS)
def test_no_rows_give_no_codes(plan):
    W, b = parameters(6, 4096)
    assert encode_topk(torch.empty(0, 6), W, b, 8, plan=plan).vals.shape == (0, 8)
    assert len(encode_threshold(torch.empty(0, 6), W, b, plan=plan)) == 0
    assert len(encode_batchtopk(torch.empty(0, 6), W, b, 2)[0]) == 0


@pytest.mark.parametrize("plan", PLANS)
def test_weights_that_are_not_finite_reach_the_codes(plan):
    W, b = parameters(16, 2048)
    W[7, 3] = torch.nan
    codes = encode_topk(rows(5, 16), W, b, 8, plan=plan)
    assert codes.vals.isnan().any(1).all()


@pytest.mark.parametrize("F,k", [(64, 4), (3200, 8), (3200, 32)])
def test_ties_go_to_the_smallest_column(F, k):
    vals, idx = topk_rows(torch.ones(3, F), k)
    assert torch.equal(idx.sort(1).values, torch.arange(k).expand(3, k))
    assert torch.equal(vals, torch.ones(3, k))
    assert idx.shape == (3, k) and topk_rows(torch.full((2, F), torch.nan), k)[0].isnan().all()
    duplicated = torch.tensor([0.5, 2.0, 1.0, 1.0]).repeat(F // 4)[None]
    assert set(topk_rows(duplicated, k)[1][0].tolist()) == set(range(1, 4 * k, 4))


@pytest.mark.parametrize("F,k", [(64, 4), (3200, 8), (3200, 32), (33, 7), (5, 5)])
@pytest.mark.parametrize("whole", [False, True])
def test_a_selection_is_that_of_a_stable_sort_whatever_the_row_holds(F, k, whole):
    """Ties, and NaN before inf: k - 1, k and more of them, and rows of nothing else."""
    generator = torch.Generator().manual_seed(k)
    pre = torch.randn(7, F, generator=generator)
    pre = pre.round() if whole else pre
    broken = [(0, 0), (1, 0), (k - 1, 3), (k, 2), (F, 0), (2, F)]
    for row, (nans, infs) in enumerate(broken):
        columns = torch.randperm(F, generator=generator)
        pre[row, columns[nans : nans + infs]], pre[row, columns[:nans]] = torch.inf, torch.nan
    _, idx = topk_rows(pre, k)
    expected = pre.sort(dim=1, descending=True, stable=True).indices[:, :k]
    assert torch.equal(idx.sort(1).values, expected.sort(1).values)


def test_the_largest_of_a_batch_are_nan_then_inf_then_the_first():
    vals = torch.tensor([torch.inf, 1.0, torch.nan, torch.inf, torch.nan, 5.0])
    entries = torch.arange(6), 6 - torch.arange(6), vals
    for count, kept in ((1, [2]), (2, [2, 4]), (3, [0, 2, 4]), (4, [0, 2, 3, 4])):
        row, column, values = largest(entries, count)
        assert row.tolist() == kept and column.tolist() == [6 - at for at in kept]
        assert torch.equal(values.isnan(), vals[kept].isnan())
    assert largest(entries, 5)[0].tolist() == [0, 2, 3, 4, 5]


@pytest.mark.parametrize("F", [1000, 3200, 4096])
def test_group_selection_equals_a_full_sort(F):
    pre = torch.randn(64, F, generator=torch.Generator().manual_seed(3))
    vals, idx = topk_rows(pre, 32)
    assert torch.equal(
        vals.sort(dim=1, descending=True).values, pre.sort(dim=1, descending=True).values[:, :32]
    )
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


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_row_reaches_its_own_loss_and_leaves_the_others_alone(bad, plan):
    (W_enc, b_enc), W_dec = parameters(6, 4096), torch.randn(4096, 6)
    x = rows(4, 6, torch.float32)
    clean = encode_topk(x, W_enc, b_enc, 8, plan=plan)
    x[2, 1] = bad
    codes = encode_topk(x, W_enc, b_enc, 8, plan=plan)
    x_hat = decode(codes, W_dec, torch.zeros(6))
    assert not torch.isfinite(x_hat[2] - x[2]).all()
    keep = [0, 1, 3]
    assert torch.equal(codes.vals[keep], clean.vals[keep]) and torch.isfinite(x_hat[keep]).all()


@pytest.mark.parametrize("k", [0, 41])
def test_k_outside_the_latents_is_refused(k):
    with pytest.raises(ValueError, match=r"k must lie in \[1, 40\]"):
        encode_topk(torch.randn(2, 6), torch.randn(40, 6), torch.zeros(40), k)


def test_strided_inputs_give_the_same_result():
    W_enc, b_enc = parameters(12, 96)
    x = rows(12, 50, torch.float32).T[5:45]
    strided = encode_topk(x, W_enc.T.contiguous().T, b_enc, 7)
    assert torch.equal(strided.idx, encode_topk(x.contiguous(), W_enc, b_enc, 7).idx)


def test_chunks_of_rows_do_not_change_the_codes(monkeypatch):
    import saekit_kernels.by_product as module

    W_enc, b_enc = parameters(12, 96, torch.float64)
    x = rows(50, 12, torch.float64)
    whole = encode_topk(x, W_enc, b_enc, 7)
    monkeypatch.setattr(module, "CHUNK_ROWS", 16)
    chunked = encode_topk(x, W_enc, b_enc, 7)
    assert torch.equal(whole.idx, chunked.idx)
    torch.testing.assert_close(whole.vals, chunked.vals)


@pytest.mark.parametrize("largest", [1000.3, 50.1])
def test_the_filter_keeps_small_values_beside_a_large_bias(largest):
    """The bias passes through two bf16 numbers; what that loses must not hide a positive value in a
    row of almost nothing."""
    for seed in range(20):
        torch.manual_seed(seed)
        W, b, x = torch.randn(512, 32), torch.full((512,), -1.0), torch.randn(40, 32)
        b[3], b[100:110] = largest, torch.rand(10) * 1e-3
        x[0], x[1] = 0, 1e-4 * torch.randn(32)
        by_filter, by_gemm = (
            encode_threshold(x[:2], W, b, plan=plan).to_dense() for plan in PLANS[::-1]
        )
        certain = by_gemm > 1e-6 * largest
        assert (by_filter > 0)[certain].all()
        topk = [encode_topk(x, W, b, 8, plan=plan).to_dense()[0] > 0 for plan in PLANS]
        assert torch.equal(*topk)


def test_a_row_of_a_thousand_times_the_usual_norm_is_exact_and_disturbs_no_other():
    W, b = parameters(64, 4096)
    x = rows(300, 64)
    alone = encode_topk(x, W, b, 8, plan="filter")
    x[7] *= 1000
    beside = encode_topk(x, W, b, 8, plan="filter")
    others = torch.arange(300) != 7
    assert torch.equal(beside.idx[others], alone.idx[others])
    assert torch.equal(beside.idx[7], encode_topk(x[7:8], W, b, 8, plan="gemm").idx[0])


@pytest.mark.parametrize("plan", PLANS)
def test_a_workspace_serves_different_widths(plan):
    workspace, x = Workspace(), rows(20, 16)
    for F in (1000, 995, 1000):
        W, b = parameters(16, F)
        again, fresh = (encode_topk(x, W, b, 9, w, plan) for w in (workspace, None))
        assert torch.equal(again.idx, fresh.idx) and again.idx.max() < F


@pytest.mark.parametrize("plan", PLANS)
def test_autocast_changes_nothing(plan):
    W, b = parameters(64, 4096)
    x = hard_rows(300, 64)
    x[5] = torch.inf
    plain = encode_topk(x, W, b, 8, plan=plan)
    with torch.autocast("cpu", torch.bfloat16):
        cast = encode_topk(x, W, b, 8, plan=plan)
    assert torch.equal(cast.idx, plain.idx) and cast.vals.dtype == torch.float32


def test_a_bad_row_does_not_change_how_dense_the_first_rows_look():
    W, b = parameters(32, 2048)
    x = rows(530, 32)
    most = 1.2 * encode_threshold(x, W, b).nnz.float().mean().item()
    assert encode_threshold(x, W, b, most=most, plan="filter") is not None
    x[-1, 0] = torch.inf
    assert encode_threshold(x, W, b, most=most, plan="filter") is not None


def test_unknown_plans_are_refused():
    with pytest.raises(ValueError, match="plan filtr: choose"):
        encode_topk(rows(2, 4), *parameters(4, 8), 2, plan="filtr")


@pytest.mark.parametrize("plan", PLANS)
def test_chunks_on_threads_give_the_same_codes(plan, monkeypatch, two_threads):
    import saekit_kernels.by_product as module

    W, b = parameters(64, 4096)
    x = hard_rows(2600, 64)

    def encoded():
        return (
            encode_topk(x, W, b, 8, plan=plan),
            encode_threshold(x, W, b - 2, plan=plan),
            encode_batchtopk(x, W, b, 8, plan=plan)[0],
        )

    alone = encoded()
    monkeypatch.setattr(module, "LEAST_THREADED", 0)
    for a, c in zip(alone, encoded()):
        assert torch.equal(a.idx, c.idx)
        # products split over cores add in another order
        torch.testing.assert_close(a.vals, c.vals, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("share", [0.3, 0.99, 1.0, 1.5])
def test_a_guessed_bound_changes_nothing_but_the_time(plan, share):
    W, b = parameters(32, 4096)
    x = rows(300, 32)
    plain, threshold = encode_batchtopk(x, W, b, 8)
    codes, again = encode_batchtopk(x, W, b, 8, plan=plan, bound=share * float(threshold))
    assert torch.equal(codes.nnz, plain.nnz) and torch.equal(codes.idx, plain.idx)
    torch.testing.assert_close(codes.vals, plain.vals)
    torch.testing.assert_close(again, threshold)


@pytest.mark.parametrize("exponent", [-30, -62, -75, -100, -125, 60])
def test_the_filter_finds_the_largest_of_tiny_and_of_huge_weights(exponent):
    """Squares of such weights leave fp32; half of the latents are rounded up by bf16, the other
    half down."""
    generator = torch.Generator().manual_seed(4)
    F, k, size = 96, 6, 2.0**exponent
    W = torch.rand(F, 3, generator=generator) * 2**-7 + 1
    W[::2, 1] -= 2**-8
    W[:, 2] = -1.9
    W = W * size
    x = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.5, 0.25], [0.5, 2.0, 1.0]])
    expected = (x.double() @ W.double().T).topk(k, dim=1).indices.sort(1).values
    for plan in ("filter", "gemm"):
        assert torch.equal(
            encode_topk(x, W, torch.zeros(F), k, plan=plan).idx.long().sort(1).values, expected
        ), plan


@pytest.mark.parametrize("plan", ["filter", "gemm"])
@pytest.mark.parametrize(
    "weights,rows",
    [
        (1e-17, 1.0),
        (1e-20, 1e15),
        (1e-30, 1.0),
        (1e-38, 1.0),
        (1e30, 1.0),
        (1.0, 1e18),
        (1.0, 1e-30),
    ],
)
def test_the_largest_are_found_whatever_the_size_of_weights_and_rows(plan, weights, rows):
    generator = torch.Generator().manual_seed(6)
    W, x = (
        torch.randn(512, 16, generator=generator) * weights,
        torch.randn(5, 16, generator=generator) * rows,
    )
    W[::2] *= 1e-3  # norms that differ
    codes = encode_topk(x, W, torch.zeros(512), 6, plan=plan)
    expected = (x.double() @ W.double().T).topk(6, dim=1).indices.sort(1).values
    assert torch.equal(codes.idx.long(), expected)


@pytest.mark.parametrize("bound", ["none", "right", "too high"])
def test_the_filter_finds_the_largest_of_a_batch_without_fp32_products(bound, monkeypatch):
    import saekit_kernels.encode as module

    W, b = parameters(64, 4096)
    W *= torch.logspace(-1, 1, 4096)[torch.randperm(4096, generator=torch.Generator())][:, None]
    x = hard_rows(600, 64)
    expected, threshold = encode_batchtopk(x, W, b, 8, plan="gemm")
    guess = {"none": 0.0, "right": 0.8, "too high": 3.0}[bound] * float(threshold)
    monkeypatch.setattr(module, "batch_by_product", None)
    codes, found = encode_batchtopk(x, W, b, 8, plan="filter", bound=guess)
    assert torch.equal(codes.ptr, expected.ptr) and torch.equal(codes.idx, expected.idx)
    torch.testing.assert_close(codes.vals, expected.vals, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found, threshold, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), 1e4])
def test_a_row_that_the_filter_leaves_out_competes_in_fp32(bad, monkeypatch):
    """One row of huge norm must not send the whole batch through fp32 products."""
    import saekit_kernels.by_filter as module

    W, b = parameters(64, 4096)
    x = rows(600, 64)
    x[7] = bad * x[7] if bad == bad else bad
    expected = (
        encode_batchtopk(x, W, b, 8, plan="gemm")[0],
        encode_threshold(x, W, b, 1.5, plan="gemm"),
    )
    monkeypatch.setattr(module, "above_by_product", None)
    by_filter = (
        encode_batchtopk(x, W, b, 8, plan="filter", bound=1e-3)[0],
        encode_threshold(x, W, b, 1.5, plan="filter"),
    )
    for codes, wanted in zip(by_filter, expected):
        assert torch.equal(codes.ptr, wanted.ptr) and torch.equal(codes.idx, wanted.idx)
        torch.testing.assert_close(codes.vals, wanted.vals, rtol=1e-5, atol=1e-2, equal_nan=True)


@pytest.mark.parametrize("F,k", [(2048, 8), (4096, 64), (1000, 5), (33, 33)])
@pytest.mark.parametrize("bias", [1.0, 40.0])
@pytest.mark.parametrize("plan", PLANS)
def test_the_largest_magnitudes_are_those_of_fp64_with_their_signs(F, k, bias, plan):
    W, b = parameters(40, F)
    W *= torch.logspace(-1, 1, F)[torch.randperm(F)][:, None]  # norms of latents over two decades
    x, b = hard_rows(300, 40), bias * b
    dense = encode_abs_topk(x, W, b, k, plan=plan).to_dense()
    exact = x.double() @ W.double().T + b.double()
    size = x.double().norm(dim=1, keepdim=True) * W.double().norm(dim=1).max() + b.abs().max()
    slack, chosen = (2.0**-20 * size).expand_as(exact), dense != 0
    assert chosen.sum(1).tolist() == [k] * 300
    assert ((dense - exact).abs() <= slack)[chosen].all()
    kth = exact.abs().topk(k, dim=1).values[:, -1:]
    assert (exact.abs() >= kth - slack)[chosen].all()
    assert (dense < 0).any() and (dense > 0).any()


def test_magnitudes_are_found_by_the_filter_and_broken_rows_in_fp32(monkeypatch):
    from saekit_kernels import by_filter

    W, b = parameters(40, 4096)
    x = hard_rows(300, 40)
    x[3, 1], x[5], x[7] = torch.nan, torch.inf, 0.0
    redone, original = [], by_filter.signed_topk_rows
    monkeypatch.setattr(
        by_filter, "signed_topk_rows", lambda pre, k: redone.append(len(pre)) or original(pre, k)
    )
    codes = encode_abs_topk(x, W, b, 8, plan="filter")
    assert 2 <= sum(redone) <= 4
    by_gemm = encode_abs_topk(x, W, b, 8, plan="gemm")
    assert torch.equal(codes.idx, by_gemm.idx) and torch.equal(codes.nnz, by_gemm.nnz)
    torch.testing.assert_close(codes.vals, by_gemm.vals, equal_nan=True, rtol=1e-5, atol=1e-5)


def test_magnitudes_of_equal_latents_tie_to_the_smallest_column_and_zeros_are_no_codes():
    W, b = torch.ones(64, 2), torch.zeros(64)
    W[1::2] *= -1
    codes = encode_abs_topk(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), W, b, 3)
    assert codes.idx[0].tolist() == [0, 1, 2] and codes.vals[0].tolist() == [2.0, -2.0, 2.0]
    assert codes.nnz.tolist() == [3, 0]
    with pytest.raises(ValueError, match="k must lie"):
        encode_abs_topk(torch.ones(1, 2), W, b, 65)
    assert len(encode_abs_topk(torch.ones(0, 2), W, b, 3)) == 0
