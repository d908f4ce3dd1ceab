"""The whole training step of a sparse code as one differentiable scalar, by whichever of two arms is cheaper.

The *sparse* arm never makes the dense code: encode (exact, fused with selection), decode and compare, one dot product for each active
entry, and two gathers for the weight gradients. Its cost beyond the encoder grows with the number of active latents. The *dense* arm is
the plain mathematics, five matrix products, in chunks of rows whose code and its gradient live in two reused buffers. crossover.py says
from which L0 on the dense arm is the faster one on a device; both give the same loss and gradients up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from saekit_kernels.codes import Codes
from saekit_kernels.crossover import most_active
from saekit_kernels.decode import decode, decode_mse
from saekit_kernels.encode import encode_threshold, encode_topk
from saekit_kernels.grad import sparse_column_sum, sparse_weight_grad
from saekit_kernels.select import topk_rows
from saekit_kernels.workspace import Workspace

DENSE_ROWS = 1024  # rows in a chunk of the dense arm


@dataclass
class Reconstruction:
    """`total` is differentiable in the four parameters; everything else is constant."""

    total: torch.Tensor  # reconstruction + coef * l1
    reconstruction: torch.Tensor  # mean_b sum_d (x_hat - x)^2
    l1: torch.Tensor  # mean_b sum_j z_bj norm_j; 0 where there is no penalty
    residual_BD: torch.Tensor  # x_hat - x
    fired_F: torch.Tensor  # in how many rows each latent is active
    arm: str  # sparse | dense


def topk_reconstruction(
    x_BD: torch.Tensor,
    W_enc_FD: torch.Tensor,
    b_enc_F: torch.Tensor,
    W_dec_FD: torch.Tensor,
    b_dec_D: torch.Tensor,
    k: int,
    workspace: Workspace | None = None,
    arm: str = "auto",
    plan: str = "auto",
) -> Reconstruction:
    """mean_b sum_d (x_hat - x)^2 with x_hat from the k largest ReLU(x W_enc^T + b_enc) of each row.

    Equal to dense autograd through relu, top-k, scatter and two matrix products (saekit_kernels.reference), with the selection taken as
    constant. `arm` is sparse | dense | auto, `plan` the sparse arm's encoder (encode.py). Raises ValueError for an empty batch and for k
    outside [1, F].
    """
    _check_batch(x_BD)
    parameters, workspace = (W_enc_FD, b_enc_F, W_dec_FD, b_dec_D), workspace or Workspace()
    if arm == "auto":
        arm = "sparse" if k <= most_active(x_BD, len(W_enc_FD)) else "dense"
    if arm == "sparse":
        return _sparse(x_BD, parameters, encode_topk(x_BD, W_enc_FD, b_enc_F, k, workspace, plan), 0.0, False)

    def keep_topk(pre_BF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        vals, idx = topk_rows(pre_BF, k)
        fired_F = torch.bincount(idx[vals > 0], minlength=pre_BF.shape[1])
        return pre_BF.zero_().scatter_(1, idx, vals.relu_()), fired_F

    return _dense(x_BD, parameters, keep_topk, 0.0, False, workspace)


def relu_reconstruction(
    x_BD: torch.Tensor,
    W_enc_FD: torch.Tensor,
    b_enc_F: torch.Tensor,
    W_dec_FD: torch.Tensor,
    b_dec_D: torch.Tensor,
    coef: float,
    unit_decoder: bool = False,
    workspace: Workspace | None = None,
    arm: str = "auto",
    plan: str = "auto",
) -> Reconstruction:
    """The same with z = ReLU(x W_enc^T + b_enc) and the penalty coef * mean_b sum_j z_bj ||w_j||, w_j the rows of W_dec.

    `unit_decoder`: the caller keeps the rows at norm 1, so that the penalty's gradient with respect to W_dec, which is parallel to each
    row, is left out. Raises ValueError for an empty batch.
    """
    _check_batch(x_BD)
    parameters, workspace = (W_enc_FD, b_enc_F, W_dec_FD, b_dec_D), workspace or Workspace()
    codes = None
    if arm != "dense":
        most = most_active(x_BD, len(W_enc_FD)) if arm == "auto" else None
        codes = encode_threshold(x_BD, W_enc_FD, b_enc_F, 0.0, workspace, plan, most)
    if codes is not None:
        return _sparse(x_BD, parameters, codes, coef, unit_decoder)
    return _dense(x_BD, parameters, _keep_positive, coef, unit_decoder, workspace)


def _keep_positive(pre_BF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return pre_BF.relu_(), (pre_BF > 0).sum(0, dtype=torch.int32)


def _check_batch(x_BD: torch.Tensor) -> None:
    if len(x_BD) == 0:
        raise ValueError("the mean over an empty batch is not defined")


def _wants_grad(parameters: tuple[torch.Tensor, ...]) -> bool:
    return torch.is_grad_enabled() and any(p.requires_grad for p in parameters)


def _norms(W_dec_FD: torch.Tensor, coef: float) -> torch.Tensor | None:
    return torch.linalg.vector_norm(W_dec_FD.detach(), dim=1) if coef else None


# -- sparse arm -------------------------------------------------------------------------------------------------------------


def _sparse(x_BD, parameters, codes: Codes, coef: float, unit_decoder: bool) -> Reconstruction:
    wants_grad = _wants_grad(parameters)
    norm_F = _norms(parameters[2], coef)
    penalty_F = None if norm_F is None else coef * norm_F
    decoded = decode_mse(codes, parameters[2].detach(), parameters[3].detach(), x_BD, wants_grad, penalty_F)
    reconstruction = decoded.loss_B.mean()
    l1 = torch.zeros_like(reconstruction) if norm_F is None else decoded.l1_B.mean() / coef
    total = reconstruction + coef * l1
    if wants_grad:
        pull_F = None if norm_F is None or unit_decoder else coef / len(x_BD) / norm_F
        total = _SparseGradients.apply(*parameters, x_BD, total, codes, decoded.dvals_BK, decoded.g_BD, pull_F)
    return Reconstruction(total, reconstruction, l1, decoded.residual_BD, codes.transpose().counts(), "sparse")


class _SparseGradients(torch.autograd.Function):
    """The identity on the total. Its gradients are linear in two small tensors, dvals and g, so the scale that the backward pass
    brings goes into those, and nothing of the size of the weights is saved or scaled."""

    @staticmethod
    def forward(ctx, W_enc_FD, b_enc_F, W_dec_FD, b_dec_D, x_BD, total, codes, dvals_BK, g_BD, pull_F):
        ctx.save_for_backward(W_enc_FD, W_dec_FD, x_BD, dvals_BK, g_BD)
        ctx.codes, ctx.pull_F = codes, pull_F
        return total.clone()

    @staticmethod
    def backward(ctx, scale):
        W_enc_FD, W_dec_FD, x_BD, dvals_BK, g_BD = ctx.saved_tensors
        codes, dvals, g = ctx.codes, dvals_BK * scale, g_BD * scale
        dW_dec = sparse_weight_grad(codes, codes.vals, g)
        if ctx.pull_F is not None:  # d ||w_j|| / d w_j = w_j / ||w_j||
            dW_dec.addcmul_(W_dec_FD, (scale * ctx.pull_F * sparse_column_sum(codes, codes.vals))[:, None])
        dx = decode_grad_to_rows(codes, dvals, W_enc_FD) - g if ctx.needs_input_grad[4] else None
        return sparse_weight_grad(codes, dvals, x_BD), sparse_column_sum(codes, dvals), dW_dec, g.sum(0), dx, *(None,) * 5


def decode_grad_to_rows(codes: Codes, dvals_BK: torch.Tensor, W_enc_FD: torch.Tensor) -> torch.Tensor:
    """(B,D): sum over the entries of a row of dvals * W_enc[j], what the codes pass back to x."""
    from dataclasses import replace

    return decode(replace(codes, vals=dvals_BK), W_enc_FD, W_enc_FD.new_zeros(W_enc_FD.shape[1]))


# -- dense arm --------------------------------------------------------------------------------------------------------------


def _dense(x_BD, parameters, activate: Callable, coef: float, unit_decoder: bool, workspace: Workspace) -> Reconstruction:
    W_enc, b_enc, W_dec, b_dec = (p.detach() for p in parameters)
    (B, D), F = x_BD.shape, len(W_enc)
    wants_grad = _wants_grad(parameters)
    norm_F = _norms(W_dec, coef)
    grads = [torch.zeros_like(p) if p.dim() == 1 else torch.empty_like(p) for p in parameters] if wants_grad else None
    residual, mass_F = x_BD.new_empty(B, D), x_BD.new_zeros(F)
    fired_F = torch.zeros(F, dtype=torch.int64, device=x_BD.device)
    with torch.no_grad():
        for start in range(0, B, DENSE_ROWS):
            x = x_BD[start : start + DENSE_ROWS].detach()
            buffers = [workspace.get(name, (min(DENSE_ROWS, B), F), x)[: len(x)] for name in ("code", "code gradient")]
            z, fired = activate(torch.addmm(b_enc, x, W_enc.T, out=buffers[0]))
            e = torch.addmm(b_dec, z, W_dec, out=residual[start : start + DENSE_ROWS]).sub_(x)
            fired_F += fired
            if norm_F is not None:
                mass_F += z.sum(0)
            if grads is not None:
                g = e * (2.0 / B)
                if norm_F is None:
                    dz = torch.mm(g, W_dec.T, out=buffers[1])
                else:
                    dz = torch.addmm(coef / B * norm_F, g, W_dec.T, out=buffers[1])
                # dz where z > 0, else 0; a NaN code passes its gradient on.
                torch.ops.aten.threshold_backward.grad_input(dz, z, 0.0, grad_input=dz)
                first = 0.0 if start == 0 else 1.0
                grads[0].addmm_(dz.T, x, beta=first)
                grads[1] += dz.sum(0)
                grads[2].addmm_(z.T, g, beta=first)
                grads[3] += g.sum(0)
    reconstruction = residual.square().sum(1).mean()
    l1 = torch.zeros_like(reconstruction) if norm_F is None else (mass_F @ norm_F) / B
    total = reconstruction + coef * l1
    if grads is not None:
        if norm_F is not None and not unit_decoder:
            grads[2].addcmul_(W_dec, (coef / B * mass_F / norm_F)[:, None])
        total = _ReadyGradients.apply(*parameters, total, grads)
    return Reconstruction(total, reconstruction, l1, residual, fired_F, "dense")


class _ReadyGradients(torch.autograd.Function):
    """The identity on the total, with gradients that were made beside it and are only scaled."""

    @staticmethod
    def forward(ctx, W_enc_FD, b_enc_F, W_dec_FD, b_dec_D, total, grads):
        ctx.grads = grads
        return total.clone()

    @staticmethod
    def backward(ctx, scale):
        # A scale of exactly 1 (backward() of a plain sum) skips four passes over the weights; read where that costs nothing.
        if scale.device.type == "cpu" and scale.item() == 1.0:
            return *ctx.grads, None, None
        return *(grad * scale for grad in ctx.grads), None, None
