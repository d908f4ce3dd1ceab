"""Exact row selection: compared bit for bit with a stable sort, in every case where a shortcut
could go wrong."""

import pytest
import torch
from saekit_kernels.gpu.select import groups_for, select_topk

device = "cuda" if torch.cuda.is_available() else "cpu"


def expect_exact(pre_BF, k):
    """Bit equality with: stable descending sort (NaN first), first k, drop what is <= 0, ascending
    columns, then zeros."""
    codes = select_topk(pre_BF.to(device), k)
    vals, idx, nnz = codes.vals.cpu(), codes.idx.cpu(), codes.nnz.cpu()
    B, F = pre_BF.shape
    assert (vals.dtype, idx.dtype, nnz.dtype, codes.F) == (
        torch.float32,
        torch.int32,
        torch.int32,
        F,
    )
    assert vals.shape == idx.shape == (B, k)
    for b in range(B):
        row = pre_BF[b].float()
        nan = row.isnan().nonzero()[:, 0].tolist()
        rest = [
            j for j in row.sort(descending=True, stable=True).indices.tolist() if not row[j].isnan()
        ]
        chosen = sorted(j for j in (nan + rest)[:k] if not row[j] <= 0)
        n = len(chosen)
        assert nnz[b] == n
        assert idx[b, :n].tolist() == chosen
        assert torch.equal(vals[b, :n].view(torch.int32) & 0x7FFFFFFF, _bits(row[chosen]))
        assert not vals[b, n:].any() and not idx[b, n:].any()
    return codes


def _bits(row):
    """Every NaN is the same NaN in the codes."""
    return torch.where(row.isnan(), 0x7FFFFFFF, row.contiguous().view(torch.int32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("B", "F", "k"),
    [(1, 1, 1), (3, 7, 7), (3, 7, 2), (5, 130, 5), (6, 1000, 32), (2, 1000, 1000), (2, 2100, 300)],
)
def test_equals_a_stable_sort(B, F, k, dtype):
    torch.manual_seed(F + k)
    expect_exact(torch.randn(B, F).to(dtype), k)  # bf16 and fp16 rows of 1000 hold many ties


def test_rows_of_any_stride():
    torch.manual_seed(0)
    wide = torch.randn(4, 400)
    expect_exact(wide[:, 3:133], 9)
    expect_exact(wide[::2, 5:], 9)
    expect_exact(wide.T[:6], 3)  # columns: copied
    expect_exact(torch.randn(1, 130).expand(3, 130), 4)


# 1500: more equal entries than the list of candidates holds
@pytest.mark.parametrize("F", [130, 1500])
def test_ties_go_to_the_smallest_column(F):
    rows = torch.full((4, F), 2.5)
    rows[1] = 0.0
    rows[2] = -1.0
    rows[3, ::3] = 4.0
    codes = expect_exact(rows, 40)
    assert codes.idx[0].tolist() == list(range(40))
    assert codes.nnz.tolist() == [40, 0, 0, 40]


def test_nan_and_infinities():
    nan, inf = float("nan"), float("inf")
    torch.manual_seed(1)
    rows = torch.randn(7, 200)
    rows[0] = nan
    rows[1, [7, 150]] = nan
    rows[2, [9, 40, 41]] = inf
    rows[3] = -inf
    rows[4, :100] = -inf
    rows[4, 120] = -nan
    rows[5, 3], rows[5, 5], rows[5, 8] = nan, inf, -inf
    rows[6] = inf
    codes = expect_exact(rows, 5)
    assert codes.idx[0].tolist() == [0, 1, 2, 3, 4] and bool(codes.vals[0].isnan().all())


def test_zeros_of_either_sign_and_subnormals():
    rows = torch.zeros(2, 40)
    rows[:, 1::2] = -0.0
    rows[1, 5], rows[1, 30], rows[1, 31] = 1e-45, 1e-40, 3e-39
    codes = expect_exact(rows, 2)
    assert codes.nnz.tolist() == [0, 2] and codes.idx[1].tolist() == [30, 31]


def test_more_candidates_than_the_list_holds():
    torch.manual_seed(2)
    groups, _ = groups_for(5000, 4500)
    assert groups < 4500  # the group maxima cannot bound the k-th value, and the list is too short
    expect_exact(torch.rand(1, 5000) + 0.1, 4500)
    # The largest entries share few groups, so the bound lies below nearly everything.
    groups, _ = groups_for(6000, 8)
    rows = torch.rand(1, 6000) + 1.0
    rows[0, 5::groups] += 10.0
    rows[0, 7::groups] += 20.0  # 6 + 6 large ones in two groups
    expect_exact(rows, 8)
    rows = torch.full((1, 6000), -1.0)
    # fewer groups with a positive entry than k
    rows[0, torch.arange(6000) % groups < 6] = torch.rand(36) + 1.0
    expect_exact(rows, 8)


def test_twice_the_same_bits():
    torch.manual_seed(3)
    rows = torch.randn(3, 500).bfloat16().to(device)
    first, second = select_topk(rows, 20), select_topk(rows, 20)
    assert (
        torch.equal(first.vals, second.vals)
        and torch.equal(first.idx, second.idx)
        and torch.equal(first.nnz, second.nnz)
    )


def test_empty_batch():
    codes = select_topk(torch.zeros(0, 10, device=device), 3)
    assert codes.vals.shape == (0, 3) and codes.nnz.shape == (0,) and codes.F == 10


def test_wrong_arguments():
    rows = torch.zeros(2, 5, device=device)
    for k in (0, 6):
        with pytest.raises(ValueError, match="k must lie"):
            select_topk(rows, k)
    with pytest.raises(ValueError, match="matrix"):
        select_topk(rows.double(), 2)
    with pytest.raises(ValueError, match="2\\^31"):
        select_topk(torch.zeros(1, 70000, device=device).expand(40000, 70000), 60000)


@pytest.mark.gpu
@pytest.mark.skipif(device == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("B", "F", "k"), [(8192, 24576, 32), (1024, 131072, 64), (64, 73728, 5000), (32768, 131072, 1)]
)
def test_real_sizes(B, F, k):
    torch.manual_seed(0)
    # the last: B*F > 2^31
    rows = torch.randn(B, F, device=device, dtype=torch.bfloat16 if B > 8192 else torch.float32)
    codes = select_topk(rows, k)
    some = torch.randint(0, B, (min(B, 512),), device=device)
    vals, idx = rows[some].float().sort(dim=1, descending=True, stable=True)
    want, order = idx[:, :k].sort(dim=1)
    assert torch.equal(codes.idx[some].long(), want)
    assert torch.equal(codes.vals[some], vals[:, :k].gather(1, order))
