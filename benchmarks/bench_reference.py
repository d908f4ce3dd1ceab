"""Do the sparse kernels train the same autoencoder as dense autograd?

    python benchmarks/bench_reference.py STORE [--rows 300000 --seeds 0]

Trains a TopK SAE (32x, k 32, the defaults of `saekit train`) twice from the same start on the same rows in the same order: by the kernels,
and by saekit_kernels.reference, plain autograd through relu, a stable sort, scatter and two products. Prints one JSON object with both
held-out FVUs and their ratio; nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from saekit_kernels import Reconstruction
from saekit_kernels.reference import topk_reconstruction_dense

from saekit.models.sparsity import topk
from saekit.training.run import train


def by_autograd(x_BD, W_enc, b_enc, W_dec, b_dec, k, *_):
    loss, z_BF = topk_reconstruction_dense(x_BD, W_enc, b_enc, W_dec, b_dec, k)
    z_BF = z_BF.detach()
    residual = z_BF @ W_dec.detach() + b_dec.detach() - x_BD
    return Reconstruction(loss, loss.detach(), loss.new_zeros(()), residual, (z_BF > 0).sum(0), "reference")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("store")
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    a = parser.parse_args()
    kernels, runs = topk.topk_reconstruction, []
    for seed in a.seeds:
        fvu = {}
        for name, step in (("kernels", kernels), ("dense reference", by_autograd)):
            topk.topk_reconstruction = step
            with tempfile.TemporaryDirectory() as folder:
                result = train(a.store, Path(folder) / "run", rows=a.rows, seed=seed)
            fvu[name] = result.metrics["fvu"]
        runs.append({"seed": seed, **fvu, "ratio": round(fvu["kernels"] / fvu["dense reference"], 5)})
    print(json.dumps({"rows": a.rows, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
