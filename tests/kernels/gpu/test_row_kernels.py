"""Decoder, row program and transpose against dense fp64, worked out here with plain torch. B rows,
D width, F latents, K entries per row."""

from __future__ import annotations

import pytest
import torch
from saekit_kernels.codes import SparseCodes
from saekit_kernels.gpu.decode import decode_gradients, decode_mse, split_width
from saekit_kernels.gpu.transpose import BLOCKS, row_blocks, transpose_codes
from sparse_rows import close, dense, device, end_to_end, normal, random_codes

needs_gpu = pytest.mark.skipif(device == "cpu", reason="needs a CUDA device")

# (B, D, F, K): single row, width and latent; widths beside powers of two and warps; K of 1, wider
# than F, not a multiple of the unroll.
SHAPES = [
    (1, 1, 1, 1),
    (3, 33, 7, 5),
    (13, 96, 130, 32),
    (5, 300, 40, 6),
    (4, 768, 130, 9),
    (2, 1100, 30, 3),
    (9, 31, 20, 33),
]
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


# --------------------------------------------------------------------------------------------------
#  decoder


@pytest.mark.parametrize("priced", [False, True])
@pytest.mark.parametrize("dtype", FLOATS[:2])
@pytest.mark.parametrize(("B", "D", "F", "K"), SHAPES)
def test_row_program_gives_loss_and_every_gradient_of_dense_autograd(B, D, F, K, dtype, priced):
    codes, W, b, x = (
        random_codes(B, F, K),
        normal(F, D, dtype=dtype),
        normal(D),
        normal(B, D, dtype=dtype),
    )
    penalty = torch.rand(F).to(device) if priced else None
    got = decode_mse(codes, W, b, x, penalty_F=penalty)

    z = dense(codes, codes.vals).requires_grad_()
    x_hat = z @ W.double() + b.double()
    x_hat.retain_grad()
    loss = (x_hat - x.double()).square().sum(1)
    l1 = (z * (penalty.double() if priced else 0.0)).sum(1)
    (loss + l1).mean().backward()
    close(got.residual_BD, x_hat - x.double(), K)
    close(got.loss_B, loss, K * D)
    close(got.g_BD, x_hat.grad, K)
    close(dense(codes, got.dvals_BK).float(), z.grad * (z > 0), K * D)
    assert (got.dvals_BK[~codes.active()] == 0).all()
    if priced:
        close(got.l1_B, l1, K)
    else:
        assert got.l1_B is None


@pytest.mark.parametrize(("B", "D", "F", "K"), [(1, 1, 1, 1), (13, 96, 130, 32), (6, 33, 300, 290)])
def test_ragged_rows_give_the_bits_of_padded_ones(B, D, F, K):
    codes, W, b, x = random_codes(B, F, K), normal(F, D), normal(D), normal(B, D)
    ragged, penalty = end_to_end(codes), torch.rand(F).to(device)
    padded, got = (decode_mse(c, W, b, x, penalty_F=penalty) for c in (codes, ragged))
    for name in ("loss_B", "residual_BD", "g_BD", "l1_B"):
        assert torch.equal(getattr(got, name), getattr(padded, name))
    assert torch.equal(got.dvals_BK, padded.dvals_BK[codes.active()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_without_the_residual(dtype):
    codes, W, b, x = random_codes(6, 30, 7), normal(30, 50), normal(50), normal(6, 50)
    full, got = decode_mse(codes, W, b, x), decode_gradients(codes, W, b, x, dtype)
    assert got.residual_BD.shape == (0, 50) and got.g_BD.dtype == dtype
    assert torch.equal(got.loss_B, full.loss_B) and torch.equal(got.dvals_BK, full.dvals_BK)
    # triton's interpreter truncates to bf16
    tolerance = 0 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(got.g_BD.float(), full.g_BD, rtol=tolerance, atol=0)


def test_ragged_rows_without_entries():
    codes, W, b, x = end_to_end(random_codes(3, 20, 4)), normal(20, 40), normal(40), normal(3, 40)
    codes.ptr, codes.vals, codes.idx = codes.ptr * 0, codes.vals[:0], codes.idx[:0]
    got, transpose = decode_mse(codes, W, b, x), transpose_codes(codes)
    assert torch.equal(got.residual_BD, b - x) and got.dvals_BK.shape == (0,)
    assert not transpose.ptr.any() and len(transpose.pos) == len(transpose.row) == 0


def test_without_gradients_loss_and_residual_are_the_same_bits():
    codes, W, b, x = random_codes(6, 30, 7), normal(30, 50), normal(50), normal(6, 50)
    full, bare = decode_mse(codes, W, b, x), decode_mse(codes, W, b, x, need_grad=False)
    assert bare.g_BD is None and bare.dvals_BK is None
    assert torch.equal(full.loss_B, bare.loss_B) and torch.equal(full.residual_BD, bare.residual_BD)


def test_a_row_without_codes_is_the_bias():
    codes, W, b, x = random_codes(3, 20, 4, full=True), normal(20, 40), normal(40), normal(3, 40)
    codes.nnz[1], codes.vals[1], codes.idx[1] = 0, 0.0, 0
    got = decode_mse(codes, W, b, x)
    assert torch.equal(got.residual_BD[1], b - x[1])
    assert (got.dvals_BK[1] == 0).all() and (got.dvals_BK[[0, 2]] != 0).all()


def test_padding_does_not_read_latent_0():
    codes, W, b, x = random_codes(5, 20, 7), normal(20, 40), normal(40), normal(5, 40)
    # nobody uses latent 0; a double 1 does not matter to the decoder
    codes.idx[codes.active() & (codes.idx == 0)] = 1
    expected = decode_mse(codes, W, b, x)
    W[0] = torch.nan
    got = decode_mse(codes, W, b, x)
    assert torch.equal(got.residual_BD, expected.residual_BD) and torch.equal(
        got.dvals_BK, expected.dvals_BK
    )


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_broken_row_of_x_or_of_codes_breaks_that_row_alone(bad):
    codes, W, b, x = random_codes(5, 20, 6, full=True), normal(20, 33), normal(33), normal(5, 33)
    clean = decode_mse(codes, W, b, x)
    x[1, 7], codes.vals[3, 2] = bad, bad
    got = decode_mse(codes, W, b, x)
    broken = torch.tensor([False, True, False, True, False], device=device)
    assert not got.loss_B[broken].isfinite().any()
    for name in ("loss_B", "residual_BD", "g_BD", "dvals_BK"):
        assert torch.equal(getattr(got, name)[~broken], getattr(clean, name)[~broken])
    assert got.dvals_BK[1].isfinite().logical_not().all()


def test_a_code_of_value_0_gets_no_gradient_and_no_price():
    codes, W, b, x = random_codes(4, 20, 6, full=True), normal(20, 33), normal(33), normal(4, 33)
    codes.vals[2, 1] = 0.0
    penalty = torch.ones(20, device=device)
    got = decode_mse(codes, W, b, x, penalty_F=penalty)
    assert got.dvals_BK[2, 1] == 0 and (got.dvals_BK[2, [0, 2, 3, 4, 5]] != 0).all()
    close(got.l1_B, codes.vals.double().sum(1), 6)


def test_empty_batch():
    codes, W, b = random_codes(0, 20, 6), normal(20, 33), normal(33)
    got = decode_mse(codes, W, b, normal(0, 33), penalty_F=torch.ones(20, device=device))
    assert (
        got.loss_B.shape == (0,)
        and got.residual_BD.shape == (0, 33)
        and got.l1_B.shape == (0,)
        and got.g_BD is None
    )


def test_views_give_the_bits_of_their_copies():
    codes, b = random_codes(6, 20, 5), normal(40)
    wide_W, wide_x = normal(20, 60), normal(12, 60)
    views = [(wide_W[:, 7:47], wide_x[::2, 3:43]), (normal(40, 20).T, normal(40, 6).T)]
    for W, x in views:
        view, copy = (
            decode_mse(codes, W, b, x),
            decode_mse(codes, W.contiguous(), b, x.contiguous()),
        )
        assert torch.equal(view.g_BD, copy.g_BD) and torch.equal(view.dvals_BK, copy.dvals_BK)
    strided = SparseCodes(codes.vals.T.contiguous().T, codes.idx.T.contiguous().T, codes.nnz, 20)
    assert torch.equal(decode_mse(strided, W, b, x).dvals_BK, decode_mse(codes, W, b, x).dvals_BK)


def test_twice_the_same_bits():
    codes, W, b, x = (
        random_codes(8, 130, 32),
        normal(130, 96, dtype=torch.bfloat16),
        normal(96),
        normal(8, 96),
    )
    first, second = decode_mse(codes, W, b, x), decode_mse(codes, W, b, x)
    for name in ("loss_B", "residual_BD", "g_BD", "dvals_BK"):
        assert torch.equal(getattr(first, name), getattr(second, name))


def test_shapes_that_do_not_fit_are_refused():
    codes, W, b, x = random_codes(4, 20, 5), normal(20, 8), normal(8), normal(4, 8)
    for call in (
        lambda: decode_mse(codes, W[:19], b, x),
        lambda: decode_mse(codes, W, b[:7], x),
        lambda: decode_mse(codes, W, b, x[:3]),
        lambda: decode_mse(codes, W, b, x, penalty_F=torch.ones(19, device=device)),
    ):
        with pytest.raises(ValueError, match="must have shape"):
            call()


def test_two_blocks_cover_every_width_and_waste_little():
    for d in range(1, 9000):
        head, tail = split_width(d, 32)
        assert head + tail >= d and head & (head - 1) == 0 == tail & (tail - 1)
        assert min(head, tail) >= 32 and (head + tail < 2 * d or d < 64)
    assert [split_width(d, 32) for d in (768, 2304, 4096)] == [
        (512, 256),
        (2048, 256),
        (2048, 2048),
    ]


# -- transpose -------------------------------------------------------------------------------------


def assert_transposed(codes: SparseCodes):
    got, used = transpose_codes(codes), int(codes.nnz.sum())
    entries = sorted(
        (int(codes.idx[b, t]), b * codes.capacity + t)
        for b, n in enumerate(codes.nnz.tolist())
        for t in range(n)
    )
    expected = torch.tensor([pos for _, pos in entries], dtype=torch.int32)
    assert torch.equal(got.pos[:used].cpu(), expected)
    assert torch.equal(
        got.ptr.cpu(),
        torch.tensor(
            [sum(j < f for j, _ in entries) for f in range(codes.F + 1)], dtype=torch.int32
        ),
    )
    spec = codes.transpose()
    assert torch.equal(got.ptr, spec.ptr) and torch.equal(got.pos[:used], spec.pos[:used])
    assert got.pos.shape == spec.pos.shape and got.pos.dtype == got.ptr.dtype == torch.int32
    # the padding can be gathered with
    assert ((got.pos >= 0) & (got.pos < max(codes.vals.numel(), 1))).all()


@pytest.mark.parametrize(
    ("B", "F", "K"),
    [(1, 1, 1), (3, 7, 5), (64, 130, 32), (130, 1000, 3), (70, 33, 33), (5, 20, 40), (97, 2, 1)],
)
@pytest.mark.parametrize("full", [False, True])
def test_transpose_equals_the_stable_sort(B, F, K, full):
    assert_transposed(random_codes(B, F, K, full=full))


@pytest.mark.parametrize(("B", "F", "K"), [(1, 1, 1), (70, 40, 9), (3, 700, 600)])
def test_transpose_of_ragged_rows_has_the_row_of_every_entry(B, F, K):
    codes = end_to_end(random_codes(B, F, K))
    made, expected = transpose_codes(codes), codes.transpose()
    assert torch.equal(made.ptr, expected.ptr) and torch.equal(made.pos, expected.pos)
    assert torch.equal(made.row, codes.row_of(expected.pos.long()))


def test_transpose_of_rows_wider_than_one_block_of_entries():
    assert_transposed(random_codes(34, 700, 650))


def test_transpose_of_a_latent_in_every_row():
    codes = random_codes(100, 50, 4, full=True)
    codes.idx[:, 0] = 0
    codes.idx[:, 1:] = codes.idx[:, 1:].clamp_min(1).sort(dim=1).values
    keep = torch.cat(
        [
            torch.ones(100, 1, dtype=torch.bool, device=device),
            codes.idx[:, 1:] != codes.idx[:, :-1],
        ],
        1,
    ).all(1)
    codes = SparseCodes(codes.vals[keep], codes.idx[keep], codes.nnz[keep], 50)
    assert len(codes) > 64 and (codes.idx == 0).sum() == len(codes)
    assert_transposed(codes)


def test_transpose_of_nothing():
    for B, K in ((0, 5), (7, 5), (40, 1)):
        codes = random_codes(B, 9, K)
        codes.nnz.zero_()
        got = transpose_codes(codes)
        assert torch.equal(
            got.ptr, torch.zeros(10, dtype=torch.int32, device=device)
        ) and got.pos.shape == (B * K,)


def test_more_rows_than_blocks_bound_the_histograms():
    for B in (1, 31, 33, 8192, 32768, 100_000):
        for F in (1, 24_576, 131_072, 2**24):
            blocks, rows = row_blocks(B, F)
            assert 1 <= blocks <= BLOCKS and (blocks - 1) * rows < B <= blocks * rows
            assert blocks * F * 4 <= 2**28 or blocks == 1
    codes = random_codes(300, 12, 3)
    assert row_blocks(300, 12)[0] > 1
    assert_transposed(codes)


def test_positions_beyond_32_bits_are_refused():
    vals, idx, nnz = (
        torch.zeros(1, 1),
        torch.zeros(1, 1, dtype=torch.int32),
        torch.zeros(1, dtype=torch.int32),
    )
    codes = SparseCodes(vals.expand(2**16, 2**15), idx.expand(2**16, 2**15), nnz.expand(2**16), 5)
    with pytest.raises(ValueError, match=r"2\^31"):
        transpose_codes(codes)


# -- on a device -----------------------------------------------------------------------------------


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    ("D", "F", "K"), [(768, 24_576, 32), (2304, 73_728, 64), (4096, 32_768, 256)]
)
def test_real_sizes(D, F, K):
    B = 8192
    idx = torch.rand(B, F, device=device).topk(K, dim=1).indices.sort(dim=1).values.int()
    codes = SparseCodes(
        torch.rand(B, K, device=device),
        idx,
        torch.full((B,), K, dtype=torch.int32, device=device),
        F,
    )
    codes.nnz[::7] = K // 2
    codes.vals[::7, K // 2 :], codes.idx[::7, K // 2 :] = 0.0, 0
    W, b, x = normal(F, D, dtype=torch.bfloat16), normal(D), normal(B, D, dtype=torch.bfloat16)
    got, again = decode_mse(codes, W, b, x), decode_mse(codes, W, b, x)
    rows = slice(0, 256)
    chosen = W[codes.idx[rows].long()].double()
    residual = (codes.vals[rows].double()[:, None] @ chosen)[:, 0] + b.double() - x[rows].double()
    dvals = (chosen @ (residual * 2 / B)[:, :, None])[:, :, 0] * codes.active()[rows]
    close(got.residual_BD[rows], residual, K)
    close(got.loss_B[rows], residual.square().sum(1), K * D)
    torch.testing.assert_close(
        got.dvals_BK[rows].double(), dvals, rtol=1e-4, atol=1e-5 * dvals.abs().max().item()
    )
    assert torch.equal(got.dvals_BK, again.dvals_BK) and torch.equal(
        got.residual_BD, again.residual_BD
    )
    mine, spec, used = transpose_codes(codes), codes.transpose(), int(codes.nnz.sum())
    assert torch.equal(mine.ptr, spec.ptr) and torch.equal(mine.pos[:used], spec.pos[:used])
