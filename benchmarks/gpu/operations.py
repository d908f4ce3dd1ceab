"""Every Triton operation once at awkward small shapes, against fp64, and once more with poisoned
memory: the results must be the same bits. For compute-sanitizer, which is too slow for the tests.

    python benchmarks/gpu/operations.py [--once]
    TRITON_INTERPRET=1 python benchmarks/gpu/operations.py --device cpu --tiny    (a dry run)
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable

import torch

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--device", default="cuda")
parser.add_argument("--tiny", action="store_true")
parser.add_argument("--once", action="store_true", help="no second run with poisoned memory")
options = parser.parse_args()
device = torch.device(options.device)

from saekit_kernels import AdamSettings, FeatureState, RaggedCodes, SparseCodes  # noqa: E402
from saekit_kernels.codes import from_entries  # noqa: E402
from saekit_kernels.gpu import encode, entries, penalty  # noqa: E402
from saekit_kernels.gpu.decode import decode_mse  # noqa: E402
from saekit_kernels.gpu.grad import sparse_weight_grad_dual  # noqa: E402
from saekit_kernels.gpu.optim import feature_step  # noqa: E402
from saekit_kernels.gpu.transpose import transpose_codes  # noqa: E402
from saekit_kernels.optim import feature_step as specification  # noqa: E402

B, D, F, K = (5, 33, 140, 4) if options.tiny else (130, 200, 1000, 8)
LOW = torch.bfloat16
Tensors = tuple[torch.Tensor, ...]


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(device, dtype)


def some_codes(ragged: bool) -> SparseCodes | RaggedCodes:
    """Latent 0 fires in every row; every third row has half as many entries."""
    generator = torch.Generator().manual_seed(1)
    idx = torch.rand(B, F, generator=generator).topk(K, dim=1).indices.sort(dim=1).values
    idx[:, 0] = 0
    vals, nnz = torch.rand(B, K, generator=generator), torch.full((B,), K, dtype=torch.int32)
    nnz[::3] = K // 2
    vals[::3, K // 2 :], idx[::3, K // 2 :] = 0, 0
    padded = SparseCodes(vals.to(device), idx.int().to(device), nnz.to(device), F)
    codes = from_entries(*padded.entries(), B, F) if ragged else padded
    codes._transpose = transpose_codes(codes)
    return codes


x, W, b = normal(B, D, dtype=LOW), (normal(F, D, seed=1) * D**-0.5).to(LOW), normal(F, seed=2) / 10
pre = x.double() @ W.double().T + b.double()


def near(got: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-3) -> None:
    error = (got.double() - expected).abs().max()
    assert error < tolerance, f"off by {float(error):.2g}"


def check_topk(codes: SparseCodes, slack: float) -> Tensors:
    kth = pre.topk(K, dim=1).values[:, -1:].expand_as(pre)
    dense = codes.to_dense().double()
    active = dense > 0
    assert codes.idx.min() >= 0 and codes.idx.max() < F, "index out of range"
    near(dense[active], pre[active], slack)
    assert (pre[active] >= kth[active] - slack).all(), "not the largest"
    assert (active.sum(1) == (pre.topk(K, dim=1).values > 0).sum(1)).all(), "number of entries"
    return codes.vals, codes.idx, codes.nnz


def topk_fused() -> Tensors:
    codes, redone = encode.encode_topk(x, W, b, K, "fused")
    assert int(redone) == 0, f"{int(redone)} rows were redone"
    return check_topk(codes, 1e-3)


def topk_gemm() -> Tensors:
    return check_topk(encode.encode_topk(x, W, b, K, "gemm")[0], 0.03)


def broken_rows() -> Tensors:
    bad, results = x.clone(), []
    bad[1, 3], bad[2, 0], bad[3] = float("nan"), float("inf"), 0
    n = min(F, 300)
    for plan in ("fused", "gemm"):
        topk, _ = encode.encode_topk(bad, W[:n], b[:n], K, plan)
        relu = encode.encode_relu(bad, W[:n], b[:n] - 1, B * n, plan)
        batch, _ = encode.encode_batchtopk(bad, W[:n], b[:n], K, None, plan)
        assert relu is not None
        for codes in (topk, relu, batch):
            assert codes.idx.min() >= 0 and codes.idx.max() < n, "index out of range"
            results.append(codes.idx)
    return tuple(results)


def relu() -> Tensors:
    results = []
    for plan, slack in (("fused", 1e-3), ("gemm", 0.03)):
        codes = encode.encode_relu(x, W, b, B * F, plan)
        assert codes is not None and encode.encode_relu(x, W, b, len(codes.vals) - 1, plan) is None
        near(codes.to_dense(), pre.clamp(min=0), slack)
        results += [codes.vals, codes.idx, codes.ptr]
    return tuple(results)


def batchtopk() -> Tensors:
    results, kth = [], pre.flatten().topk(B * K).values[-1]
    for bound in (None, 0.05, 50.0):
        guess = None if bound is None else torch.tensor(bound, device=device)
        codes, threshold = encode.encode_batchtopk(x, W, b, K, guess)
        near(threshold, kth, 0.03)
        assert len(codes.vals) == B * K
        results += [codes.vals, codes.idx, codes.ptr]
    return tuple(results)


def rows_of(ragged: bool) -> Tensors:
    codes, target, bias = some_codes(ragged), normal(B, D, seed=5), normal(D)
    got = decode_mse(codes, W, bias, target, True, normal(F, seed=6).abs())
    residual = codes.to_dense().double() @ W.double() + bias.double() - target.double()
    near(got.residual_BD, residual)
    near(entries.decode(codes, W, bias), residual + target.double())
    level = (codes.idx * 3).div(F, rounding_mode="floor")
    nested = entries.nested_row_errors(codes, W, bias, target, level, 3, True)
    near(nested[0], residual + target.double())
    assert got.g_BD is not None and got.dvals_BK is not None and got.l1_B is not None
    products = entries.products(codes, target, W)
    return got.loss_B, got.g_BD, got.dvals_BK, got.l1_B, *nested, products


def step_of(ragged: bool) -> Tensors:
    codes, g, scale = some_codes(ragged), normal(B, D, seed=7), normal(B, K, seed=8)
    dvals = codes.vals * (scale.flatten()[: codes.vals.numel()].view_as(codes.vals))
    z, dense = codes.to_dense().double(), torch.zeros(B, F, dtype=torch.float64, device=device)
    row, latent, _ = codes.entries()
    dense[row, latent] = (
        dvals[codes.active()] if isinstance(codes, SparseCodes) else dvals
    ).double()
    gradients = sparse_weight_grad_dual(codes, dvals, x, codes.vals, g)
    near(gradients[0], dense.T @ x.double())
    near(gradients[1], z.T @ g.double())
    near(gradients[2], dense.sum(0))
    # A whole step, against its specification in fp64.
    W_dec = torch.nn.functional.normalize(normal(F, D, seed=9), dim=1)
    moments = []
    for t in (W, b, W_dec):
        moments += [0.1 * normal(*t.shape, seed=10), 0.1 + normal(*t.shape, seed=11).abs()]
    state = FeatureState(
        W.float(), b.clone(), W_dec, *moments, W_enc_low=W.clone(), W_dec_low=W_dec.to(LOW)
    )
    exact = FeatureState(*(t.double() for t in state.parameters_and_moments))
    settings = AdamSettings(1e-3, 0.9, 0.999, 1e-8, 3, True)
    feature_step(state, codes, dvals, x, g, settings)
    codes.vals, codes._transpose = codes.vals.double(), None  # that of torch
    specification(exact, codes, dvals.double(), x.double(), g.double(), settings)
    for got, expected in zip(state.parameters_and_moments, exact.parameters_and_moments):
        near(got, expected, 2e-5)
    return *gradients, *state.parameters_and_moments


def penalties() -> Tensors:
    f, mean = penalty.sigmoid_encode(x, W, b)
    near(mean, torch.sigmoid(pre).mean(0), 1e-4)
    dpre, db = penalty.sigmoid_dpre(normal(B, D, dtype=LOW, seed=3), W, f, normal(F, seed=4))
    pull, db_pull = penalty.sigmoid_pull(f, normal(F, seed=4))
    z, dz = pre.to(LOW), normal(B, F, dtype=LOW, seed=12)
    l1, nnz = penalty.relu_forward(z, torch.ones(F, device=device))
    return f, mean, dpre, db, pull, db_pull, z, l1, nnz, penalty.relu_backward(z, dz, b), dz


OPERATIONS: dict[str, Callable[[], Tensors]] = {
    "topk fused": topk_fused,
    "topk gemm": topk_gemm,
    "broken rows": broken_rows,
    "relu": relu,
    "batchtopk": batchtopk,
    "rows, padded": lambda: rows_of(False),
    "rows, ragged": lambda: rows_of(True),
    "step, padded": lambda: step_of(False),
    "step, ragged": lambda: step_of(True),
    "penalties": penalties,
}


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first.is_floating_point():
        first, second = first.nan_to_num(7.0), second.nan_to_num(7.0)
    return torch.equal(first, second)


failed = 0
for name, run in OPERATIONS.items():
    began = time.perf_counter()
    try:
        first = run()
        if not options.once:
            # torch.empty is then filled with NaN, or the largest integer.
            torch.use_deterministic_algorithms(True, warn_only=True)
            again = run()
            torch.use_deterministic_algorithms(False)
            changed = [i for i, pair in enumerate(zip(first, again)) if not same(*pair)]
            assert not changed, f"results {changed} change with what memory held before"
        print(f"ok    {name:14s} {time.perf_counter() - began:6.1f} s", flush=True)
    except Exception as error:
        failed += 1
        print(f"FAIL  {name:14s} {type(error).__name__}: {str(error)[:300]}", flush=True)
        if not isinstance(error, AssertionError):
            traceback.print_exc(limit=4)
print(f"{failed} failed")
sys.exit(1 if failed else 0)
