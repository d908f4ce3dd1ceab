"""Train an SAE in a loop of your own: saekit gives the model and its loss, torch does the rest.

    python examples/own_loop.py [SPARSITY]

SPARSITY is one of the names in docs/variants.md; by default topk.
"""

from __future__ import annotations

import sys

import torch

from saekit.models.sparsity import VARIANTS
from saekit.types import Step

STEPS = 300


def main(sparsity: str = "topk") -> float:
    """fvu after training: the fraction of variance unexplained."""
    # Your rows (N,D), centered, with a mean squared norm of D.
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(64, 32), dim=1)
    x_ND = (torch.rand(8192, 64) * (torch.rand(8192, 64) < 0.05)) @ directions
    x_ND = (x_ND - x_ND.mean(0)) * (32 / x_ND.var(0).sum()).sqrt()

    sae = VARIANTS[sparsity](d_in=32, latents=128)
    sae.initialise_from(x_ND)
    optimizer = torch.optim.Adam(sae.parameters(), lr=3e-3)
    for step in range(STEPS):
        x_BD = x_ND[torch.randint(len(x_ND), (256,))]
        sae.loss(x_BD, Step(step, STEPS)).total.backward()
        sae.before_step()  # drops gradients that would only change the norm of a decoder row
        optimizer.step()
        sae.after_step()  # restores constraints: unit decoder rows, thresholds above 0
        optimizer.zero_grad()

    with torch.no_grad():
        output = sae(x_ND)
    fvu = ((output.x_hat - x_ND).square().sum() / x_ND.square().sum()).item()
    active = (output.code.to_dense() > 0).sum(1).float().mean().item()
    print(f"{sae}: fvu {fvu:.3f}, {active:.1f} active latents per row")
    return fvu


if __name__ == "__main__":
    main(*sys.argv[1:])
