"""The whole training step of a sparse code as one differentiable scalar, on the faster path.

The *sparse* path never makes the dense code: encode (exact, with the selection), decode and
compare, one dot product per active entry, and two gathers for the weight gradients. Its cost beyond
the encoder grows with the number of active latents. The *dense* path is the plain mathematics
(dense.py). crossover.py says from which L0 on the dense path is faster; both give the same loss and
gradients up to rounding.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from saekit_kernels.codes import Codes
from saekit_kernels.crossover import most_active
from saekit_kernels.decode import decode
from saekit_kernels.dense import DenseStep, Parameters, dense_step, l1_of_mass, sigmoid_step
from saekit_kernels.operations import OPERATIONS, Encoded, Operations
from saekit_kernels.select import topk_rows
from saekit_kernels.workspace import Workspace

LEAST_NORM = 1e-30  # a decoder norm is raised to this before dividing by it


@dataclass
class Reconstruction:
    """One training step. `total` is differentiable in the four parameters; the rest is constant."""

    total: torch.Tensor  # reconstruction + coef * penalty
    reconstruction: torch.Tensor  # mean_b sum_d (x_hat - x)^2
    penalty: torch.Tensor  # before its coefficient; 0 without a penalty
    residual_BD: torch.Tensor  # x_hat - x
    fired_F: torch.Tensor  # in how many rows each latent is active
    path: str  # sparse | dense
    # number of rows that a fast encoder left to the exact one; on the device
    redone: torch.Tensor | None = None


def topk_reconstruction(
    x_BD: torch.Tensor,
    W_enc_FD: torch.Tensor,
    b_enc_F: torch.Tensor,
    W_dec_FD: torch.Tensor,
    b_dec_D: torch.Tensor,
    k: int,
    workspace: Workspace | None = None,
    path: str = "auto",
    plan: str = "auto",
    backend: str = "torch",
) -> Reconstruction:
    """mean_b sum_d (x_hat - x)^2 with x_hat from the k largest ReLU(x W_enc^T + b_enc) of each row.

    Equal to dense autograd through relu, top-k, scatter and two matrix products
    (saekit_kernels.reference), with the selection taken as constant. `path` is sparse | dense |
    auto, `plan` the encoder of the torch backend (encode.py), `backend` torch | triton (both use
    torch on the dense path). Raises ValueError for an empty batch, for k outside [1, F] and for
    unknown names.
    """
    parameters, workspace = _begin(
        x_BD, W_enc_FD, b_enc_F, W_dec_FD, b_dec_D, workspace, backend, path
    )
    if path == "auto":
        path = "sparse" if k <= most_active(x_BD, len(W_enc_FD)) else "dense"
    if path == "sparse":
        operations = OPERATIONS[backend]
        encoded = operations.encode_topk(x_BD, W_enc_FD, b_enc_F, k, workspace, plan)
        return _sparse(x_BD, parameters, encoded, None, True, operations)

    def keep_topk(pre_BF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        vals, idx = topk_rows(pre_BF, k)
        vals = vals.relu()
        fired_F = torch.bincount(
            idx.flatten(), weights=vals.sign().flatten(), minlength=pre_BF.shape[1]
        ).long()
        return pre_BF.zero_().scatter_(1, idx, vals), fired_F

    _refuse_gradient_of_rows(x_BD)
    step = dense_step(
        x_BD, _constant(parameters), keep_topk, None, workspace, _wants_grad(parameters)
    )
    return _from_dense(step, parameters, 0.0, None)


def batchtopk_reconstruction(
    x_BD: torch.Tensor,
    W_enc_FD: torch.Tensor,
    b_enc_F: torch.Tensor,
    W_dec_FD: torch.Tensor,
    b_dec_D: torch.Tensor,
    k: int,
    bound: torch.Tensor,
    workspace: Workspace | None = None,
    plan: str = "auto",
    backend: str = "torch",
) -> tuple[Reconstruction, torch.Tensor]:
    """(the step with the B k largest ReLU(pre) of the whole batch, the smallest of them): Bussmann
    et al. 2024, arXiv 2412.06410.

    `bound` (0-d) is a guess below that smallest value, 0 for none (encode_batchtopk). Always on the
    sparse path. Raises ValueError for an empty batch, for k outside [1, F] and for unknown names.
    """
    parameters, workspace = _begin(x_BD, W_enc_FD, b_enc_F, W_dec_FD, b_dec_D, workspace, backend)
    operations = OPERATIONS[backend]
    encoded, threshold = operations.encode_batchtopk(
        x_BD, W_enc_FD, b_enc_F, k, workspace, plan, bound
    )
    return _sparse(x_BD, parameters, encoded, None, True, operations), threshold


def relu_reconstruction(
    x_BD: torch.Tensor,
    W_enc_FD: torch.Tensor,
    b_enc_F: torch.Tensor,
    W_dec_FD: torch.Tensor,
    b_dec_D: torch.Tensor,
    coef: float,
    unit_decoder: bool = False,
    workspace: Workspace | None = None,
    path: str = "auto",
    plan: str = "auto",
    backend: str = "torch",
) -> Reconstruction:
    """The step with z = ReLU(x W_enc^T + b_enc) and the penalty mean_b sum_j z_bj ||w_j||, w_j the
    rows of W_dec.

    `unit_decoder`: the caller keeps the rows at norm 1, so the penalty's gradient with respect to
    W_dec, which is parallel to each row, is dropped. With `path` auto the torch backend decides by
    the first rows; the Triton backend, which would have to wait for the device, takes the dense
    path. Raises ValueError for an empty batch.
    """
    parameters, workspace = _begin(
        x_BD, W_enc_FD, b_enc_F, W_dec_FD, b_dec_D, workspace, backend, path
    )
    # Sparse path: when chosen, or when few latents of the first rows are active.
    operations, encoded = OPERATIONS[backend], Encoded(None)
    if path == "sparse" or (path == "auto" and backend == "torch"):
        most = most_active(x_BD, len(W_enc_FD)) if path == "auto" else None
        if most is None or most >= 1:
            encoded = operations.encode_relu(x_BD, W_enc_FD, b_enc_F, workspace, plan, most)
    if encoded.codes is not None:
        return _sparse(x_BD, parameters, encoded, coef, unit_decoder, operations)
    # Dense path.
    _refuse_gradient_of_rows(x_BD)
    norm_F = torch.linalg.vector_norm(W_dec_FD.detach(), dim=1)
    pull_F = coef / len(x_BD) * norm_F
    if backend == "triton":
        from saekit_kernels.gpu.dense import relu_step

        step = relu_step(x_BD, _constant(parameters), norm_F, pull_F, _wants_grad(parameters))
    else:
        step = dense_step(
            x_BD, _constant(parameters), _keep_positive, pull_F, workspace, _wants_grad(parameters)
        )
    penalty = l1_of_mass(step.mass_F, norm_F, len(x_BD))
    if step.gradients is not None and coef and not unit_decoder:
        step.gradients[2].addcmul_(
            W_dec_FD.detach(),
            (coef / len(x_BD) * step.mass_F / norm_F.clamp_min(LEAST_NORM))[:, None],
        )
    return _from_dense(step, parameters, coef, penalty)


def sigmoid_reconstruction(
    x_BD: torch.Tensor,
    W_enc_FD: torch.Tensor,
    b_enc_F: torch.Tensor,
    W_dec_FD: torch.Tensor,
    b_dec_D: torch.Tensor,
    coef: float,
    rate: float,
    workspace: Workspace | None = None,
    backend: str = "torch",
) -> Reconstruction:
    """The step with f = sigmoid(x W_enc^T + b_enc) and the penalty sum_j KL(rate || mean_b f_bj);
    `fired_F` counts f > 0.5.

    The penalty's gradient is dense in B x F, so there is only a dense path. Raises ValueError for
    an empty batch and for a rate outside (0, 1).
    """
    parameters, workspace = _begin(x_BD, W_enc_FD, b_enc_F, W_dec_FD, b_dec_D, workspace, backend)
    if not 0 < rate < 1:
        raise ValueError(f"rate must lie in (0, 1), got {rate}")
    if backend == "triton":
        from saekit_kernels.gpu import dense as gpu

        step, kl = gpu.sigmoid_step(
            x_BD, _constant(parameters), coef, rate, _wants_grad(parameters)
        )
    else:
        step, kl = sigmoid_step(
            x_BD, _constant(parameters), coef, rate, workspace, _wants_grad(parameters)
        )
    return _from_dense(step, parameters, coef, kl)


def _begin(
    x_BD, W_enc_FD, b_enc_F, W_dec_FD, b_dec_D, workspace, backend, path="auto"
) -> tuple[Parameters, Workspace]:
    if backend not in OPERATIONS:
        raise ValueError(f"backend {backend}: choose {', '.join(OPERATIONS)}")
    if path not in ("auto", "sparse", "dense"):
        raise ValueError(f"path {path}: choose auto, sparse, dense")
    if len(x_BD) == 0:
        raise ValueError("the mean over an empty batch is not defined")
    return (W_enc_FD, b_enc_F, W_dec_FD, b_dec_D), workspace or Workspace()


def _refuse_gradient_of_rows(x_BD: torch.Tensor) -> None:
    if x_BD.requires_grad:
        raise ValueError("the dense path gives no gradient to x; the sparse path does")


def _constant(parameters: Parameters) -> Parameters:
    W_enc, b_enc, W_dec, b_dec = (p.detach() for p in parameters)
    return W_enc, b_enc, W_dec, b_dec


def _wants_grad(parameters: Parameters) -> bool:
    return torch.is_grad_enabled() and any(p.requires_grad for p in parameters)


def _keep_positive(pre_BF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return pre_BF.relu_(), _count_positive(pre_BF)


def _count_positive(z_BF: torch.Tensor) -> torch.Tensor:
    """(F,) counts for a code without negative values: sums of signs, three times as fast as
    counting booleans (exact below 2^24 rows)."""
    return z_BF.sign().sum(0).long()


def _from_dense(
    step: DenseStep, parameters: Parameters, coef: float, penalty: torch.Tensor | None
) -> Reconstruction:
    reconstruction = step.residual_BD.square().sum(1).mean()
    penalty = torch.zeros_like(reconstruction) if penalty is None else penalty
    total = reconstruction + coef * penalty
    if step.gradients is not None:
        total = _ReadyGradients.apply(*parameters, total, *step.gradients)
    return Reconstruction(total, reconstruction, penalty, step.residual_BD, step.fired_F, "dense")


def _sparse(
    x_BD,
    parameters: Parameters,
    encoded: Encoded,
    coef: float | None,
    unit_decoder: bool,
    operations: Operations,
) -> Reconstruction:
    """`coef` None: a code without a penalty."""
    codes, (_, _, W_dec, b_dec), B = encoded.codes, _constant(parameters), len(x_BD)
    assert codes is not None
    wants_grad = _wants_grad(parameters)
    # Decode and compare, with the gradients of the code values.
    norm_F = torch.linalg.vector_norm(W_dec, dim=1) if coef is not None else None
    penalty_F = coef * norm_F if coef and norm_F is not None else None
    decoded = operations.decode_mse(codes, W_dec, b_dec, x_BD.detach(), wants_grad, penalty_F)
    reconstruction = decoded.loss_B.mean()
    # The penalty, and its gradient with respect to the decoder.
    penalty, total, pull_F = torch.zeros_like(reconstruction), reconstruction, None
    if coef is not None and norm_F is not None:
        mass_F = operations.column_sum(codes, codes.vals)
        penalty = l1_of_mass(mass_F, norm_F, B)
        total = reconstruction + coef * penalty
        # d ||w_j|| / d w_j = w_j / ||w_j||
        pull_F = None if unit_decoder else coef / B * mass_F / norm_F.clamp_min(LEAST_NORM)
    if wants_grad:
        total = _SparseGradients.apply(
            *parameters, x_BD, total, codes, decoded.dvals_BK, decoded.g_BD, pull_F, operations
        )
    fired = codes.transpose().counts()
    return Reconstruction(
        total,
        reconstruction,
        penalty,
        decoded.residual_BD,
        fired,
        "sparse",
        encoded.redone,
    )


class _SparseGradients(torch.autograd.Function):
    """The identity on the total. Its gradients are linear in two small tensors, dvals and g, so the
    incoming gradient scales those, and nothing of the size of the weights is saved or scaled."""

    @staticmethod
    def forward(
        ctx,
        W_enc_FD,
        b_enc_F,
        W_dec_FD,
        b_dec_D,
        x_BD,
        total,
        codes,
        dvals_BK,
        g_BD,
        pull_F,
        operations,
    ):
        ctx.save_for_backward(W_enc_FD, W_dec_FD, x_BD, dvals_BK, g_BD)
        ctx.codes, ctx.pull_F, ctx.operations = codes, pull_F, operations
        return total.clone()

    @staticmethod
    def backward(ctx, scale):  # pyright: ignore[reportIncompatibleMethodOverride]
        W_enc_FD, W_dec_FD, x_BD, dvals_BK, g_BD = ctx.saved_tensors
        codes, dvals, g = ctx.codes, dvals_BK * scale, g_BD * scale
        dW_enc, db_enc, dW_dec = ctx.operations.weight_gradients(codes, dvals, x_BD, g)
        if ctx.pull_F is not None:
            dW_dec.addcmul_(W_dec_FD, (scale * ctx.pull_F)[:, None])
        dx = _through_codes(codes, dvals, W_enc_FD) - g if ctx.needs_input_grad[4] else None
        return dW_enc, db_enc, dW_dec, g.sum(0), dx, *(None,) * 6


def _through_codes(codes: Codes, dvals_BK: torch.Tensor, W_enc_FD: torch.Tensor) -> torch.Tensor:
    """(B,D): sum over the entries of a row of dvals * W_enc[j], the gradient of x by the codes."""
    return decode(
        dataclasses.replace(codes, vals=dvals_BK), W_enc_FD, W_enc_FD.new_zeros(W_enc_FD.shape[1])
    )


class _ReadyGradients(torch.autograd.Function):
    """The identity on the total, with gradients that are ready and only scaled."""

    @staticmethod
    def forward(ctx, W_enc_FD, b_enc_F, W_dec_FD, b_dec_D, total, *gradients):
        # Saved tensors are released after the backward pass: autograd would copy a gradient that
        # is still referenced when it stores it.
        ctx.save_for_backward(*gradients)
        return total.clone()

    @staticmethod
    def backward(ctx, scale):  # pyright: ignore[reportIncompatibleMethodOverride]
        gradients = ctx.saved_tensors
        # A scale of exactly 1 (backward() of a plain sum) skips four passes over the weights. It is
        # only read on CPUs, where that does not wait for a device.
        if scale.device.type == "cpu" and scale.item() == 1.0:
            return *gradients, *(None,) * 5
        return *(gradient * scale for gradient in gradients), *(None,) * 5
