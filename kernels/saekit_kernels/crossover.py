"""Up to how many active latents per row the sparse path is faster than the dense one.

The cost of the sparse path beyond the encoder grows with B * L0 * (D + a constant for bookkeeping),
plus a constant for its many small operations; its savings grow with B * F * D. So the crossover is
L0* = F / (c (1 + d / D)) * (1 - H / (B F D)). On CPUs c, d and H are fitted to measurements at six
shapes (docs/notes/kernels.md). On a GPU nothing has been measured; the cost model of cost.py is
used.
"""

from __future__ import annotations

import torch

from saekit_kernels.cost import crossover_l0

CPU_LATENTS_PER_ACTIVE = 6.3  # c
CPU_BOOKKEEPING_WIDTH = 129  # d
CPU_SMALLEST = 3.4e7  # H: B F D at which a sparse step is pure overhead
ENTER_SPARSE, LEAVE_SPARSE = 0.7, 0.9  # fractions of the crossover


def next_path(path: str, l0: float, most: float) -> str:
    """The path (sparse | dense) for the next steps, given the measured `l0` and the crossover
    `most`. Hysteresis keeps it from switching back and forth around the crossover."""
    if l0 < ENTER_SPARSE * most:
        return "sparse"
    return "dense" if l0 > LEAVE_SPARSE * most else path


def most_active(x_BD: torch.Tensor, F: int) -> float:
    """The L0 up to which the sparse path is faster, for rows like these and F latents."""
    if x_BD.device.type == "cuda":
        return crossover_l0(F)
    B, D = x_BD.shape
    share = max(1 - CPU_SMALLEST / (B * F * D), 0.0)
    return share * F / (CPU_LATENTS_PER_ACTIVE * (1 + CPU_BOOKKEEPING_WIDTH / D))
