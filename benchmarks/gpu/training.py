"""The trainer end to end on rows like hidden states, of which one in forty is long: every kind of
code, twice the same bits, the loader beside the step.

    python benchmarks/gpu/training.py --rows 262144 --steps 96
    TRITON_INTERPRET=1 python benchmarks/gpu/training.py --device cpu --backend triton --width 16 \\
        --rows 640 --steps 2 --batch 64 --latents 256    (a dry run)
"""

from __future__ import annotations

import argparse
import tempfile
import time
import traceback
from pathlib import Path

import torch
from safetensors.torch import load_file

import saekit
from saekit.bench.shapes import hidden_rows

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--device", default="cuda")
parser.add_argument("--backend", default="auto")
parser.add_argument("--width", type=int, default=768)
parser.add_argument("--rows", type=int, default=262_144)
parser.add_argument("--steps", type=int, default=96)
parser.add_argument("--batch", type=int, default=8192)
parser.add_argument("--latents", type=int, default=24_576)
options = parser.parse_args()
k = min(32, options.latents // 64)
CODES = {
    "batchtopk": {"k": k},
    "matryoshka": {"k": k},
    "jumprelu": {"target_l0": k},
    "gated": {"target_l0": k},
    "l1": {"target_l0": k},
    "tanh": {"target_l0": k},
}


def run(folder: Path, name: str, rows: torch.Tensor, **settings):
    """A line about a run; None if it failed."""
    began = time.time()
    settings = {"backend": options.backend, "device": options.device} | settings
    try:
        result = saekit.train(
            rows, folder / name, latents=options.latents, batch=options.batch,
            rows=options.batch * options.steps, **settings,
        )  # fmt: skip
    except Exception as error:
        print(f"FAIL  {name:12s} {type(error).__name__}: {str(error)[:300]}", flush=True)
        traceback.print_exc(limit=4)
        return None
    kept = ("fvu", "l0", "dead", "dead_train")
    figures = {n: round(v, 4) for n, v in result.metrics.items() if n in kept and v is not None}
    speed = f"{result.rows_per_s:,.0f} rows/s"
    print(f"ok    {name:12s} {result.backend} {speed} {figures} {time.time() - began:.0f} s")
    return folder / name / "model.safetensors"


torch.manual_seed(0)
rows = hidden_rows(options.rows, options.width)
with tempfile.TemporaryDirectory() as temporary:
    folder = Path(temporary)
    first, second = (run(folder, n, rows, sparsity="topk", k=k) for n in ("topk", "topk-again"))
    if first is not None and second is not None:
        one, two = load_file(first), load_file(second)
        print("the same bits twice:", all(torch.equal(one[n], two[n]) for n in one), flush=True)
    run(folder, "topk-torch", rows, sparsity="topk", k=k, backend="torch")
    for sparsity, settings in CODES.items():
        run(folder, sparsity, rows, sparsity=sparsity, **settings)
