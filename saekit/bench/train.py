"""`saekit bench train`: whole training steps (loss, gradients, projection, Adam, unit norm; no
loading), saekit against dense torch.

`dense` is plain torch (saekit_kernels.reference: ReLU, topk, scatter, two products; autograd, fused
Adam, unit norm), on a GPU in bf16 autocast and also compiled; `floor` is the encoder product and
fused Adam on both weight matrices; `saekit` is the step of `saekit train`, and `saekit fp32` the
same without the bf16 filter where that is the default. Peers run on request, where they are
installed.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from saekit_kernels import (
    encoder_plan,
    keep_freed_memory,
    relu_reconstruction,
    resolve_backend,
    sigmoid_reconstruction,
    topk_reconstruction,
)
from saekit_kernels.reference import (
    relu_reconstruction_dense,
    sigmoid_reconstruction_dense,
    topk_reconstruction_dense,
)

from saekit.bench.peers import STEPS
from saekit.bench.shapes import ON_CPU, ON_GPU, Shape, hidden_rows, sae_for
from saekit.bench.timing import Measurement, interleaved
from saekit.models.sae import SAE
from saekit.training.optim import make_adam
from saekit.training.step import take_step
from saekit.types import ActivationBatch, Step

RATE = 1e-5  # small, so that L0 stays what it was made to be
SMALL = [Shape(64, 512, 1024), Shape(64, 2048, 4096), Shape(384, 768, 1024), Shape(384, 3072, 1024)]


class Case(NamedTuple):
    sparsity: str  # topk | l1 | kl
    shape: Shape
    k: int
    l0: float | None = None  # of l1


def bench_train(
    shapes: list[Shape] | None = None,
    k: int = 32,
    against: tuple[str, ...] = (),
    quick: bool = False,
    device: torch.device | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Measurement]:
    """TopK, L1 and KL steps at the given shapes; by default one shape and small widths on a CPU, a
    grid of shapes, batches, k and L0 on a GPU."""
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    keep_freed_memory()
    rounds = (3 if quick else 7) if device.type == "cpu" else (10 if quick else 50)
    results = []
    for case in _cases(shapes, k, quick, device.type):
        active = f"k {case.k}" if case.sparsity == "topk" else ""
        if case.l0:
            active = f"L0 {case.l0:g}"
        progress(f"{case.sparsity} {case.shape} {active}".rstrip())
        peers = against if case.sparsity == "topk" else ()
        results += _compare(case, peers, rounds if case.shape not in SMALL else 5 * rounds, device)
    return results


def _cases(shapes: list[Shape] | None, k: int, quick: bool, device_type: str) -> list[Case]:
    on_gpu = device_type == "cuda"
    several_l0 = (32.0, 64.0, 128.0, 256.0) if on_gpu and not quick else (64.0,)
    chosen, cases = shapes or (ON_GPU[:1] if on_gpu and quick else ON_GPU if on_gpu else ON_CPU), []
    for shape in chosen:
        cases += [
            Case("topk", shape, k),
            *(Case("l1", shape, k, l0) for l0 in several_l0),
            Case("kl", shape, k),
        ]
    if shapes is not None or (on_gpu and quick):
        return cases
    if on_gpu:
        cases += [Case("topk", shape, other) for shape in chosen for other in (64, 256)]
        return cases + [
            Case("topk", shape._replace(B=B), k) for shape in chosen for B in (4096, 32768)
        ]
    return cases + [Case("topk", shape, k) for shape in SMALL]


def _compare(
    case: Case, against: tuple[str, ...], rounds: int, device: torch.device
) -> list[Measurement]:
    sparsity, shape, k, _ = case
    x = hidden_rows(shape.B, shape.D).to(device)
    model = sae_for(shape, x, sparsity, k, case.l0)
    backend = resolve_backend("auto", device.type).name
    calls = {
        "dense": _dense_step(model, x, k),
        "floor": _floor_step(model, x),
        "saekit": _saekit_step(model, x, backend),
    }
    if sparsity != "kl" and encoder_plan(x, model.W_enc) == "filter":
        calls["saekit fp32"] = _saekit_step(model, x, backend, "gemm")
    if device.type == "cuda":
        calls["dense compiled"] = _dense_step(model, x, k, compiled=True)
    for peer in against:
        calls[peer] = STEPS[peer](model, x, k, RATE)
    l0, path = _path(model, x)
    timings = interleaved(calls, rounds, device)
    peaks = {}
    if device.type == "cuda":
        peaks = {name: _peak_mb(call, device) for name, call in calls.items()}
    dense, floor = timings["dense"][0], timings["floor"][0]
    results = []
    for name, ms in timings.items():
        ours = name.startswith("saekit")
        row = Measurement(
            f"{sparsity}_step",
            name,
            backend if name == "saekit" else "torch",
            str(shape),
            "float32",
            *ms,
        )
        row.ratio, row.of_floor = round(dense / ms[0], 2), round(ms[0] / floor, 2)
        row.rows_per_s = round(1e3 * shape.B / ms[0])
        row.k, row.l0 = k if sparsity == "topk" else None, round(l0, 1)
        row.note = f"{path} path" if ours and row.backend == "torch" else ""
        row.peak_mb = peaks.get(name)
        results.append(row)
    return results


def _peak_mb(call: Callable[[], object], device: torch.device) -> float:
    """Peak device memory of one call, beyond what all implementations hold all the time."""
    torch.cuda.synchronize(device)
    constant = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return round((torch.cuda.max_memory_allocated(device) - constant) / 1e6, 1)


def _path(model: SAE, x: torch.Tensor) -> tuple[float, str]:
    """(L0, sparse or dense: the path that the torch backend takes)."""
    with torch.no_grad():
        if model.config.sparsity == "topk":
            step = topk_reconstruction(x, *model.weights, model.config.k)
        elif model.config.sparsity == "l1":
            step = relu_reconstruction(x, *model.weights, 0.0)
        else:
            step = sigmoid_reconstruction(x, *model.weights, 0.0, model.config.target_rate)
    return float(step.fired_F.sum()) / len(x), step.path


def _copy(model: SAE) -> SAE:
    twin = SAE(model.config).to(model.W_enc.device)
    twin.load_state_dict(model.state_dict())
    return twin


def _saekit_step(
    model: SAE, x: torch.Tensor, backend: str, plan: str = "auto"
) -> Callable[[], object]:
    twin = _copy(model)
    twin.path = "sparse"
    optimizer = make_adam(twin, RATE)
    index = torch.arange(len(x), device=x.device)
    batch = ActivationBatch(x, index, index, index)
    steps = itertools.count()
    return lambda: take_step(
        twin, optimizer, batch, Step(next(steps), backend=backend, encoder_plan=plan)
    )


def _floor_step(model: SAE, x: torch.Tensor) -> Callable[[], object]:
    """The least that an exact fp32 step could do: one encoder product, and Adam on existing
    gradients."""
    twin = _copy(model)
    optimizer = make_adam(twin, RATE)
    for parameter in twin.parameters():
        parameter.grad = torch.zeros_like(parameter)
    pre, W_DF = x.new_empty(len(x), model.latents), twin.W_enc.detach().T

    def step() -> None:
        torch.mm(x, W_DF, out=pre)
        optimizer.step()

    return step


def _dense_step(
    model: SAE, x: torch.Tensor, k: int, compiled: bool = False
) -> Callable[[], object]:
    parameters = [
        torch.nn.Parameter(p.detach().clone())
        for p in (model.W_enc, model.b_enc, model.W_dec, model.b_dec)
    ]
    W_dec, unit = parameters[2], model.config.decoder_norm == "unit"
    optimizer = torch.optim.Adam(parameters, lr=RATE, fused=True)
    sparsity, coef = model.config.sparsity, model.control.coef
    rate = getattr(model.config, "target_rate", 0.0)

    def loss(W_enc, b_enc, W_dec, b_dec) -> torch.Tensor:
        weights = (W_enc, b_enc, W_dec, b_dec)
        if sparsity == "topk":
            return topk_reconstruction_dense(x, *weights, k, stable=False)[0]
        if sparsity == "l1":
            error, penalty, _ = relu_reconstruction_dense(x, *weights)
        else:
            error, penalty, _ = sigmoid_reconstruction_dense(x, *weights, rate)
        return error + coef * penalty

    loss = torch.compile(loss, mode="max-autotune-no-cudagraphs") if compiled else loss
    cast = torch.autocast("cuda", torch.bfloat16) if x.is_cuda else contextlib.nullcontext()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with cast:
            value = loss(*parameters)
        value.backward()
        if unit:
            assert W_dec.grad is not None
            W_dec.grad.sub_((W_dec.grad * W_dec.data).sum(1, keepdim=True) * W_dec.data)
        optimizer.step()
        if unit:
            W_dec.data.div_(W_dec.data.norm(dim=1, keepdim=True))

    return step
