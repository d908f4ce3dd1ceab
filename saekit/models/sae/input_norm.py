"""Norms of each input row that published dictionaries apply before the encoder and undo on x_hat.

    layer_norm     y = (x - mean x) / (std x + 1e-5),  undone by x_hat std x + mean x
    constant_norm  y = x sqrt(D) / ||x||,              undone by x_hat / (sqrt(D) / ||x||)

std is the unbiased one, and the inverse leaves 1e-5 out, as OpenAI's code (Gao et al. 2024, arXiv
2406.04093) and SAELens do. A row of zeros has no norm: with constant_norm its values are NaN.
"""

from __future__ import annotations

from typing import Literal

import torch

InputNorm = Literal["none", "layer_norm", "constant_norm"]
EPS = 1e-5


def normalized(norm: InputNorm, x: torch.Tensor) -> torch.Tensor:
    """y (..., D) of x (..., D), differentiable."""
    if norm == "none" or x.numel() == 0:
        return x
    if norm == "layer_norm":
        centered = x - x.mean(-1, keepdim=True)
        return centered / (centered.std(-1, keepdim=True) + EPS)
    return x * _length_factor(x)


def denormalized(norm: InputNorm, x_hat: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """x_hat (..., D) in the units of x (..., D), from which `normalized` made the input."""
    if norm == "none" or x.numel() == 0:
        return x_hat
    if norm == "layer_norm":
        return x_hat * input_scale(norm, x) + x.mean(-1, keepdim=True)
    return x_hat / _length_factor(x)


def input_scale(norm: InputNorm, x: torch.Tensor) -> torch.Tensor:
    """(..., 1): a change of x_hat by y is one of `denormalized` by y times this."""
    if norm == "layer_norm":
        return (x - x.mean(-1, keepdim=True)).std(-1, keepdim=True)
    return x.new_ones(()) if norm == "none" else 1 / _length_factor(x)


def _length_factor(x: torch.Tensor) -> torch.Tensor:
    """(..., 1): sqrt(D) / ||x||."""
    return x.shape[-1] ** 0.5 / x.norm(dim=-1, keepdim=True)
