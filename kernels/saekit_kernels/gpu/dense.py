"""The dense path on a device: library products, and two fused passes over the code instead of a
dozen (gpu/penalty.py).

Products take bf16 on a CUDA device, sums are fp32. Rows go in chunks, so that code and code
gradient stay bounded for wide dictionaries.
"""

from __future__ import annotations

import torch

from saekit_kernels.dense import DenseStep, Parameters, kl_of_means
from saekit_kernels.gpu.penalty import relu_backward, relu_forward, sigmoid_dpre, sigmoid_encode
from saekit_kernels.operations import low, product32

DENSE_ROWS = 4096


def relu_step(
    x_BD: torch.Tensor,
    parameters: Parameters,
    norm_F: torch.Tensor,
    pull_F: torch.Tensor,
    wants_grad: bool,
) -> DenseStep:
    """One step of a ReLU code, as saekit_kernels.dense.dense_step."""
    W_enc, b_enc, W_dec, b_dec = parameters
    B, (F, D) = len(x_BD), W_enc.shape
    step = DenseStep(
        x_BD.new_empty(B, D), x_BD.new_zeros(F), x_BD.new_zeros(F, dtype=torch.int64), None
    )
    gradients: list[torch.Tensor] | None = None
    W_enc_low, W_dec_low, b_low = low(W_enc), low(W_dec), low(b_enc)
    for start in range(0, B, DENSE_ROWS):
        rows = slice(start, start + DENSE_ROWS)
        x = low(x_BD[rows])
        z = torch.addmm(b_low, x, W_enc_low.T)
        relu_forward(z, norm_F)
        step.fired_F += (z > 0).sum(0)
        step.mass_F += z.sum(0, dtype=torch.float32)
        step.residual_BD[rows] = product32(z, W_dec_low) + b_dec - x_BD[rows]
        if wants_grad:
            g = step.residual_BD[rows] * (2.0 / B)
            dz = torch.mm(low(g), W_dec_low.T)
            db_enc = relu_backward(z, dz, pull_F)
            chunk = _gradients(x, z, dz, db_enc, g)
            gradients = (
                chunk if gradients is None else [a.add_(b) for a, b in zip(gradients, chunk)]
            )
    step.gradients = gradients
    return step


def sigmoid_step(
    x_BD: torch.Tensor, parameters: Parameters, coef: float, rate: float, wants_grad: bool
) -> tuple[DenseStep, torch.Tensor]:
    """(step, kl) of sigmoid codes with the KL penalty on their means, as
    saekit_kernels.dense.sigmoid_step."""
    W_enc, b_enc, W_dec, b_dec = parameters
    B = len(x_BD)
    x, W_dec_low = low(x_BD), low(W_dec)
    f_BF, mean_F = sigmoid_encode(x, low(W_enc), b_enc)
    kl, derivative_F = kl_of_means(mean_F, rate)
    residual = product32(f_BF, W_dec_low) + b_dec - x_BD
    step = DenseStep(residual, mean_F * B, (f_BF > 0.5).sum(0), None)
    if wants_grad:
        g = residual * (2.0 / B)
        dpre, db_enc = sigmoid_dpre(low(g), W_dec_low, f_BF, coef / B * derivative_F)
        step.gradients = _gradients(x, f_BF, dpre, db_enc, g)
    return step, kl


def _gradients(x, z, dpre, db_enc, g) -> list[torch.Tensor]:
    """Of W_enc, b_enc, W_dec, b_dec, from one chunk of rows."""
    return [product32(dpre.T, x), db_enc, product32(z.T, low(g)), g.sum(0)]
