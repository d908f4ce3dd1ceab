"""Compile what is launched: every operation once through its launcher, on CPU tensors, with a
driver that compiles for a GPU and launches nothing. Prints one JSON object per compiled kernel.

    TRITON_INTERPRET=0 python tests/kernels/gpu/launches.py 90

The cases of `saekit_kernels.gpu.compile` name types and constants by hand; here they are those that
the launchers pass. Results are garbage, so nothing may depend on them.
"""

from __future__ import annotations

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton.compiler.compiler as compiler
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

TARGET = int(sys.argv[1])
compiled: dict[str, dict] = {}


class Utils:
    def get_device_properties(self, device):
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32}

    def load_binary(self, name, kernel, shared, device, *_):
        return 1, 1, 0, 0, 1024

    def __getattr__(self, name):
        return lambda *_, **__: None


class Launcher:
    def __init__(self, source, metadata):
        pass

    def __call__(self, *_, **__):
        pass


class Driver:
    launcher_cls, utils = Launcher, Utils()

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", TARGET, 32)

    def get_active_torch_device(self):
        return torch.device("cpu")

    def __getattr__(self, name):
        return lambda *_, **__: None


driver.set_active(Driver())

import saekit_kernels.gpu.penalty as penalty  # noqa: E402
from saekit_kernels import AdamSettings, FeatureState  # noqa: E402
from saekit_kernels.codes import RaggedCodes, SparseCodes  # noqa: E402
from saekit_kernels.gpu import compile as ahead_of_time  # noqa: E402
from saekit_kernels.gpu import encode, entries, select  # noqa: E402
from saekit_kernels.gpu.decode import decode_gradients, decode_mse  # noqa: E402
from saekit_kernels.gpu.filter import candidates, pack  # noqa: E402
from saekit_kernels.gpu.grad import sparse_weight_grad, sparse_weight_grad_dual  # noqa: E402
from saekit_kernels.gpu.optim import feature_step  # noqa: E402
from saekit_kernels.gpu.transpose import transpose_codes  # noqa: E402

penalty.launchable = lambda *_: True
make = compiler.CompiledKernel.__init__


def noted(self, src, metadata_group, hash):
    make(self, src, metadata_group, hash)
    usage = ahead_of_time._resource_usage(self.asm["cubin"])
    signature = {name: str(kind) for name, kind in src.signature.items() if kind != "constexpr"}
    compiled[hash] = {"kernel": src.fn.__name__, "signature": signature} | usage


compiler.CompiledKernel.__init__ = noted


def step_of(codes, x, W, b, low):
    """The kernels of a fused step, and those of one whose values go through autograd."""
    codes._transpose = transpose_codes(codes)
    codes._transpose.ptr.zero_()
    g, dvals = x.to(low.dtype), codes.vals
    decode_gradients(codes, low, x[0], x, low.dtype)
    decode_mse(codes, W, x[0], x, True, b)
    sparse_weight_grad_dual(codes, dvals, x, codes.vals, x)
    sparse_weight_grad(codes, dvals, x.new_ones(len(codes), 1))
    moments = [t.clone() for t in (W, W, b, b, W, W)]
    state = FeatureState(W.clone(), b.clone(), W.clone(), *moments, low.clone(), low.clone())
    for sparse_rows in (False, True):
        settings = AdamSettings(1e-3, 0.9, 0.999, 1e-8, 1, True, sparse_rows=sparse_rows)
        feature_step(state, codes, dvals, x.to(low.dtype), g, settings)
    entries.products(codes, x, W)
    level = torch.zeros_like(codes.idx)
    entries.nested_row_errors(codes, W, x[0], x, level, 5, True)


def launch(B: int, D: int, F: int, k: int) -> None:
    x, W, b = torch.zeros(B, D), torch.zeros(F, D), torch.zeros(F)
    x_low, W_low = x.bfloat16(), W.bfloat16()
    for rows, weights in ((x_low, W_low), (x, W)):
        for plan in ("fused", "gemm"):
            encode.encode_topk(rows, weights, b, k, plan)
            key = torch.ones((), dtype=torch.int32)
            for passes in ({"theta": b[0]}, {"theta": b}, {"bound": key}):
                pack(candidates(rows, weights, b, plan, **passes), B, B * k, b.device)
    select.select_topk(torch.zeros(B, F, dtype=torch.bfloat16), k)
    vals, idx = torch.zeros(B, k), torch.zeros(B, k, dtype=torch.int32)
    padded = SparseCodes(vals, idx, torch.zeros(B, dtype=torch.int32), F)
    ptr = torch.zeros(B + 1, dtype=torch.int32)
    ragged = RaggedCodes(ptr, vals.flatten(), idx.flatten(), F)
    for codes in (padded, ragged):
        step_of(codes, x, W, b, W_low)
    f, _ = penalty.sigmoid_encode(x_low, W_low, b)
    penalty.sigmoid_dpre(x_low, W_low, f, b)
    penalty.sigmoid_pull(f, b)
    penalty.relu_forward(f, b)
    penalty.relu_backward(f, f.clone(), b)


for D, F, k in ((768, 4096, 32), (4096, 4096, 64)):
    launch(300, D, F, k)
print(json.dumps(list(compiled.values())))
