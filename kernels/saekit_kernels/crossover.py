"""Up to how many active latents a row the sparse arm is faster than the dense one.

What the sparse arm does beyond the encoder grows with B * L0 * (D + a constant for bookkeeping),
and with a constant for its many small operations; what it saves grows with B * F * D. So the
crossover is L0* = F / (c (1 + d / D)) * (1 - H / (B F D)). On CPUs c, d and H are fitted to
measurements at six shapes (docs/kernels.md). On a GPU nothing has been measured: there the cost
model of cost.py stands in.
"""

from __future__ import annotations

import torch

from saekit_kernels.cost import crossover_l0

CPU_LATENTS_AN_ACTIVE_ONE = 6.3
CPU_BOOKKEEPING_WIDTH = 129
CPU_SMALLEST = 3.4e7  # B F D at which a sparse step is nothing but overhead
ENTER_SPARSE, LEAVE_SPARSE = 0.7, 0.9  # shares of the crossover
# a device allots this multiple of the crossover to each row of a thresholded code, since rows
# differ
CAPACITY = 8
LEAST_CAPACITY = 64


def next_arm(arm: str, l0: float, most: float) -> str:
    """The arm for the steps to come, when `l0` was seen: hysteresis, so that it does not flutter
    around the crossover."""
    if l0 < ENTER_SPARSE * most:
        return "sparse"
    return "dense" if l0 > LEAVE_SPARSE * most else arm


def most_active(x_BD: torch.Tensor, F: int) -> float:
    """The L0 up to which the sparse arm wins, for rows like these and F latents."""
    if x_BD.device.type == "cuda":
        return crossover_l0(F)
    B, D = x_BD.shape
    share = max(1 - CPU_SMALLEST / (B * F * D), 0.0)
    return share * F / (CPU_LATENTS_AN_ACTIVE_ONE * (1 + CPU_BOOKKEEPING_WIDTH / D))
