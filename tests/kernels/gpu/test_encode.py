"""The encoders against fp64 pre-activations of the same inputs.

Selection runs on fp32 sums, so entries closer to the k-th value than their rounding may go either
way: the gap rule. Ordinary inputs must pass without a single redone row, or the redo would hide a
wrong filter; the inputs that break the filter must be redone exactly.
"""

import functools

import pytest
import torch
import triton
import triton.language as tl
from saekit_kernels.gpu import encode, filter, redo
from saekit_kernels.gpu.encode import encode_batchtopk, encode_relu, encode_threshold, encode_topk

device = "cuda" if torch.cuda.is_available() else "cpu"
NAN, INF = float("nan"), float("inf")
# numpy in the interpreter
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


def make(B, d, F, x_dtype=torch.float32, w_dtype=None, seed=0):
    torch.manual_seed(seed)
    x, W, b = torch.randn(B, d), torch.randn(F, d) / d**0.5, torch.randn(F) * 0.1
    return x.to(device, x_dtype), W.to(device, w_dtype or x_dtype), b.to(device)


def fused(x, W, b, k, **options):
    return encode_topk(x, W, b, k, plan="fused", **options)


def gemm(x, W, b, k):
    return encode_topk(x, W, b, k, plan="gemm")


ENCODERS = [gemm, fused]


def dense(x, W, b, rounded=False):
    """(pre (B,F) fp64 with what the ReLU drops at 0, tolerance (B,F)): the rounding of an fp32 dot
    product, and if `rounded` of its result to bf16."""
    x, W, b = x.double(), W.double(), b.double()
    product = x @ W.T
    pre = product + b
    tol = 2.0**-20 * (x.norm(dim=1)[:, None] * W.norm(dim=1) + b.abs())
    return torch.where(pre <= 0, 0.0, pre), tol + (2.0**-8 * product.abs() if rounded else 0.0)


def rounds(encoder, x, W):
    """Whether pre-activations are compared in bf16."""
    return encoder is gemm and x.dtype == W.dtype == torch.bfloat16


def unpack(codes, B, K):
    """Columns of each row, after the format is checked: ascending, no value <= 0, zeros after."""
    vals, idx, nnz = codes.vals, codes.idx, codes.nnz
    assert (vals.dtype, idx.dtype, nnz.dtype) == (torch.float32, torch.int32, torch.int32)
    assert vals.shape == idx.shape == (B, K) and nnz.shape == (B,)
    active = codes.active()
    assert not (vals[active] <= 0).any() and not vals[~active].any() and not idx[~active].any()
    columns = [idx[b, : nnz[b]].long() for b in range(B)]
    assert all(
        bool((c.diff() > 0).all()) and (len(c) == 0 or int(c[-1]) < codes.F) for c in columns
    )
    return columns


def expect_topk(codes, x, W, b, k, rounded=False):
    """The gap rule for finite inputs, and values to their accuracy."""
    pre, tol = dense(x, W, b, rounded)
    for row, columns in enumerate(unpack(codes, len(x), k)):
        p, t = pre[row], tol[row]
        kth = p.sort(descending=True).values[k - 1]
        chosen = torch.zeros_like(p, dtype=torch.bool)
        chosen[columns] = True
        assert bool((p[chosen] >= kth - t[chosen]).all())
        assert bool(chosen[p > kth + t].all())
        assert len(columns) <= k and (len(columns) == k or kth <= t.max())
        vals = codes.vals[row, : len(columns)].double()
        assert bool(((vals - p[columns]).abs() <= 1e-5 * p[columns] + t[columns]).all())


def exact_topk(x, W, b, k):
    """Columns and values by a stable sort; for inputs whose sums fp32 holds exactly."""
    pre = dense(x, W, b)[0].sort(dim=1, descending=True, stable=True)
    return pre.indices[:, :k].sort(dim=1).values, pre.values[:, k - 1]


def make_integers(B, d, F):
    """Small integers: sums are exact in any order, and most values occur many times."""
    torch.manual_seed(1)
    return tuple(
        torch.randint(-3, 4, shape, device=device).float() for shape in ((B, d), (F, d), (F,))
    )


@pytest.fixture
def few_slots(monkeypatch):
    """The slots of these small shapes hold a whole tile, which nothing can overflow; with these
    they hold what ordinary rows need."""
    monkeypatch.setattr(filter, "slots_for", lambda survivors, F, width: 40 * width // 64)


def same(first, second):
    return (
        torch.equal(first.vals, second.vals)
        and torch.equal(first.idx, second.idx)
        and torch.equal(first.nnz, second.nnz)
    )


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(
    ("B", "d", "F", "k", "x_dtype", "w_dtype"),
    [
        (3, 1, 1, 1, torch.float32, None),
        (3, 33, 7, 7, torch.bfloat16, None),
        (5, 33, 130, 5, torch.float16, None),
        (4, 96, 1000, 32, torch.bfloat16, None),
        (4, 96, 1000, 5, torch.float32, None),
        (3, 200, 300, 20, torch.float32, torch.bfloat16),
    ],
)
def test_topk_follows_the_gap_rule_and_redoes_nothing(encoder, B, d, F, k, x_dtype, w_dtype):
    x, W, b = make(B, d, F, x_dtype, w_dtype)
    codes, redone = encoder(x, W, b, k)
    expect_topk(codes, x, W, b, k, rounds(encoder, x, W))
    assert redone.shape == () and redone.dtype == torch.int32 and redone == 0


@triton.jit
def tiles_kernel(out_ptr, B, tiles, BM: tl.constexpr):
    row0, tile = filter.tile_of(tl.program_id(0).to(tl.int64), B, tiles, BM)
    tl.store(out_ptr + 2 * tl.program_id(0), row0)
    tl.store(out_ptr + 2 * tl.program_id(0) + 1, tile)


@pytest.mark.parametrize(("B", "tiles"), [(1, 1), (130, 5), (16 * 8, 3), (16 * 19 - 2, 4)])
def test_every_tile_is_taken_once(B, tiles):
    blocks = -(-B // 16)
    out = torch.full((blocks * tiles, 2), -1, device=device)
    tiles_kernel[(blocks * tiles,)](out, B, tiles, BM=16)
    assert sorted(map(tuple, out.tolist())) == [
        (16 * r, t) for r in range(blocks) for t in range(tiles)
    ]


def test_more_rows_than_a_block():
    x, W, b = make(66, 16, 200)  # blocks of 64 rows in fp32
    codes, redone = fused(x, W, b, 3)
    expect_topk(codes, x, W, b, 3)
    assert redone == 0


def test_the_sample_decides_the_time_and_not_the_result(monkeypatch):
    x, W, b = make(4, 48, 1000)
    first, _ = fused(x, W, b, 16)
    for stride in (1, 3, 8):
        with monkeypatch.context() as sampled:
            sampled.setattr(encode, "SAMPLE_STRIDE", stride)
            codes, redone = fused(x, W, b, 16)
        assert same(codes, first) and redone == 0
    # A sample that is larger than everything else puts the bound too high: 84 latents pass it where
    # 100 are wanted.
    x, W, b = make(3, 48, 1344)
    stride, _ = encode.sample_plan(1344, 100)
    assert 1344 // stride == 84
    b[::stride] += 100.0
    codes, redone = fused(x, W, b, 100)
    expect_topk(codes, x, W, b, 100)
    assert redone == 3


@pytest.mark.parametrize("encoder", ENCODERS)
def test_fewer_positive_entries_than_k(encoder):
    x, W, b = make(4, 33, 200)
    codes, redone = encoder(x, W, b - 2.0, 32)
    assert 0 < int(codes.nnz.max()) < 32
    expect_topk(codes, x, W, b - 2.0, 32)
    # every positive entry passes the bound, which is then as good as k survivors
    assert redone == 0
    codes, redone = encoder(torch.zeros_like(x), W, torch.zeros_like(b), 5)
    assert not codes.nnz.any() and not codes.vals.any() and redone == 0


@pytest.mark.parametrize("encoder", ENCODERS)
def test_equal_rows_are_redone_and_ties_go_to_the_smallest_column(encoder, few_slots):
    x, W, b = make(5, 33, 1000)
    x[1], x[4] = 0.0, 0.0
    b[:] = 0.5
    codes, redone = encoder(x, W, b, 8)
    assert redone == 2
    for row in (1, 4):
        assert codes.idx[row].tolist() == list(range(8)) and codes.vals[row].tolist() == [0.5] * 8
    expect_topk(codes, x, W, b, 8)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_ties_among_the_candidates_go_to_the_smallest_column(encoder):
    x, W, b = make_integers(6, 20, 600)
    codes, redone = encoder(x, W, b, 17)
    want, kth = exact_topk(x, W, b, 17)
    assert bool((kth > 0).all()) and torch.equal(codes.idx.long(), want) and redone == 0
    assert torch.equal(codes.vals.double(), dense(x, W, b)[0].gather(1, want))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_nan_and_inf_rows_are_redone_and_leave_the_others_alone(encoder, few_slots):
    x, W, b = make(7, 33, 1000)
    clean, redone = encoder(x, W, b, 6)
    assert redone == 0
    x[1, 4] = NAN
    x[2] = NAN
    x[5, 0] = INF
    codes, redone = encoder(x, W, b, 6)
    assert redone == 2  # the infinities of a row fit
    for row in (0, 3, 4, 6):
        assert torch.equal(codes.vals[row], clean.vals[row]) and torch.equal(
            codes.idx[row], clean.idx[row]
        )
    for row in (1, 2):  # every pre-activation is NaN
        assert codes.idx[row].tolist() == list(range(6)) and bool(codes.vals[row].isnan().all())
    first = (W[:, 0] > 0).nonzero()[:6, 0]  # inf where the weight is positive, -inf elsewhere
    assert codes.idx[5].tolist() == first.tolist() and bool((codes.vals[5] == INF).all())


# 5000 takes 10 s in the interpreter, and 1050 has several blocks too
@pytest.mark.parametrize("F", [300, 1050, pytest.param(5000, marks=pytest.mark.slow)])
def test_no_row_reaches_beyond_the_last_latent(F):
    """Columns after F have weights 0, and inf * 0 is NaN, which every policy keeps."""
    x, W, b = make(3, 8, F, torch.bfloat16)
    x[0, 1], x[1, 2] = INF, -INF
    topk, _ = fused(x, W, b, 8)
    relu, (batch, _) = (
        encode_relu(x, W, b, 3 * F, "fused"),
        encode_batchtopk(x, W, b, 8, None, "fused"),
    )
    for codes in (topk, relu, batch):
        assert codes.idx.min() >= 0 and codes.idx.max() < F
    positive = [int((W[:, 1] > 0).sum()), int((W[:, 2] < 0).sum())]
    assert relu.nnz[:2].tolist() == positive


@pytest.mark.parametrize("encoder", ENCODERS)
def test_latents_that_are_not_finite(encoder):
    x, W, b = make(4, 33, 500)
    x[:, 2] = x[:, 2].abs() + 0.1
    W[17, 3] = NAN
    W[40, 2] = INF
    W[41, 2] = -INF
    b[42] = INF
    codes, _ = encoder(x, W, b, 3)
    for row in range(4):
        assert codes.idx[row].tolist() == [17, 40, 42]
        assert bool(codes.vals[row, 0].isnan()) and codes.vals[row, 1:].tolist() == [INF, INF]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_any_strides(encoder):
    x, W, b = make_integers(5, 40, 130)
    want, _ = encoder(x, W, b, 4)
    wide = torch.zeros(5, 100, device=device)
    wide[:, 7:47] = x
    long = torch.zeros(260, 40, device=device)
    long[::2] = W
    codes, _ = encoder(wide[:, 7:47], long[::2], torch.stack([b, b], 1)[:, 1], 4)
    assert same(codes, want)
    codes, _ = encoder(x.T.contiguous().T, W.T.contiguous().T, b, 4)
    assert same(codes, want)


def test_chunks_are_long_enough_for_the_weights_to_be_read_a_few_times():
    """Rows of 576, 73,728 and 131,072 latents, with pre-activations and a slot for each."""
    for F, rows in ((576, 4096), (24_576, 2048), (131_072, 2048)):
        assert filter.chunk_rows((8 + 2) * F, 128) == pytest.approx(rows, rel=0.1)
        assert filter.chunk_rows((8 + 2) * F, 128) % 128 == 0


@pytest.mark.parametrize("encoder", ENCODERS)
def test_twice_the_same_bits_in_chunks_and_with_more_redone_rows_than_programs(
    encoder, few_slots, monkeypatch
):
    x, W, b = make(8, 8, 300, torch.bfloat16)
    x[1:7:2] = 0.0
    b[:] = 1.0  # zero rows are all-equal
    want, redone = encoder(x, W, b, 4)
    assert redone == 3
    again, _ = encoder(x, W, b, 4)
    assert same(again, want)
    monkeypatch.setattr(filter, "chunk_rows", lambda *a: 4)
    monkeypatch.setattr(encode, "SAMPLE_BYTES", 4 * 300 * 3)
    monkeypatch.setattr(redo, "REDO_PROGRAMS", 2)
    again, redone = encoder(x, W, b, 4)
    assert redone == 3
    tolerance = 2**-8 if rounds(encoder, x, W) else 1e-6
    assert torch.equal(again.idx, want.idx) and torch.allclose(
        again.vals, want.vals, rtol=tolerance, atol=0
    )


def test_plan_auto():
    for d, dtype, plan in (
        (8, torch.bfloat16, "fused"),
        (8, torch.float32, "gemm"),
        (1600, torch.bfloat16, "gemm"),
    ):
        x, W, b = make(1, d, 50, dtype)
        assert encode.plan_of("auto", x, W) == plan
        codes, _ = encode_topk(x, W, b, 3)
        assert same(codes, encode_topk(x, W, b, 3, plan=plan)[0])


def test_arguments():
    x, W, b = make(2, 8, 50)
    for k in (0, 51):
        for encoder in ENCODERS:
            with pytest.raises(ValueError, match="k must lie"):
                encoder(x, W, b, k)
    with pytest.raises(ValueError, match="plan"):
        encode_topk(x, W, b, 3, plan="fast")
    with pytest.raises(ValueError, match="expected"):
        encode_topk(x, W[:, :7], b, 3)
    with pytest.raises(ValueError, match="expected"):
        encode_topk(x.double(), W, b, 3)
    with pytest.raises(ValueError, match="theta"):
        encode_threshold(x, W, b, b[:3], 4)
    with pytest.raises(ValueError, match="k must lie"):
        encode_batchtopk(x, W, b, 51)
    with pytest.raises(ValueError, match="2\\^31"):
        encode_relu(x, W, b, 2**31)
    for encoder in ENCODERS:
        codes, redone = encoder(x[:0], W, b, 3)
        assert codes.vals.shape == (0, 3) and codes.nnz.shape == (0,) and redone == 0
    codes, (batch, threshold) = encode_relu(x[:0], W, b, 3), encode_batchtopk(x[:0], W, b, 3)
    for empty in (codes, batch):
        assert empty.ptr.tolist() == [0] and empty.vals.shape == empty.idx.shape == (0,)
    assert threshold == 0


# -- thresholds ------------------------------------------------------------------------------------

PLANS = ["fused", "gemm"]


def columns_of(codes, B):
    """Columns of each row, after the format is checked: ascending, positive values."""
    assert (codes.ptr.dtype, codes.vals.dtype, codes.idx.dtype) == (
        torch.int32,
        torch.float32,
        torch.int32,
    )
    assert codes.ptr.shape == (B + 1,) and codes.ptr[0] == 0
    assert codes.vals.shape == codes.idx.shape == (int(codes.ptr[-1]),)
    assert not (codes.vals <= 0).any()
    columns = [codes.idx[a:z].long() for a, z in zip(codes.ptr.tolist(), codes.ptr.tolist()[1:])]
    assert all(bool((c.diff() > 0).all()) and bool((c < codes.F).all()) for c in columns)
    return columns


def expect_threshold(codes, x, W, b, theta, rounded=False):
    """Every entry above max(theta, 0), to rounding."""
    pre, tol = dense(x, W, b, rounded)
    floor = theta.double().clamp(min=0).expand(pre.shape[1])
    certain, possible = pre > floor + tol, pre > floor - tol
    chosen = torch.zeros_like(certain)
    for row, columns in enumerate(columns_of(codes, len(x))):
        chosen[row, columns] = True
        vals = codes.vals[codes.ptr[row] : codes.ptr[row + 1]].double()
        assert bool(((vals - pre[row, columns]).abs() <= 1e-5 * vals + tol[row, columns]).all())
    assert not (chosen & ~possible).any() and bool(chosen[certain].all())


ZERO = torch.zeros((), device=device)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_relu_with_rows_of_any_width(dtype, plan):
    """A constant latent in every fifth column makes one row 50 times as full as another."""
    x, W, b = make(7, 33, 500, dtype)
    x[:, 0], W[::5, 0] = -1.0, 20.0
    x[3, 0] = 20.0
    codes = encode_relu(x, W, b - 1.2, 7 * 500, plan)
    expect_threshold(codes, x, W, b - 1.2, ZERO, plan == "gemm" and dtype == torch.bfloat16)
    fullest = codes.nnz.max()
    assert codes.nnz.argmax() == 3 and fullest > 100
    # The result does not depend on how many rows go at a time.
    again = encode_relu(x, W, b - 1.2, 7 * 500, plan)
    assert torch.equal(again.vals, codes.vals) and torch.equal(again.idx, codes.idx)


@pytest.mark.parametrize("plan", PLANS)
def test_more_entries_than_there_is_room_for_are_no_codes(plan, monkeypatch):
    x, W, b = make(9, 16, 300)
    monkeypatch.setattr(filter, "chunk_rows", lambda *a: 4)
    codes = encode_relu(x, W, b, 9 * 300, plan)
    expect_threshold(codes, x, W, b, ZERO)
    total = len(codes.vals)
    exact = encode_relu(x, W, b, total, plan)
    assert torch.equal(exact.vals, codes.vals) and torch.equal(exact.ptr, codes.ptr)
    assert encode_relu(x, W, b, total - 1, plan) is None
    assert encode_relu(x, W * NAN, b, total, plan) is None  # a run that has diverged


@pytest.mark.parametrize("plan", PLANS)
def test_one_threshold_and_one_for_each_column(plan):
    x, W, b = make(4, 33, 500, torch.bfloat16)
    # negative ones too: what is not positive is dropped anyway
    columns = torch.rand(500, device=device) * 3 - 0.5
    for theta in (
        columns,
        torch.stack([columns, columns], 1)[:, 0],
        torch.tensor(1.3, device=device),
        torch.tensor(-2.0, device=device),
    ):
        codes = encode_threshold(x, W, b, theta, 2000, plan)
        expect_threshold(codes, x, W, b, theta, plan == "gemm")


@pytest.mark.parametrize("plan", PLANS)
def test_a_full_tile_and_a_broken_row(plan):
    x, W, b = make(4, 16, 1000)
    b[:] = -100.0
    b[128:256] = 100.0  # all columns of a tile
    x[2, 3] = NAN  # NaN is active in every column
    codes = encode_relu(x, W, b, 4000, plan)
    assert codes.nnz.tolist() == [128, 128, 1000, 128]
    assert bool(codes.vals[256:1256].isnan().all()) and codes.idx[:128].tolist() == [
        *range(128, 256)
    ]


# -- BatchTopK -------------------------------------------------------------------------------------


def expect_batchtopk(result, x, W, b, k, rounded=False):
    codes, threshold = result
    pre, tol = dense(x, W, b, rounded)
    B = len(x)
    tol = tol.max()
    kth = pre.flatten().sort(descending=True).values[B * k - 1]
    chosen = torch.zeros_like(pre, dtype=torch.bool)
    for row, columns in enumerate(columns_of(codes, B)):
        chosen[row, columns] = True
        vals = codes.vals[codes.ptr[row] : codes.ptr[row + 1]].double()
        assert bool(((vals - pre[row, columns]).abs() <= 1e-5 * vals + tol).all())
    assert bool((pre[chosen] >= kth - tol).all()) and bool(chosen[pre > kth + tol].all())
    assert len(codes.vals) == min(B * k, int((pre > 0).sum()))
    assert threshold == codes.vals.min()


def uneven(dtype=torch.float32):
    """Rows of very different width, whose share of the winners differs as much."""
    x, W, b = make(6, 33, 400, dtype)
    return x * torch.linspace(0.2, 1.5, 6, device=device, dtype=dtype)[:, None], W, b


@pytest.mark.parametrize("plan", PLANS)
def test_batchtopk_with_any_bound(plan, monkeypatch):
    x, W, b = uneven()
    result = encode_batchtopk(x, W, b, 8, plan=plan)
    expect_batchtopk(result, x, W, b, 8)
    assert int(result[0].nnz.max()) > 12 > 3 > int(result[0].nnz.min())
    products, whole = [], encode.candidates
    monkeypatch.setattr(encode, "candidates", lambda *a, **o: products.append(1) or whole(*a, **o))
    monkeypatch.setattr(encode, "ROOM", 2)
    for factor, most in ((0.9, 1), (1.0, 1), (1.1, 4), (-1.0, 4), (1e-30, 4), (NAN, 4)):
        products.clear()
        again = encode_batchtopk(x, W, b, 8, result[1] * factor, plan)
        assert torch.equal(again[0].idx, result[0].idx) and torch.equal(again[1], result[1])
        assert torch.equal(again[0].ptr, result[0].ptr) and len(products) <= most


@pytest.mark.slow
def test_batchtopk_when_even_the_sample_is_wrong(monkeypatch):
    """The sampled columns are silent, or the only ones: the search needs more products."""
    x, W, b = uneven()
    expected = encode_batchtopk(x, W, b, 8)
    for shift in (30.0, -30.0):
        shifted = b.clone()
        shifted[::32] += shift
        monkeypatch.setattr(encode, "SAMPLE_STRIDE", 32)
        monkeypatch.setattr(encode, "ROOM", 1)
        expect_batchtopk(encode_batchtopk(x, W, shifted, 8), x, W, shifted, 8)
    for key in (1, 1 << 20, 0x7F800000):
        monkeypatch.setattr(encode, "sample_key", lambda *a, key=key: torch.tensor(key).int())
        codes, threshold = encode_batchtopk(x, W, b, 8)
        assert torch.equal(codes.idx, expected[0].idx) and threshold == expected[1]


@pytest.mark.parametrize("plan", PLANS)
def test_batchtopk_of_bf16(plan):
    x, W, b = uneven(torch.bfloat16)
    result = encode_batchtopk(x, W, b, 8, torch.tensor(1.0, device=device), plan)
    expect_batchtopk(result, x, W, b, 8, plan == "gemm")


def test_one_row_may_take_all():
    x, W, b = make(6, 33, 400)
    x[2] *= 20.0
    result = encode_batchtopk(x, W, b, 8)
    expect_batchtopk(result, x, W, b, 8)
    assert result[0].nnz.tolist() == [0, 0, 48, 0, 0, 0]


def test_batchtopk_ties_and_scarcity():
    x, W, b = make(4, 8, 50)
    x[:] = 0.0
    b[:] = 1.0
    # flat positions 0 to 19: 20 winners, all in the first row
    codes, threshold = encode_batchtopk(x, W, b, 5)
    assert codes.nnz.tolist() == [20, 0, 0, 0] and codes.idx.tolist() == list(range(20))
    assert threshold == 1.0
    b[:] = -1.0
    b[3] = 2.0
    codes, threshold = encode_batchtopk(x, W, b, 5, torch.tensor(5.0, device=device))
    assert codes.nnz.tolist() == [1] * 4 and threshold == 2.0
    b[3] = -2.0
    codes, threshold = encode_batchtopk(x, W, b, 5)
    assert not codes.nnz.any() and threshold == 0.0


def test_more_ties_than_there_is_room_for(monkeypatch):
    x, W, b = make(4, 8, 50)
    monkeypatch.setattr(encode, "ROOM", 1)
    x[:] = 0.0
    b[:] = 1.0
    b[40:44] = 2.0
    codes, threshold = encode_batchtopk(x, W, b, 5)
    assert codes.nnz.tolist() == [8, 4, 4, 4] and threshold == 1.0
    assert codes.idx[:8].tolist() == [0, 1, 2, 3, 40, 41, 42, 43]
    b[:] = NAN  # of a run that has diverged: the first ones, without room for all
    codes, threshold = encode_batchtopk(x, W, b, 5)
    assert codes.nnz.tolist() == [20, 0, 0, 0] and bool(codes.vals.isnan().all())
    assert codes.idx.tolist() == list(range(20)) and bool(threshold.isnan())


# -- a device --------------------------------------------------------------------------------------

needs_gpu = pytest.mark.skipif(device == "cpu", reason="needs a CUDA device")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(("B", "d", "F", "k"), [(8192, 768, 24576, 32), (1000, 2304, 73728, 64)])
def test_real_sizes(encoder, B, d, F, k):
    x, W, b = make(B, d, F, torch.bfloat16)
    codes, redone = encoder(x, W, b, k)
    assert int(redone) <= B // 1000
    some = slice(0, None, B // 200)
    part = type(codes)(codes.vals[some], codes.idx[some], codes.nnz[some], F)
    expect_topk(part, x[some], W, b, k, rounds(encoder, x, W))
    again, _ = encoder(x, W, b, k)
    assert same(again, codes)


@pytest.mark.gpu
@needs_gpu
def test_topk_never_waits_for_the_device_and_the_others_once():
    x, W, b = make(2048, 768, 24576, torch.bfloat16)
    x[5] = NAN
    for encoder in ENCODERS:
        encoder(x, W, b, 32)  # compiles
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            encoder(x, W, b, 32)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    x[5] = 0.0
    _, threshold = encode_batchtopk(x, W, b, 32)
    for plan in PLANS:
        for encode_ragged in (
            functools.partial(encode_relu, x, W, b - 2.5, 2048 * 2000, plan),
            functools.partial(encode_batchtopk, x, W, b, 32, 0.7 * threshold, plan),
        ):
            encode_ragged()
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("warn")
            try:
                with pytest.warns(UserWarning, match="synchronizing") as waits:
                    encode_ragged()
            finally:
                torch.cuda.set_sync_debug_mode("default")
            assert len(waits) == 1
