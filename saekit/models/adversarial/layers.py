"""Layers with buffers that a forward pass moves, unless they are told to stand still.

Shapes: B rows, C maps, h w sides of a map.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import batch_norm, conv2d, linear, normalize


class Moving(nn.Module):
    """A layer whose buffers follow the data in training mode, while `moves`."""

    moves: bool = True


class BatchNorm(nn.BatchNorm2d, Moving):
    """Batch norm (Ioffe and Szegedy 2015). Standing still it uses the batch's moments, as in
    training, and leaves its running ones as they are."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.training and not self.moves:
            return batch_norm(input, None, None, self.weight, self.bias, True, 0.0, self.eps)
        return super().forward(input)


class Spectral(Moving):
    """A weight divided by its largest singular value, which one step of power iteration per pass
    estimates (Miyato et al. 2018, arXiv 1802.05957, algorithm 1)."""

    weight: torch.Tensor
    u: torch.Tensor

    def start(self) -> None:
        rows = self.weight.shape[0]
        self.register_buffer("u", torch.full((rows,), rows**-0.5))

    def bounded(self) -> torch.Tensor:
        W = self.weight.flatten(1)
        with torch.no_grad():
            u, v = self.u, normalize(W.T @ self.u, dim=0)
            if self.training and self.moves:
                u = normalize(W @ v, dim=0)
                self.u.copy_(u)
        return self.weight / (u.clone() @ (W @ v))


class SpectralLinear(nn.Linear, Spectral):
    def __init__(self, widths_in: int, widths_out: int) -> None:
        super().__init__(widths_in, widths_out)
        self.start()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self.bounded(), self.bias)


class SpectralConv2d(nn.Conv2d, Spectral):
    def __init__(
        self, maps_in: int, maps_out: int, kernel: int | tuple[int, int], stride: int, padding: int
    ) -> None:
        super().__init__(maps_in, maps_out, kernel, stride, padding)
        self.start()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return conv2d(input, self.bounded(), self.bias, self.stride, self.padding)
