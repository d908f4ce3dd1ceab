"""One TopK training step against the same step by dense autograd, interleaved in one run.

    python benchmarks/bench_step.py [--d 576 --latents 18432 --rows 4096 --k 32 --rounds 7]

Arms: `saekit` is Trainer's step on a model (loss, backward, projection, fused Adam, unit norm); `dense` is hand-written torch
(ReLU, topk, scatter, two GEMMs, autograd, fused Adam, unit norm), with and without saekit's allocator setting; `gemm` is the
encoder product alone, the floor. Prints one JSON object with medians in ms and ratios; nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time

import torch
from saekit_kernels import keep_freed_memory

from saekit.models.catalog import build
from saekit.training.optim import make_adam
from saekit.types import ActivationBatch


def saekit_step(x_BD, latents, k):
    model = build("sae", x_BD.shape[1], {"latents": latents, "k": k})
    model.initialise(x_BD, torch.Generator().manual_seed(0))
    optimizer = make_adam(model, 1e-4)
    index = torch.arange(len(x_BD))
    batch = ActivationBatch(x_BD, index, index, index)

    def step():
        optimizer.zero_grad(set_to_none=True)
        model.loss(batch, 0).total.backward()
        model.before_step()
        optimizer.step()
        model.after_step()

    return step, model


def dense_step(x_BD, model, k):
    parameters = [torch.nn.Parameter(p.detach().clone()) for p in (model.W_enc, model.b_enc, model.W_dec, model.b_dec)]
    W_enc, b_enc, W_dec, b_dec = parameters
    optimizer = torch.optim.Adam(parameters, lr=1e-4, fused=True)

    def step():
        optimizer.zero_grad(set_to_none=True)
        pre = torch.relu(x_BD @ W_enc.T + b_enc)
        vals, idx = pre.topk(k, dim=1, sorted=False)
        z = torch.zeros_like(pre).scatter(1, idx, vals)
        (z @ W_dec + b_dec - x_BD).square().sum(1).mean().backward()
        W_dec.grad.sub_((W_dec.grad * W_dec.data).sum(1, keepdim=True) * W_dec.data)
        optimizer.step()
        W_dec.data.div_(W_dec.data.norm(dim=1, keepdim=True))

    return step


def measure(arms, rounds):
    for arm in arms.values():
        arm()
    times = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            began = time.perf_counter()
            arm()
            times[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("d", 576), ("latents", 18432), ("rows", 4096), ("k", 32), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    a = parser.parse_args()
    torch.manual_seed(0)
    x_BD = torch.randn(a.rows, a.d)
    ours, model = saekit_step(x_BD, a.latents, a.k)
    dense = dense_step(x_BD, model, a.k)
    pre, W = torch.empty(a.rows, a.latents), model.W_enc.detach()
    default = measure({"dense": dense}, max(a.rounds // 2, 1))["dense"]
    keep_freed_memory()
    ms = measure({"saekit": ours, "dense": dense, "gemm": lambda: torch.mm(x_BD, W.T, out=pre)}, a.rounds)
    result = {
        "shape": f"{a.d}x{a.latents}x{a.rows} k={a.k}",
        "ms": {name: round(value, 1) for name, value in ms.items()} | {"dense, default malloc": round(default, 1)},
        "times faster than dense": round(ms["dense"] / ms["saekit"], 2),
        "times the encoder GEMM": round(ms["saekit"] / ms["gemm"], 2),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
