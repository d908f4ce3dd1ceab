"""Weight gradients and the fused optimiser step against dense fp64 autograd and torch's own
optimisers.

B rows, D width, F latents, K codes a row.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as nnF
from saekit_kernels.codes import SparseCodes
from saekit_kernels.gpu.decode import decode_mse
from saekit_kernels.gpu.grad import (
    _chunk_bound,
    plan_chunks,
    sparse_weight_grad,
    sparse_weight_grad_dual,
)
from saekit_kernels.gpu.transpose import transpose_codes
from saekit_kernels.optim import AdamSettings, FeatureState, feature_step
from sparse_rows import close, dense, device, end_to_end, normal, random_codes

needs_gpu = pytest.mark.skipif(device == "cpu", reason="needs a CUDA device")

# (B, D, F, K): single everything; widths beside slices of 256; fewer latents than a program walks;
# latents that never fire.
SHAPES = [
    (1, 1, 1, 1),
    (3, 33, 7, 5),
    (13, 96, 130, 12),
    (5, 300, 40, 6),
    (130, 16, 20, 4),
    (40, 520, 9, 9),
]


# --------------------------------------------------------------------------------------------------
#  weight gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("B", "D", "F", "K"), SHAPES)
def test_weight_gradients_are_dense_products(B, D, F, K, dtype):
    codes, x, g, dvals = (
        random_codes(B, F, K),
        normal(B, D, dtype=dtype),
        normal(B, D),
        normal(B, K),
    )
    dW_enc, dW_dec, db = sparse_weight_grad_dual(codes, dvals, x, codes.vals, g)
    close(dW_enc, dense(codes, dvals).T @ x.double(), B)
    close(dW_dec, dense(codes, codes.vals).T @ g.double(), B)
    close(db, dense(codes, dvals).sum(0), B)
    assert torch.equal(sparse_weight_grad(codes, dvals, x), dW_enc)
    assert (dW_enc[codes.transpose().counts() == 0] == 0).all()


@pytest.mark.parametrize("by_device", [True, False])
@pytest.mark.parametrize(("B", "D", "F", "K"), [(1, 1, 1, 1), (13, 96, 130, 12), (300, 16, 3, 2)])
def test_ragged_codes_give_the_bits_of_padded_ones(B, D, F, K, by_device):
    codes, x, g, dvals = random_codes(B, F, K), normal(B, D), normal(B, D), normal(B, K)
    ragged = end_to_end(codes)
    if by_device:
        ragged._transpose = transpose_codes(ragged)
    expected = sparse_weight_grad_dual(codes, dvals, x, codes.vals, g)
    got = sparse_weight_grad_dual(ragged, dvals[codes.active()], x, ragged.vals, g)
    assert all(torch.equal(a, b) for a, b in zip(got, expected))
    # A row of its own for every entry: here those of the batch, backwards.
    row = ragged.row_of(torch.arange(len(ragged.idx), device=device))
    got = sparse_weight_grad(ragged, ragged.vals, g.flip(0), B - 1 - row)
    assert torch.equal(got, expected[1])


# Counts beside the cuts: 256 entries are one chunk, 257 two, 512 two, 513 three; 0 latents fire in
# no row.
@pytest.mark.parametrize(
    "counts", [(256, 257, 0, 512, 513), (600, 0, 1), (1, 300, 300, 300, 2, 600)]
)
def test_latents_with_more_entries_than_a_chunk(counts):
    B, D, F = 600, 37, len(counts)
    fires = torch.stack([torch.randperm(B) < n for n in counts], 1)
    rank = fires.cumsum(1) - 1
    idx = torch.zeros(B, F, dtype=torch.int32)
    rows, columns = fires.nonzero(as_tuple=True)
    idx[rows, rank[rows, columns]] = columns.int()
    nnz = fires.sum(1, dtype=torch.int32)
    vals = torch.rand(B, F) * (torch.arange(F) < nnz[:, None])
    codes = SparseCodes(vals.to(device), idx.to(device), nnz.to(device), F)
    chunks = plan_chunks(codes)
    assert (
        chunks.length == 256
        and int(chunks.first[-1]) == sum(max(-(-n // 256) - 1, 0) for n in counts) <= chunks.slots
    )
    x, g, dvals = normal(B, D), normal(B, D), normal(B, F)
    dW_enc, dW_dec, db = sparse_weight_grad_dual(codes, dvals, x, codes.vals, g)
    close(dW_enc, dense(codes, dvals).T @ x.double(), B)
    close(dW_dec, dense(codes, codes.vals).T @ g.double(), B)
    close(db, dense(codes, dvals).sum(0), B)
    close(sparse_weight_grad(codes, dvals, g), dense(codes, dvals).T @ g.double(), B)
    again = sparse_weight_grad_dual(codes, dvals, x, codes.vals, g)
    assert all(torch.equal(a, b) for a, b in zip(again, (dW_enc, dW_dec, db)))


def test_chunk_slots_suffice_for_every_distribution_and_stay_bounded():
    for B in (0, 1, 256, 257, 600, 8192, 100_000):
        for K in (1, 32, 2048):
            for F in (2048, 24_576, 131_072):
                length, slots = _chunk_bound(B, B * K, F)
                assert slots <= max(F, 4096) and length >= 256
                if B <= length:
                    assert slots == 0
                    continue
                # As many latents as the entries allow with n of them each, for the n that waste the
                # most of a chunk and the fullest.
                for n in {length + 1, 2 * length + 1, B}:
                    latents = min(B * K // n, F) if n <= B else 0
                    assert latents * (-(-n // length) - 1) <= slots


def test_a_broken_row_reaches_its_latents_alone():
    codes, x, dvals = random_codes(20, 30, 4, full=True), normal(20, 40), normal(20, 4)
    clean = sparse_weight_grad(codes, dvals, x)
    x[7, 3] = torch.nan
    got = sparse_weight_grad(codes, dvals, x)
    hit = torch.zeros(30, 40, dtype=torch.bool, device=device)
    hit[codes.idx[7].long(), 3] = True
    assert torch.equal(got.isnan(), hit) and torch.equal(got[~hit], clean[~hit])


def test_gradients_of_views_types_and_nothing():
    codes, wide, dvals = random_codes(12, 30, 4), normal(24, 60), normal(4, 12).T
    x = wide[::2, 5:38]
    expected = sparse_weight_grad(codes, dvals.contiguous(), x.contiguous())
    assert torch.equal(sparse_weight_grad(codes, dvals, x), expected)
    assert torch.equal(sparse_weight_grad(codes, dvals, x.T.contiguous().T), expected)
    for empty in (
        random_codes(0, 30, 4),
        SparseCodes(codes.vals[:, :0], codes.idx[:, :0], codes.nnz * 0, 30),
    ):
        dW = sparse_weight_grad(empty, empty.vals, x[: len(empty)])
        assert dW.shape == (30, 33) and (dW == 0).all()
        assert all(
            (t == 0).all()
            for t in sparse_weight_grad_dual(
                empty, empty.vals, x[: len(empty)], empty.vals, x[: len(empty)]
            )
        )


def test_gradient_arguments_that_do_not_fit_are_refused():
    codes, x = random_codes(6, 30, 4), normal(6, 8)
    with pytest.raises(ValueError, match="shape of the codes"):
        sparse_weight_grad(codes, codes.vals[:, :3], x)
    with pytest.raises(ValueError, match="rows must have shape"):
        sparse_weight_grad(codes, codes.vals, x[:5])
    with pytest.raises(ValueError, match="one width"):
        sparse_weight_grad_dual(codes, codes.vals, x, codes.vals, x[:, :7])
    one = torch.zeros(1, 1)
    wide = SparseCodes(
        one.expand(2**16, 2**15), one.int().expand(2**16, 2**15), one[0].int().expand(2**16), 5
    )
    with pytest.raises(ValueError, match=r"2\^31"):
        sparse_weight_grad(wide, wide.vals, one.expand(2**16, 3))


# -- step ------------------------------------------------------------------------------------------


def made_state(D: int, F: int, dtype: torch.dtype, unit: bool) -> FeatureState:
    W_enc, W_dec, b_enc = normal(F, D) / D**0.5, normal(F, D) / D**0.5, normal(F) * 0.1
    W_dec = nnF.normalize(W_dec, dim=1) if unit else W_dec
    W_enc, b_enc, W_dec = (t.to(dtype) for t in (W_enc, b_enc, W_dec))
    zeros = [torch.zeros_like(t) for t in (W_enc, W_enc, b_enc, b_enc, W_dec, W_dec)]
    return FeatureState(
        W_enc,
        b_enc,
        W_dec,
        *zeros,
        W_enc.bfloat16(),
        W_dec.half(),
        torch.full((F,), 5, device=device),
    )


def copy_of(state: FeatureState) -> FeatureState:
    return FeatureState(
        **{name: None if t is None else t.clone() for name, t in vars(state).items()}
    )


def on_support(z_BF: torch.Tensor, support: SparseCodes) -> SparseCodes:
    vals = z_BF.gather(1, support.idx.long()).where(support.active(), 0.0)
    return SparseCodes(vals, support.idx, support.nnz, support.F)


STEP_SHAPES = [(1, 1, 1, 1), (3, 33, 7, 5), (13, 96, 37, 7), (5, 300, 13, 6), (130, 16, 20, 4)]
SETTINGS = AdamSettings(lr=1e-2, beta1=0.9, beta2=0.99, eps=1e-3, step=1, unit_decoder=True)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("coefficient", [0.0, 0.3])
@pytest.mark.parametrize(("B", "D", "F", "K"), STEP_SHAPES)
def test_three_steps_are_dense_autograd_with_torch_adam(B, D, F, K, coefficient, unit, backend):
    """loss = mean_b [sum_d (x_hat - x)^2 + coefficient * sum_j z_j ||w_j||], linear encoder on a
    given support, new rows in every step."""
    dtype = torch.float64 if backend == "torch" else torch.float32
    state, b_dec = made_state(D, F, dtype, unit), normal(D)
    parameters = [
        t.double().clone().requires_grad_() for t in (state.W_enc, state.b_enc, state.W_dec)
    ]
    W_enc, b_enc, W_dec = parameters
    adam = torch.optim.Adam(
        parameters, lr=SETTINGS.lr, betas=(SETTINGS.beta1, SETTINGS.beta2), eps=SETTINGS.eps
    )
    idle = torch.full((F,), 5, device=device)
    for step in range(1, 4):
        support, x = random_codes(B, F, K, seed=step), normal(B, D)
        fires = dense(support, torch.ones_like(support.vals)) > 0

        z = (x.double() @ W_enc.T + b_enc) * fires
        squares = (z @ W_dec + b_dec.double() - x.double()).square().sum(1)
        (squares + coefficient * (z * W_dec.norm(dim=1)).sum(1)).mean().backward()
        if unit:
            W_dec.grad -= (W_dec.grad * W_dec.detach()).sum(1, keepdim=True) * W_dec.detach()
        adam.step()
        adam.zero_grad()
        if unit:
            W_dec.data = nnF.normalize(W_dec.data, dim=1)

        codes = on_support(x.to(dtype) @ state.W_enc.T + state.b_enc, support)
        g, dvals = loss_gradients(
            codes, state.W_dec, b_dec.to(dtype), x.to(dtype), coefficient * state.W_dec.norm(dim=1)
        )
        settings = replace(SETTINGS, step=step, unit_decoder=unit, norm_penalty=coefficient / B)
        feature_step(state, codes, dvals, x, g, settings, backend)

        idle = torch.where(fires.any(0), 0, idle + B)
        for name, expected in zip(("W_enc", "b_enc", "W_dec"), parameters):
            tolerance = 1e-11 if backend == "torch" else 1e-5
            torch.testing.assert_close(
                getattr(state, name).double(), expected.detach(), rtol=0, atol=tolerance
            )
        assert torch.equal(state.idle_F, idle)
        assert torch.equal(state.W_dec_low, state.W_dec.half())
        # triton's interpreter truncates to bf16 where the device rounds: one unit in the last place
        # apart
        torch.testing.assert_close(
            state.W_enc_low, state.W_enc.bfloat16(), rtol=2**-7 if device == "cpu" else 0, atol=0
        )


def test_the_step_of_ragged_codes_is_that_of_padded_ones():
    codes, x, g, dvals = random_codes(9, 30, 7), normal(9, 40), normal(9, 40), normal(9, 7)
    ragged = end_to_end(codes)
    first = made_state(40, 30, torch.float32, True)
    second = copy_of(first)
    feature_step(first, codes, dvals, x, g, SETTINGS, "triton")
    feature_step(second, ragged, dvals[codes.active()], x, g, SETTINGS, "triton")
    for name in vars(first):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


def loss_gradients(codes, W_dec, b_dec, x, norm_F):
    """(g, dvals) of the loss above for the values of the codes, dense; the support does not change
    with the values' sign."""
    z = codes.to_dense()
    g = (z @ W_dec + b_dec - x) * (2 / len(x))
    dz = g @ W_dec.T + norm_F / len(x)
    return g, dz.gather(1, codes.idx.long()).where(codes.active(), 0.0)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("unit", [True, False])
def test_sparse_rows_are_torch_sparse_adam_and_leave_silent_latents_alone(backend, unit):
    B, D, F, K = 9, 33, 40, 3
    dtype = torch.float64 if backend == "torch" else torch.float32
    state = made_state(D, F, dtype, unit)
    W_enc, W_dec, b_enc = (
        t.double().clone() for t in (state.W_enc, state.W_dec, state.b_enc[:, None])
    )
    eps = 1e-12  # SparseAdam puts eps before the bias correction: alike only where it is negligible
    sparse_adam = torch.optim.SparseAdam([W_enc, W_dec, b_enc], lr=1e-2, betas=(0.9, 0.99), eps=eps)
    for step in range(1, 4):
        codes, x, g, dvals = (
            random_codes(B, F, K, seed=step),
            normal(B, D),
            normal(B, D),
            normal(B, K),
        )
        if backend == "torch":  # which asks for 0 on padding (saekit_kernels.grad)
            dvals = codes.without_padding(dvals)
        hit = dense(codes, torch.ones_like(codes.vals)).any(0).nonzero()[:, 0]
        assert 0 < len(hit) < F
        dW_dec = dense(codes, codes.vals).T @ g.double()
        if unit:
            dW_dec -= (dW_dec * W_dec).sum(1, keepdim=True) * W_dec
        dz = dense(codes, dvals)
        for p, grad in ((W_enc, dz.T @ x.double()), (W_dec, dW_dec), (b_enc, dz.sum(0)[:, None])):
            p.grad = torch.sparse_coo_tensor(hit[None], grad[hit], p.shape, is_coalesced=True)
        sparse_adam.step()
        if unit:
            W_dec[hit] = nnF.normalize(W_dec[hit], dim=1)

        before = copy_of(state)
        settings = AdamSettings(1e-2, 0.9, 0.99, eps, step, unit_decoder=unit, sparse_rows=True)
        feature_step(state, codes, dvals, x, g, settings, backend)
        silent = torch.ones(F, dtype=torch.bool, device=device).index_fill(0, hit, False)
        for old, new in zip(before.parameters_and_moments, state.parameters_and_moments):
            assert torch.equal(old[silent], new[silent]) and not torch.equal(old[hit], new[hit])
        assert torch.equal(state.idle_F, torch.where(silent, before.idle_F + B, 0))
        for got, expected in (
            (state.W_enc, W_enc),
            (state.W_dec, W_dec),
            (state.b_enc, b_enc[:, 0]),
        ):
            torch.testing.assert_close(
                got.double(), expected, rtol=0, atol=1e-9 if backend == "torch" else 2e-5
            )


@pytest.mark.parametrize("unit", [True, False])
def test_a_latent_of_every_row_goes_through_chunks_and_agrees_with_the_torch_path(unit):
    B, D, F, K = 530, 20, 6, 2
    codes = random_codes(B, F, K, full=True)
    codes.idx[:, 0], codes.idx[:, 1] = 0, 1 + codes.idx[:, 1] % 5
    assert int(plan_chunks(codes).first[-1]) >= 2
    state = made_state(D, F, torch.float32, unit)
    exact = FeatureState(
        **{
            name: t.double() if t.dtype == torch.float32 else t.clone()
            for name, t in vars(state).items()
        }
    )
    x, g, dvals = normal(B, D), normal(B, D) / B, normal(B, K) / B
    settings = AdamSettings(1e-2, 0.9, 0.99, 1e-3, 2, unit_decoder=unit, norm_penalty=0.1 / B)
    twin = copy_of(state)
    feature_step(state, codes, dvals, x, g, settings, "triton")
    feature_step(twin, codes, dvals, x, g, settings, "triton")
    feature_step(
        exact,
        SparseCodes(codes.vals.double(), codes.idx, codes.nnz, F),
        dvals.double(),
        x,
        g.double(),
        settings,
        "torch",
    )
    for name in vars(state):
        assert torch.equal(getattr(state, name), getattr(twin, name)), name
        torch.testing.assert_close(
            getattr(state, name).double(),
            getattr(exact, name).double(),
            rtol=1e-2 if "low" in name else 0,
            atol=1e-5,
        )


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_shadows_and_idle_counts_are_optional(backend):
    codes, x, g, dvals = (
        random_codes(6, 20, 3),
        normal(6, 33, dtype=torch.bfloat16),
        normal(6, 33),
        normal(6, 3),
    )
    full = made_state(33, 20, torch.float32, True)
    bare = replace(copy_of(full), W_enc_low=None, W_dec_low=None, idle_F=None)
    for state in (full, bare):
        feature_step(state, codes, dvals, x, g, SETTINGS, backend)
    assert all(
        torch.equal(a, b) for a, b in zip(full.parameters_and_moments, bare.parameters_and_moments)
    )


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_rows_of_norm_0_stay_finite_and_a_broken_row_breaks_its_latents_alone(backend):
    codes, x, g, dvals = (
        random_codes(6, 20, 3, full=True),
        normal(6, 33),
        normal(6, 33),
        normal(6, 3),
    )
    state = made_state(33, 20, torch.float32, False)
    state.W_dec[4] = 0.0
    settings = replace(SETTINGS, unit_decoder=False, norm_penalty=0.1)
    clean = copy_of(state)
    feature_step(clean, codes, dvals, x, g, settings, backend)
    assert all(t.isfinite().all() for t in clean.parameters_and_moments)
    x[2], g[2] = torch.nan, torch.nan
    feature_step(state, codes, dvals, x, g, settings, backend)
    hit = torch.zeros(20, dtype=torch.bool, device=device).index_fill(0, codes.idx[2].long(), True)
    for got, expected in ((state.W_enc, clean.W_enc), (state.W_dec, clean.W_dec)):
        assert torch.equal(got.isnan().any(1), hit) and torch.equal(got[~hit], expected[~hit])


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_batch_without_rows_changes_nothing(backend):
    state = made_state(8, 20, torch.float32, True)
    before, codes = copy_of(state), random_codes(0, 20, 3)
    feature_step(state, codes, codes.vals, normal(0, 8), normal(0, 8), SETTINGS, backend)
    assert all(torch.equal(getattr(before, name), getattr(state, name)) for name in vars(state))


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_batch_without_codes_coasts_on_its_momentum(backend):
    state = made_state(8, 20, torch.float32, False)
    for m, v in ((state.m_enc, state.v_enc), (state.m_dec, state.v_dec)):
        m.normal_(), v.uniform_()
    before, codes = copy_of(state), random_codes(5, 20, 3)
    codes.nnz.zero_(), codes.vals.zero_(), codes.idx.zero_()
    feature_step(
        state,
        codes,
        codes.vals,
        normal(5, 8),
        normal(5, 8),
        replace(SETTINGS, step=3, unit_decoder=False),
        backend,
    )
    m, v = before.m_enc.double() * 0.9, before.v_enc.double() * 0.99
    expected = before.W_enc.double() - 1e-2 / (1 - 0.9**3) * m / (
        v.sqrt() / (1 - 0.99**3) ** 0.5 + 1e-3
    )
    torch.testing.assert_close(state.W_enc.double(), expected, rtol=0, atol=1e-6)
    assert (state.idle_F == 10).all()


def test_arguments_that_do_not_fit_are_refused():
    codes, x, g = random_codes(6, 20, 3), normal(6, 8), normal(6, 8)
    state = made_state(8, 20, torch.float32, True)
    wrong = [
        ("must have shape", (state, codes, codes.vals, x[:5], g)),
        ("must have shape", (state, codes, codes.vals, x, g[:, :7])),
        ("shape of the codes", (state, codes, codes.vals[:, :2], x, g)),
        ("latents", (state, replace(codes, F=19), codes.vals, x, g)),
        (
            "contiguous",
            (replace(state, m_enc=state.m_enc.T.contiguous().T), codes, codes.vals, x, g),
        ),
        ("contiguous", (replace(state, idle_F=state.idle_F[:7]), codes, codes.vals, x, g)),
    ]
    for message, arguments in wrong:
        for backend in ("torch", "triton"):
            with pytest.raises(ValueError, match=message):
                feature_step(*arguments, SETTINGS, backend)
    with pytest.raises(ValueError, match="fp32"):
        feature_step(
            replace(state, v_dec=state.v_dec.double()), codes, codes.vals, x, g, SETTINGS, "triton"
        )
    with pytest.raises(ValueError, match="int64"):
        feature_step(
            replace(state, idle_F=state.idle_F.int()), codes, codes.vals, x, g, SETTINGS, "triton"
        )
    with pytest.raises(ValueError, match="choose triton, torch"):
        feature_step(state, codes, codes.vals, x, g, SETTINGS, "cuda")
    with pytest.raises(ValueError, match="step counts from 1"):
        replace(SETTINGS, step=0)


# -- on a device -----------------------------------------------------------------------------------


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    ("B", "D", "F", "K"),
    [(8192, 768, 24_576, 32), (8192, 2304, 16_384, 32), (4096, 4096, 16_384, 64)],
)
def test_real_sizes_agree_with_the_torch_path_in_fp64(B, D, F, K):
    """A tenth of the codes fall on one latent, so that chunks are used."""
    idx = torch.rand(B, F, device=device).topk(K, dim=1).indices.sort(dim=1).values
    idx[::2, 0] = 0
    codes = SparseCodes(
        torch.rand(B, K, device=device),
        idx.int(),
        torch.full((B,), K, dtype=torch.int32, device=device),
        F,
    )
    state, x = made_state(D, F, torch.float32, True), normal(B, D, dtype=torch.bfloat16)
    decoded = decode_mse(codes, state.W_dec, normal(D), x)
    dual = sparse_weight_grad_dual(codes, decoded.dvals_BK, x, codes.vals, decoded.g_BD)
    for latents in (slice(0, 64), slice(F - 64, F)):
        z, dz = (
            torch.zeros(B, F, device=device).scatter_(1, idx, t)[:, latents].double()
            for t in (codes.vals, decoded.dvals_BK)
        )
        for got, expected in zip(dual, (dz.T @ x.double(), z.T @ decoded.g_BD.double(), dz.sum(0))):
            torch.testing.assert_close(
                got[latents].double(), expected, rtol=0, atol=1e-5 * expected.abs().max().item()
            )
    exact = FeatureState(
        **{
            name: t.double() if t.dtype == torch.float32 else t.clone()
            for name, t in vars(state).items()
        }
    )
    twin = copy_of(state)
    feature_step(state, codes, decoded.dvals_BK, x, decoded.g_BD, SETTINGS, "triton")
    feature_step(twin, codes, decoded.dvals_BK, x, decoded.g_BD, SETTINGS, "triton")
    double = SparseCodes(codes.vals.double(), codes.idx, codes.nnz, F)
    feature_step(
        exact, double, decoded.dvals_BK.double(), x, decoded.g_BD.double(), SETTINGS, "torch"
    )
    for name in ("W_enc", "b_enc", "W_dec"):
        assert torch.equal(getattr(state, name), getattr(twin, name))
        torch.testing.assert_close(
            getattr(state, name).double(), getattr(exact, name), rtol=0, atol=2e-5
        )
