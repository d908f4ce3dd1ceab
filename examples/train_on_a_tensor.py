"""Train an SAE on rows that are already in memory, and compare it with PCA.

    python examples/train_on_a_tensor.py [FOLDER]

With FOLDER the SAE is also written there, as a checkpoint for `saekit.load`.
"""

from __future__ import annotations

import sys

import torch

import saekit


def main(out: str | None = None) -> dict[str, float]:
    """fvu of both models on held-out rows; fvu is the fraction of variance unexplained."""
    # Your rows (N,D). Here: sparse sums of twice as many directions as dimensions.
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(64, 32), dim=1)
    x_ND = (torch.rand(8192, 64) * (torch.rand(8192, 64) < 0.05)) @ directions

    # Options are those of `saekit train`. 5 % of the rows are held out.
    sae = saekit.train(x_ND, out, sparsity="topk", k=4, latents=128, rows=100_000, batch=512)
    pca = saekit.train(x_ND, model="pca", latents=4)

    fvu = {}
    for name, result in {"sae": sae, "pca": pca}.items():
        (evaluation,) = saekit.evaluate(result.model, x_ND, split="holdout")
        fvu[name] = evaluation.metrics["fvu"]
        print(f"{name}: fvu {fvu[name]:.3f}, {result.model}")

    # The model takes raw rows and gives codes (N,F).
    code = sae.model.encode(x_ND[:8])
    print(f"{code}: row 0 has latents {code.to_dense()[0].nonzero().flatten().tolist()}")
    return fvu


if __name__ == "__main__":
    main(*sys.argv[1:])
