"""The whole TopK reconstruction as one differentiable scalar.

The loss is a scalar, so its gradients can be made in the forward pass, where codes and residual are at hand, and only scaled in the
backward pass: nothing is saved but the gradients themselves.
"""

from __future__ import annotations

import torch

from saekit_kernels.codes import SparseCodes
from saekit_kernels.decode import decode_mse
from saekit_kernels.encode import Workspace, encode_topk
from saekit_kernels.grad import sparse_column_sum, sparse_weight_grad


class _TopKReconstruction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, W_enc_FD, b_enc_F, W_dec_FD, b_dec_D, x_BD, codes, want_grad):
        decoded = decode_mse(codes, W_dec_FD, b_dec_D, x_BD, need_grad=want_grad)
        if want_grad:
            ctx.save_for_backward(
                sparse_weight_grad(codes, decoded.dvals_BK, x_BD),
                sparse_column_sum(codes, decoded.dvals_BK),
                sparse_weight_grad(codes, codes.vals, decoded.g_BD),
                decoded.g_BD.sum(0),
            )
        ctx.mark_non_differentiable(decoded.residual_BD)
        return decoded.loss_B.mean(), decoded.residual_BD

    @staticmethod
    def backward(ctx, grad_loss, _):
        # A scale of exactly 1 (loss.backward() of a plain sum) skips four passes over the weights.
        saved = ctx.saved_tensors
        if grad_loss.device.type == "cpu" and grad_loss.item() == 1.0:
            return *saved, None, None, None
        return *(grad * grad_loss for grad in saved), None, None, None


def topk_reconstruction(
    x_BD: torch.Tensor,
    W_enc_FD: torch.Tensor,
    b_enc_F: torch.Tensor,
    W_dec_FD: torch.Tensor,
    b_dec_D: torch.Tensor,
    k: int,
    workspace: Workspace | None = None,
) -> tuple[torch.Tensor, torch.Tensor, SparseCodes]:
    """(loss, residual_BD, codes) with loss = mean_b sum_d (x_hat - x)^2, differentiable in the four parameters.

    residual = x_hat - x and the codes carry no gradient. Equal to dense autograd through relu, top-k, scatter and two GEMMs
    (saekit_kernels.reference), with the selection taken as constant. Raises ValueError for an empty batch.
    """
    if len(x_BD) == 0:
        raise ValueError("the mean over an empty batch is not defined")
    codes = encode_topk(x_BD, W_enc_FD, b_enc_F, k, workspace)
    want_grad = torch.is_grad_enabled() and any(p.requires_grad for p in (W_enc_FD, b_enc_F, W_dec_FD, b_dec_D))
    loss, residual = _TopKReconstruction.apply(W_enc_FD, b_enc_F, W_dec_FD, b_dec_D, x_BD, codes, want_grad)
    return loss, residual, codes
