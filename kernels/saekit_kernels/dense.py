"""The dense path: the plain mathematics of a step, in chunks of rows, with the gradients computed
beside the loss.

The five matrix products stay as they are; everything of size B x F lives in two reused buffers, and
masks and penalties cost one pass each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from saekit_kernels.workspace import Workspace

DENSE_ROWS = 1024  # rows per chunk
MIN_RATE = 1e-6  # mean activations are kept this far from 0 and 1 before a logarithm

# W_enc (F,D), b_enc (F,), W_dec (F,D), b_dec (D,)
Parameters = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass
class DenseStep:
    residual_BD: torch.Tensor  # x_hat - x
    mass_F: torch.Tensor  # column sums of the code; zeros without a penalty
    fired_F: torch.Tensor
    gradients: list[torch.Tensor] | None  # of the parameters


def dense_step(
    x_BD: torch.Tensor,
    parameters: Parameters,
    activate: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    pull_F: torch.Tensor | None,
    workspace: Workspace,
    wants_grad: bool,
) -> DenseStep:
    """One step of a rectified code. `activate` turns pre-activations into (code, firing counts), in
    place; `pull_F` is added to the gradient of every active entry."""
    W_enc, b_enc, W_dec, b_dec = parameters
    (B, D), F = x_BD.shape, len(W_enc)
    step = DenseStep(
        x_BD.new_empty(B, D), x_BD.new_zeros(F), x_BD.new_zeros(F, dtype=torch.int64), None
    )
    gradients = [torch.empty_like(p) for p in parameters]
    for start in range(0, B, DENSE_ROWS):
        x = x_BD[start : start + DENSE_ROWS]
        code, code_gradient = (
            workspace.get(name, (min(DENSE_ROWS, B), F), x)[: len(x)]
            for name in ("code", "code gradient")
        )
        # Forward: code, firing counts, reconstruction error.
        z, fired = activate(torch.addmm(b_enc, x, W_enc.T, out=code))
        step.fired_F += fired
        if pull_F is not None:
            step.mass_F += z.sum(0)
        e = torch.addmm(b_dec, z, W_dec, out=step.residual_BD[start : start + DENSE_ROWS]).sub_(x)
        # Backward: the gradient of the code, then the parameters' share of this chunk.
        if wants_grad:
            g = e * (2.0 / B)
            dz = (
                torch.mm(g, W_dec.T, out=code_gradient)
                if pull_F is None
                else torch.addmm(pull_F, g, W_dec.T, out=code_gradient)
            )
            # dz where z > 0, else 0; a NaN code passes its gradient on.
            torch.ops.aten.threshold_backward.grad_input(dz, z, 0.0, grad_input=dz)
            _accumulate(gradients, x, z, dz, g, first=start == 0)
    step.gradients = gradients if wants_grad else None
    return step


def sigmoid_step(
    x_BD: torch.Tensor,
    parameters: Parameters,
    coef: float,
    rate: float,
    workspace: Workspace,
    wants_grad: bool,
) -> tuple[DenseStep, torch.Tensor]:
    """(step, kl) of sigmoid codes with the penalty coef * sum_j KL(rate || mean_b f_bj). The code
    is kept whole: the penalty's gradient needs the means over all rows first. A latent counts as
    fired when f > 0.5."""
    W_enc, b_enc, W_dec, b_dec = parameters
    B, F = len(x_BD), len(W_enc)
    f_BF = torch.addmm(
        b_enc, x_BD, W_enc.T, out=workspace.get("sigmoid code", (B, F), x_BD)
    ).sigmoid_()
    mass_F = f_BF.sum(0)
    kl, pull_F = kl_of_means(mass_F / B, rate)
    pull_F = coef / B * pull_F
    residual = torch.addmm(b_dec, f_BF, W_dec).sub_(x_BD)
    step = DenseStep(residual, mass_F, (f_BF > 0.5).sum(0), None)
    if wants_grad:
        step.gradients = [torch.empty_like(p) for p in parameters]
        for start in range(0, B, DENSE_ROWS):
            rows = slice(start, start + DENSE_ROWS)
            f, g = f_BF[rows], residual[rows] * (2.0 / B)
            df = workspace.get("code gradient", (min(DENSE_ROWS, B), F), f)[: len(f)]
            torch.addmm(pull_F, g, W_dec.T, out=df)
            torch.ops.aten.sigmoid_backward.grad_input(df, f, grad_input=df)
            _accumulate(step.gradients, x_BD[rows], f, df, g, first=start == 0)
    return step, kl


def kl_of_means(
    mean_F: torch.Tensor, rate: float | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum_j KL(rate || mean_j) of Bernoulli rates, its derivative with respect to each mean).
    Means are clamped to [MIN_RATE, 1 - MIN_RATE]; the derivative is 0 outside (Ng, "Sparse
    autoencoder", CS294A notes)."""
    rho = mean_F.clamp(MIN_RATE, 1 - MIN_RATE)
    # A tensor's logarithm stays on its device: nothing here waits for it.
    if isinstance(rate, torch.Tensor):
        log_rate, log_rest = rate.log(), (-rate).log1p()
    else:
        log_rate, log_rest = math.log(rate), math.log1p(-rate)
    kl = (rate * (log_rate - rho.log()) + (1 - rate) * (log_rest - (-rho).log1p())).sum()
    inside = (mean_F >= MIN_RATE) & (mean_F <= 1 - MIN_RATE)
    return kl, torch.where(inside, (1 - rate) / (1 - rho) - rate / rho, 0.0)


def l1_of_mass(mass_F: torch.Tensor, norm_F: torch.Tensor, rows: int) -> torch.Tensor:
    """mean_b sum_j |z_bj| ||w_j|| from the column sums of |z|."""
    return (mass_F @ norm_F) / rows


def _accumulate(gradients: list[torch.Tensor], x, z, dpre, g, first: bool) -> None:
    """Add the products of one chunk of rows; the first one overwrites."""
    dW_enc, db_enc, dW_dec, db_dec = gradients
    if first:
        torch.mm(dpre.T, x, out=dW_enc)
        torch.mm(z.T, g, out=dW_dec)
        torch.sum(dpre, 0, out=db_enc)
        torch.sum(g, 0, out=db_dec)
    else:
        dW_enc.addmm_(dpre.T, x)
        dW_dec.addmm_(z.T, g)
        db_enc += dpre.sum(0)
        db_dec += g.sum(0)
