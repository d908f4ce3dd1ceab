"""Do the sparse kernels train the same autoencoder as dense autograd?

    python benchmarks/bench_reference.py STORE [--rows 300000 --seeds 0]

Trains a TopK SAE (32x, k 32, the defaults of `saekit train`) twice, from the same start on the same
rows in the same order: with the kernels, and by dense autograd. Prints one JSON object with
both held-out FVUs and their ratio; nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import nullcontext
from pathlib import Path

from saekit.bench.reference import dense
from saekit.training.run import train


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("store")
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    a = parser.parse_args()
    runs = []
    for seed in a.seeds:
        fvu = {}
        for name, step in (("kernels", nullcontext()), ("dense reference", dense("topk"))):
            with step, tempfile.TemporaryDirectory() as folder:
                result = train(a.store, Path(folder) / "run", rows=a.rows, seed=seed)
            fvu[name] = result.metrics["fvu"]
        runs.append(
            {"seed": seed, **fvu, "ratio": round(fvu["kernels"] / fvu["dense reference"], 5)}
        )
    print(json.dumps({"rows": a.rows, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
