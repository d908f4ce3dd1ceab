"""Train an SAE in a loop of your own: saekit gives the model and its loss, the rest is ordinary
torch.

python examples/own_loop.py jumprelu
"""

from __future__ import annotations

import sys

import torch

from saekit.models.sparsity import VARIANTS
from saekit.types import Step


def main(sparsity: str = "topk", steps: int = 300) -> float:
    """The share of variance that is not explained, after training on made-up rows."""
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(64, 32), dim=1)
    # your rows (N,D), centered, mean squared norm D
    x = (torch.rand(8192, 64) * (torch.rand(8192, 64) < 0.05)) @ directions
    x = (x - x.mean(0)) * (32 / x.var(0).sum()).sqrt()

    sae = VARIANTS[sparsity](d_in=32, latents=128)
    sae.initialise_from(x)
    optimizer = torch.optim.Adam(sae.parameters(), lr=3e-3)
    for step in range(steps):
        sae.loss(x[torch.randint(len(x), (256,))], Step(step, steps)).total.backward()
        sae.before_step()  # gradients that would change a decoder row's norm go
        optimizer.step()
        sae.after_step()  # constraints: unit decoder rows, thresholds above 0
        optimizer.zero_grad()

    output = sae(x)
    fvu = ((output.x_hat - x).square().sum() / x.square().sum()).item()
    print(
        f"{sae}: fvu {fvu:.3f}, {(output.code.to_dense() > 0).sum(1).float().mean().item():.1f}"
        " active latents per row"
    )
    return fvu


if __name__ == "__main__":
    main(*sys.argv[1:2])
