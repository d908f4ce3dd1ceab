"""`saekit bench kernels`: each operation of a step against dense torch on the same inputs,
interleaved.

On a CPU it measures the torch path (its encoder with both plans), on a GPU also the Triton kernels
in bf16. `of_floor` is the median over that of the encoder product on a CPU, over the cost model's
floor on a GPU that the cost model knows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from saekit_kernels import (
    AdamSettings,
    FeatureState,
    Workspace,
    decode,
    decode_mse,
    encode_threshold,
    encode_topk,
    encoder_plan,
    feature_step,
    floor_ms,
    relu_reconstruction,
    sigmoid_reconstruction,
    sparse_weight_grad,
    topk_rows,
)
from saekit_kernels.cost import OPERATIONS as COSTS
from saekit_kernels.reference import relu_reconstruction_dense, sigmoid_reconstruction_dense
from torch import nn

from saekit.bench.shapes import ON_CPU, ON_GPU, QUICK_ON_CPU, Shape, hidden_rows, sae_for
from saekit.bench.timing import Measurement, Timer

Calls = dict[tuple[str, str], Callable[[], object]]  # (mode, backend) -> one call
Weights = tuple[nn.Parameter, nn.Parameter, nn.Parameter, nn.Parameter]
L0 = 64.0  # of the thresholded code
COEF, RATE = 0.7, 0.01


def kernel_cases(
    timer: Timer, shapes: list[Shape] | None = None, k: int = 32, quick: bool = False
) -> list[tuple[str, Callable[[], Iterator[Measurement]]]]:
    """(name, what measures it) for every operation at the given shapes (default: one on a CPU,
    three on a GPU)."""
    if timer.device.type == "cpu":
        default = QUICK_ON_CPU if quick else ON_CPU
    else:
        default = ON_GPU[:1] if quick else ON_GPU

    @functools.lru_cache(maxsize=1)  # the tensors of one shape at a time
    def problem(shape: Shape) -> _Problem:
        return _Problem(shape, k, timer)

    return [
        (f"{op} {shape}", lambda op=op, shape=shape: _compare(op, problem(shape)))
        for shape in shapes or default
        for op in OPERATIONS
    ]


def _compare(op: str, problem: _Problem) -> Iterator[Measurement]:
    calls = OPERATIONS[op](problem)
    if problem.on_gpu:  # as a dense step is trained
        calls = {
            (mode, backend): _in_bfloat16(call) if mode == "dense" else call
            for (mode, backend), call in calls.items()
        }
    timings = problem.timer(calls)
    dense = next((ms[0] for (mode, _), ms in timings.items() if mode == "dense"), None)
    shape, thresholded = problem.shape, op in ("encode_relu", "relu_step")
    floor = problem.product_ms
    if problem.on_gpu:
        name, floor = torch.cuda.get_device_name(problem.device), None
        if op in COSTED:
            floor = floor_ms(COSTED[op], shape.B, shape.D, shape.F, problem.k, name)
    for (mode, backend), ms in timings.items():
        dtype = (
            "bfloat16" if backend == "triton" or (problem.on_gpu and mode == "dense") else "float32"
        )
        row = Measurement(op, mode, backend, str(shape), dtype, *ms)
        row.ratio = round(dense / ms[0], 2) if dense else None
        row.of_floor = round(ms[0] / floor, 2) if floor else None
        row.rows_per_s = round(1e3 * shape.B / ms[0])
        row.k, row.l0 = (None, L0) if thresholded else (problem.k, None)
        if op in COSTED and mode.startswith("saekit"):
            work = COSTS[COSTED[op]](shape.B, shape.D, shape.F, problem.k)
            row.tflop_per_s = round(work.flops / ms[0] / 1e9, 3)
            row.gb_per_s = round(work.bytes / ms[0] / 1e6, 1)
        yield row


def _in_bfloat16(call: Callable[[], object]) -> Callable[[], object]:
    def cast() -> object:
        with torch.autocast("cuda", torch.bfloat16):
            return call()

    return cast


class _Problem:
    """The tensors that the operations share."""

    def __init__(self, shape: Shape, k: int, timer: Timer) -> None:
        device = timer.device
        self.shape, self.k, self.device, self.timer = shape, k, device, timer
        self.on_gpu = device.type == "cuda"
        self.x = hidden_rows(shape.B, shape.D).to(device)
        self.model = sae_for(shape, self.x, "topk", k)
        with torch.no_grad():
            thresholded = sae_for(shape, self.x, "l1", L0)
            self.thresholded = [parameter.detach() for parameter in thresholded.weights]
        self.W, self.b = self.model.W_enc.detach(), self.model.b_enc.detach()
        self.W_dec, self.b_dec = self.model.W_dec.detach(), self.model.b_dec.detach()
        self.workspace = Workspace()
        self.codes = encode_topk(self.x, self.W, self.b, k, self.workspace)
        self.codes.transpose()
        self.decoded = decode_mse(self.codes, self.W_dec, self.b_dec, self.x)
        if self.on_gpu:
            self.x_low, self.W_low, self.W_dec_low = (
                t.bfloat16() for t in (self.x, self.W, self.W_dec)
            )

        self.product_ms = None if self.on_gpu else timer({"product": self.product})["product"][0]

    def product(self) -> torch.Tensor:
        pre = self.workspace.get("product", (self.shape.B, self.shape.F), self.x)
        return torch.mm(self.x, self.W.T, out=pre)

    def dense_code(self) -> torch.Tensor:
        return self.codes.to_dense()

    def parameters(self) -> Weights:
        W_enc, b_enc, W_dec, b_dec = (nn.Parameter(t.clone()) for t in self.thresholded)
        return W_enc, b_enc, W_dec, b_dec

    def gradients(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(with respect to the code's values (B,K), to x_hat (B,D))."""
        assert self.decoded.dvals_BK is not None and self.decoded.g_BD is not None
        return self.decoded.dvals_BK, self.decoded.g_BD


def _encode_topk(p: _Problem) -> Calls:
    calls: Calls = {
        ("dense", "torch"): lambda: torch.relu(torch.addmm(p.b, p.x, p.W.T)).topk(
            p.k, dim=1, sorted=False
        )
    }
    plans = ["filter", "gemm"] if encoder_plan(p.x, p.W) == "filter" else ["gemm"]
    for plan in plans:
        calls[f"saekit {plan}", "torch"] = lambda plan=plan: encode_topk(
            p.x, p.W, p.b, p.k, p.workspace, plan
        )
    if p.on_gpu:
        from saekit_kernels.gpu.encode import encode_topk as encode

        for plan in ("fused", "gemm"):
            calls[f"saekit {plan}", "triton"] = lambda plan=plan: encode(
                p.x_low, p.W_low, p.b, p.k, plan=plan
            )
    return calls


def _encode_relu(p: _Problem) -> Calls:
    W, b = p.thresholded[:2]
    calls: Calls = {("dense", "torch"): lambda: torch.relu(torch.addmm(b, p.x, W.T))}
    calls["saekit", "torch"] = lambda: encode_threshold(p.x, W, b, 0.0, p.workspace)
    if p.on_gpu:
        from saekit_kernels.gpu.encode import encode_relu

        W_low = W.bfloat16()
        calls["saekit", "triton"] = lambda: encode_relu(p.x_low, W_low, b, round(8 * L0) * len(p.x))
    return calls


def _select(p: _Problem) -> Calls:
    pre = torch.addmm(p.b, p.x, p.W.T)
    calls: Calls = {
        ("dense", "torch"): lambda: pre.topk(p.k, dim=1, sorted=False),
        ("saekit", "torch"): lambda: topk_rows(pre, p.k),
    }
    if p.on_gpu:
        from saekit_kernels.gpu.select import select_topk

        low = pre.bfloat16()
        calls["saekit", "triton"] = lambda: select_topk(low, p.k)
    return calls


def _decode(p: _Problem) -> Calls:
    z = p.dense_code()
    calls: Calls = {("dense", "torch"): lambda: torch.addmm(p.b_dec, z, p.W_dec)}
    calls["saekit", "torch"] = lambda: decode(p.codes, p.W_dec, p.b_dec)
    return calls


def _decode_mse(p: _Problem) -> Calls:
    z = p.dense_code()

    def dense() -> torch.Tensor:
        residual = torch.addmm(p.b_dec, z, p.W_dec) - p.x
        residual.square().sum(1)
        return torch.where(z > 0, (2 / p.shape.B * residual) @ p.W_dec.T, 0.0)

    calls: Calls = {
        ("dense", "torch"): dense,
        ("saekit", "torch"): lambda: decode_mse(p.codes, p.W_dec, p.b_dec, p.x),
    }
    if p.on_gpu:
        from saekit_kernels.gpu.decode import decode_mse as on_gpu

        calls["saekit", "triton"] = lambda: on_gpu(p.codes, p.W_dec_low, p.b_dec, p.x)
    return calls


def _weight_grad(p: _Problem) -> Calls:
    """Both weight gradients."""
    z, dz = p.dense_code(), p.dense_code()
    dvals, g = p.gradients()
    calls: Calls = {("dense", "torch"): lambda: (dz.T @ p.x, z.T @ g)}
    calls["saekit", "torch"] = lambda: (
        sparse_weight_grad(p.codes, dvals, p.x),
        sparse_weight_grad(p.codes, p.codes.vals, g),
    )
    if p.on_gpu:
        from saekit_kernels.gpu.grad import sparse_weight_grad_dual

        calls["saekit", "triton"] = lambda: sparse_weight_grad_dual(
            p.codes, dvals, p.x, p.codes.vals, g
        )
    return calls


def _transpose(p: _Problem) -> Calls:
    def by_sorting() -> object:
        p.codes._transpose = None
        return p.codes.transpose()

    calls: Calls = {("saekit", "torch"): by_sorting}
    if p.on_gpu:
        from saekit_kernels.gpu.transpose import transpose_codes

        calls["saekit", "triton"] = lambda: transpose_codes(p.codes)
    return calls


def _feature_step(p: _Problem) -> Calls:
    """Weight gradients, projection, Adam, unit norm."""

    def state() -> FeatureState:
        weights = (p.W.clone(), p.b.clone(), p.W_dec.clone())
        W, W2, b, b2, V, V2 = (torch.zeros_like(t) for t in weights for _ in range(2))
        return FeatureState(*weights, W, W2, b, b2, V, V2)

    settings = AdamSettings(1e-5, 0.9, 0.999, 1e-8, 1, True)
    dvals, g = p.gradients()
    z, dz = p.dense_code(), p.dense_code()
    weights = [torch.nn.Parameter(t.clone()) for t in (p.W, p.b, p.W_dec)]
    adam = torch.optim.Adam(weights, lr=1e-5, fused=True)

    def dense() -> None:
        weights[0].grad, weights[1].grad, weights[2].grad = dz.T @ p.x, dz.sum(0), z.T @ g
        W = weights[2].data
        gradient = weights[2].grad
        gradient.sub_((gradient * W).sum(1, keepdim=True) * W)
        adam.step()
        W.div_(W.norm(dim=1, keepdim=True))

    calls: Calls = {("dense", "torch"): dense}
    # on a GPU only one: weights and moments of several do not fit 80 GB
    for backend in ("triton",) if p.on_gpu else ("torch",):
        features = state()
        calls["saekit", backend] = lambda features=features, backend=backend: feature_step(
            features, p.codes, dvals, p.x, g, settings, backend
        )
    return calls


def _relu_step(p: _Problem) -> Calls:
    """Loss and gradients of ReLU + L1 on the dense path, for codes with many active latents."""

    def dense(weights: Weights) -> torch.Tensor:
        error, l1, _ = relu_reconstruction_dense(p.x, *weights)
        return error + COEF * l1

    def ours(weights: Weights, backend: str) -> torch.Tensor:
        return relu_reconstruction(
            p.x, *weights, COEF, True, p.workspace, "dense", backend=backend
        ).total

    return _step_calls(p, dense, ours)


def _sigmoid_step(p: _Problem) -> Calls:
    """Loss and gradients of sigmoid codes with the KL penalty."""

    def dense(weights: Weights) -> torch.Tensor:
        error, kl, _ = sigmoid_reconstruction_dense(p.x, *weights, RATE)
        return error + COEF * kl

    def ours(weights: Weights, backend: str) -> torch.Tensor:
        return sigmoid_reconstruction(p.x, *weights, COEF, RATE, p.workspace, backend).total

    return _step_calls(p, dense, ours)


def _step_calls(
    p: _Problem,
    dense: Callable[[Weights], torch.Tensor],
    ours: Callable[[Weights, str], torch.Tensor],
) -> Calls:
    """Each loss with its gradients."""
    weights = p.parameters()

    def run(loss: Callable[[Weights], torch.Tensor]) -> None:
        for parameter in weights:
            parameter.grad = None
        loss(weights).backward()

    calls: Calls = {("dense", "torch"): lambda: run(dense)}
    for backend in ("torch", "triton") if p.on_gpu else ("torch",):
        calls["saekit", backend] = lambda backend=backend: run(lambda w: ours(w, backend))
    return calls


OPERATIONS: dict[str, Callable[[_Problem], Calls]] = {
    "encode_topk": _encode_topk,
    "encode_relu": _encode_relu,
    "select": _select,
    "decode": _decode,
    "decode_mse": _decode_mse,
    "transpose": _transpose,
    "weight_grad": _weight_grad,
    "feature_step": _feature_step,
    "relu_step": _relu_step,
    "sigmoid_step": _sigmoid_step,
}
# operation -> its name in the cost model
COSTED = {"encode_topk": "encode"} | {
    op: op for op in ("select", "decode_mse", "weight_grad", "feature_step")
}
