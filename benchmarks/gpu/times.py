"""What decides the next changes to the kernels, measured one by one; each line is written at once.

    python benchmarks/gpu/times.py --out times.jsonl --budget 540 [--shapes 768x24576x8192 ...]
    TRITON_INTERPRET=1 python benchmarks/gpu/times.py --device cpu --shapes 32x256x16   (a dry run)

ms: the median of single calls with the L2 flushed, what a kernel costs. step_ms: calls back to
back, what a step costs when nobody waits. cpu_ms: the host's time to enqueue one of them; where
step_ms is close to it, the host is the limit.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import time
from collections.abc import Callable

import torch

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--device", default="cuda")
parser.add_argument("--out", default="times.jsonl")
parser.add_argument("--budget", type=float, default=500.0, help="seconds; nothing is begun after")
shapes = ["768x24576x8192", "2304x73728x8192", "4096x131072x8192"]
parser.add_argument("--shapes", nargs="*", default=shapes)
parser.add_argument("--calls", type=int, default=20)
parser.add_argument("--k", type=int, default=32)
options = parser.parse_args()
began, device = time.monotonic(), torch.device(options.device)
gpu = device.type == "cuda"

from saekit_kernels import AdamSettings, FeatureState  # noqa: E402
from saekit_kernels.cost import OPERATIONS as COSTS  # noqa: E402
from saekit_kernels.gpu import encode, entries, select  # noqa: E402
from saekit_kernels.gpu import filter as candidates  # noqa: E402
from saekit_kernels.gpu.decode import decode_gradients  # noqa: E402
from saekit_kernels.gpu.optim import feature_step  # noqa: E402
from saekit_kernels.gpu.transpose import transpose_codes  # noqa: E402

from saekit.bench.shapes import hidden_rows  # noqa: E402
from saekit.models.catalog import build  # noqa: E402
from saekit.models.sae import SAE  # noqa: E402
from saekit.training.optim import make_adam  # noqa: E402
from saekit.training.step import take_step  # noqa: E402
from saekit.types import ActivationBatch, Step  # noqa: E402

flush = torch.empty(256 << 20, dtype=torch.int8, device=device) if gpu else None


def note(**fields) -> None:
    with open(options.out, "a") as sink:
        sink.write(json.dumps(fields) + "\n")
    print(json.dumps(fields), flush=True)


def events(call: Callable[[], object], calls: int) -> float:
    """Milliseconds on the device."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(calls):
        call()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last)


def measure(
    what: str, call: Callable[[], object], shape: str, flops: float = 0.0, moved: float = 0.0
) -> None:
    """One line. `flops` and `moved` (bytes) of a call give rates."""
    if time.monotonic() - began > options.budget:
        print(f"skipped {what}: out of time", flush=True)
        return
    try:
        start = time.monotonic()
        call()
        if not gpu:
            return note(what=what, shape=shape, first_s=round(time.monotonic() - start, 2))
        torch.cuda.synchronize()
        compiled = time.monotonic() - start
        assert flush is not None
        single = []
        for _ in range(options.calls):
            flush.zero_()
            single.append(events(call, 1))
        start = time.perf_counter()
        for _ in range(options.calls):
            call()
        host = time.perf_counter() - start
        step = events(call, options.calls) / options.calls
        ordered = sorted(single)
        fields = {"ms": statistics.median(single), "p20": ordered[len(ordered) // 5]}
        fields |= {"p80": ordered[-1 - len(ordered) // 5], "step_ms": step}
        fields |= {"cpu_ms": 1e3 * host / options.calls, "first_s": compiled}
        fields |= {"tflops": flops / step / 1e9} if flops else {}
        fields |= {"gb_s": moved / step / 1e6} if moved else {}
        return note(what=what, shape=shape, **{n: round(v, 4) for n, v in fields.items()})
    except Exception as error:  # the next one may work
        return note(what=what, shape=shape, error=f"{type(error).__name__}: {str(error)[:200]}")


def rates() -> None:
    """Of the card: a copy, and a product of 8192^3."""
    a, p = torch.empty(1 << 30, dtype=torch.int8, device=device), torch.randn(8192, 8192)
    measure("copy 1 GiB", functools.partial(torch.empty_like(a).copy_, a), "-", moved=2 * 2**30)
    p = p.to(device, torch.bfloat16)
    measure("cublas 8192^3", functools.partial(torch.mm, p, p.T), "-", flops=2 * 8192**3)


def encoders(text: str, x: torch.Tensor, W: torch.Tensor, b: torch.Tensor) -> None:
    """The product, the selection of a dense matrix, both plans."""
    k, gemm = options.k, 2.0 * x.numel() * len(W)
    m = functools.partial(measure, shape=text)
    m("gemm bf16 -> bf16", lambda: torch.mm(x, W.T), flops=gemm)
    few = torch.mm(x[: max(len(x) // 4, 1)], W.T)
    m("torch.topk of B/4 rows", lambda: few.topk(k, dim=1, sorted=False), moved=2.0 * few.numel())
    m("select of B/4 rows", lambda: select.select_topk(few, k), moved=2.0 * few.numel())
    stride, rank = encode.sample_plan(len(W), k)
    m("bound of the sample", lambda: encode.sample_bounds(x, W, b, stride, rank))
    some = b - 3.4  # by which about 64 latents are active, as in the middle of a run
    room = len(x) * min(len(W), 2000)
    for plan in ("gemm", "fused"):
        topk = functools.partial(encode.encode_topk, x, W, b, k, plan)
        m(f"encode topk {plan}", topk, flops=gemm)
        note(what=f"rows redone, {plan}", shape=text, rows=int(topk()[1]))
        relu = functools.partial(encode.encode_relu, x, W, some, room, plan)
        m(f"encode relu {plan}", relu, flops=gemm)
        _, threshold = encode.encode_batchtopk(x, W, b, k, None, plan)
        batch = functools.partial(encode.encode_batchtopk, x, W, b, k, 0.7 * threshold, plan)
        m(f"encode batchtopk {plan}", batch, flops=gemm)
    for changes in ({"maxnreg": 128}, {"num_stages": 4}) if gpu else ():
        candidates.LAUNCH.update(changes)
        m(f"encode topk fused {changes}", lambda: encode.encode_topk(x, W, b, k, "fused"))
        candidates.LAUNCH.clear()


def after_the_encoder(text: str, x: torch.Tensor, W: torch.Tensor, b: torch.Tensor) -> None:
    (B, D), F, k = x.shape, len(W), options.k
    m, moved = functools.partial(measure, shape=text), lambda op: COSTS[op](B, D, F, k).bytes
    codes, _ = encode.encode_topk(x, W, b, k, "gemm")
    m("transpose", lambda: transpose_codes(codes))
    codes._transpose = transpose_codes(codes)
    rows, zero = x.float(), b.new_zeros(D)
    got = decode_gradients(codes, W, zero, rows, torch.bfloat16)
    m(
        "decode, loss, gradients",
        lambda: decode_gradients(codes, W, zero, rows, torch.bfloat16),
        moved=moved("decode_mse"),
    )
    level = codes.idx.long() * 5 // F
    m("nested errors", lambda: entries.nested_row_errors(codes, W, zero, rows, level, 5, True))
    moments = [torch.zeros_like(t) for t in (W.float(), W.float(), b, b, W.float(), W.float())]
    low = {"W_enc_low": W.clone(), "W_dec_low": W.clone()}
    state = FeatureState(W.float(), b.clone(), W.float(), *moments, **low)
    settings = AdamSettings(1e-5, 0.9, 0.999, 1e-8, 1, True)
    g, dvals = got.g_BD, got.dvals_BK
    assert g is not None and dvals is not None
    for name, gathered in (("bf16", (x, g)), ("fp32", (rows, g.float()))):
        m(
            f"feature step, x and g in {name}",
            functools.partial(feature_step, state, codes, dvals, *gathered, settings),
            moved=moved("feature_step"),
        )


def steps(text: str, x: torch.Tensor, F: int) -> None:
    """Whole steps of the trainer."""
    index, number = torch.arange(len(x), device=device), itertools.count()
    batch = ActivationBatch(x, index, index, index)
    for sparsity in ("topk", "batchtopk", "matryoshka", "l1", "jumprelu"):
        sae = build("sae", x.shape[1], {"latents": F, "sparsity": sparsity}).to(device)
        assert isinstance(sae, SAE)
        sae.path = "sparse"
        with torch.no_grad():
            sae.W_dec.normal_().div_(x.shape[1] ** 0.5)
            sae.W_enc.copy_(sae.W_dec)
            sae.b_enc.sub_(0.0 if "k" in vars(sae.config) else 3.4)
        adam = make_adam(sae, 1e-6)

        def step(sae=sae, adam=adam):
            take_step(sae, adam, batch, Step(next(number), 10**6, backend="triton"))

        measure(f"step {sparsity}", step, text, flops=2.0 * x.numel() * F)
        if gpu:
            gib = torch.cuda.max_memory_allocated() / 2**30
            note(what=f"peak memory {sparsity}", shape=text, gib=round(gib, 2))
            torch.cuda.reset_peak_memory_stats()
        del sae, adam, step


if gpu:
    rates()
for text in options.shapes:
    D, F, B = map(int, text.split("x"))
    torch.manual_seed(0)
    x = hidden_rows(B, D).to(device)
    W = torch.nn.functional.normalize(torch.randn(F, D, device=device), dim=1)
    b = torch.zeros(F, device=device)
    encoders(text, x.bfloat16(), W.bfloat16(), b)
    after_the_encoder(text, x.bfloat16(), W.bfloat16(), b)
    del W
    steps(text, x, F)
