"""How much time a sweep saves, and whether its members should be one stacked computation.

    python benchmarks/bench_sweep.py STORE [--latents 2048 --rows 100000 --members 4 --rounds 2]

First part: `members` TopK runs that differ only in the seed, one after the other with `train` on
all cores, against one sweep; interleaved, wall time from start to checkpoint, ratio sweep / runs.
Second part, on one thread: milliseconds per member and step, one member after the other with the
kernels, against all members in one stacked dense computation (baddbmm, autograd, one fused Adam).
Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import saekit
from saekit.models.catalog import build
from saekit.store.reader import Store
from saekit.training.optim import make_adam
from saekit.training.step import take_step
from saekit.types import ActivationBatch, Step

K = 32
# D, F, B
STACKED = ((576, 2048, 1024), (576, 2048, 256), (384, 1024, 256), (64, 2048, 1024), (64, 512, 256))
STEPS, ROUNDS = 4, 4


def whole_runs(store: str, a: argparse.Namespace) -> dict:
    """Seconds of separate runs and of one sweep."""
    options = {"latents": a.latents, "batch": a.batch, "rows": a.rows, "k": K, "order_seed": 0}
    times = {"runs": [], "sweep": []}
    for _ in range(a.rounds):
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            for seed in range(a.members):
                saekit.train(store, Path(folder) / str(seed), seed=seed, **options)
            times["runs"].append(time.monotonic() - began)
            began = time.monotonic()
            saekit.sweep(store, Path(folder) / "sweep", {**options, "seed": list(range(a.members))})
            times["sweep"].append(time.monotonic() - began)
    seconds = {name: round(statistics.median(values), 2) for name, values in times.items()}
    shape = f"{Store(Path(store)).spec.d_in}x{a.latents}x{a.batch}"
    ratio = round(seconds["sweep"] / seconds["runs"], 3)
    return {
        "shape": shape,
        "rows": a.rows,
        "members": a.members,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "ratio": ratio,
    }


def stacked(D: int, F: int, B: int, members: int) -> dict:
    """Milliseconds per member and step, in turn and stacked."""
    rows = [torch.randn(B, D, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    index, saes = torch.arange(B), []
    for seed in range(members):
        sae = build("sae", D, {"latents": F, "k": K})
        sae.initialise_from(rows[0], torch.Generator().manual_seed(seed))
        saes.append((sae, make_adam(sae, 1e-3)))
    stack = [
        torch.nn.Parameter(torch.stack([getattr(sae, n).detach() for sae, _ in saes]))
        for n in ("W_enc", "b_enc", "W_dec", "b_dec")
    ]
    optimizer = torch.optim.Adam(stack, lr=1e-3, fused=True)

    def in_turn(step: int) -> None:
        for sae, adam in saes:
            take_step(
                sae, adam, ActivationBatch(rows[step % 4], index, index, index), Step(step, 1000)
            )

    def at_once(step: int) -> None:
        x, (W_enc, b_enc, W_dec, b_dec) = rows[step % 4], stack
        pre = torch.baddbmm(b_enc[:, None], x.expand(members, B, D), W_enc.transpose(1, 2))
        idx = pre.detach().topk(K, dim=2, sorted=False).indices
        z = torch.zeros_like(pre).scatter(2, idx, pre.gather(2, idx).relu())
        (torch.baddbmm(b_dec[:, None], z, W_dec) - x).square().sum(2).mean(1).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        W_dec.data.div_(W_dec.data.norm(dim=2, keepdim=True))

    ms = {"in turn": [], "stacked": []}
    for _ in range(ROUNDS):
        for name, step in (("in turn", in_turn), ("stacked", at_once)):
            began = time.process_time()
            for i in range(STEPS):
                step(i)
            ms[name].append((time.process_time() - began) * 1e3 / STEPS / members)
    median = {name: round(statistics.median(values), 2) for name, values in ms.items()}
    return {
        "shape": f"{D}x{F}x{B}",
        "ms": median,
        "ratio": round(median["stacked"] / median["in turn"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("store")
    for name, value in (
        ("latents", 2048),
        ("batch", 1024),
        ("rows", 100_000),
        ("members", 4),
        ("rounds", 2),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    a = parser.parse_args()
    result: dict[str, Any] = {"sweep": whole_runs(a.store, a)}
    torch.set_num_threads(1)
    result["stacked"] = [stacked(*shape, a.members) for shape in STACKED]
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
