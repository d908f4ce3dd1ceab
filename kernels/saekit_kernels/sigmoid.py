"""Means over a batch of sigmoid(x W^T + b), every entry of B x F, without a tensor of that size.

The mean of a latent needs only its own column, so blocks of latents are independent: one product
gives the pre-activations of a block for all rows, one pass their mean, and a second product the
derivative of that mean by the latent's weights, sum_b s (1 - s) x_b. A loss of the means multiplies
it by one number per latent, whatever the loss is; so the gradients are ready after one pass.

Where the encoder's filter multiplies in bf16 (filter.py), both products do so too, with fp32 sums.
The means are then within 0.2 % and the gradients of a latent within 1 % of fp64, in norm (on
SmolLM2's hidden states and on rows like them: tests/kernels/test_sigmoid.py).
"""

from __future__ import annotations

import torch

from saekit_kernels.by_product import threads_pay
from saekit_kernels.encode import check_plan, encoder_plan
from saekit_kernels.threads import map_chunks, spans
from saekit_kernels.workspace import Workspace

# Bytes of the entries of a block. On a CPU it stays in the cache between its two products; a device
# launches eight operations per block, so there are few of them.
BLOCK_BYTES = {"cpu": 1 << 22}
BLOCK_BYTES_ON_DEVICE = 1 << 28


def sigmoid_means(
    x_BD: torch.Tensor,
    W_FD: torch.Tensor,
    b_F: torch.Tensor,
    workspace: Workspace | None = None,
    plan: str = "auto",
) -> torch.Tensor:
    """(F,): mean_b sigmoid(x W^T + b), differentiable in W and b, and in x at the cost of a B x F
    tensor. `plan` is that of the encoder (encode.py): filter multiplies in bf16, gemm in the type
    of x. Raises ValueError for an empty batch and for an unknown plan."""
    check_plan(plan)
    if len(x_BD) == 0:
        raise ValueError("the mean over an empty batch is not defined")
    dtype = _product_type(x_BD, W_FD, plan)
    workspace = workspace or Workspace()
    if not torch.is_grad_enabled():
        return _means(x_BD, W_FD, b_F, workspace, dtype, None)
    if x_BD.requires_grad:
        return torch.addmm(b_F, x_BD, W_FD.T).sigmoid().mean(0)
    return _SigmoidMeans.apply(x_BD, W_FD, b_F, workspace, dtype)


class _SigmoidMeans(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BD, W_FD, b_F, workspace: Workspace, dtype: torch.dtype):
        ctx.rows, D = x_BD.shape
        ctx.slope_FE = x_BD.new_empty(len(W_FD), D + 2, dtype=dtype)
        return _means(x_BD, W_FD, b_F, workspace, dtype, ctx.slope_FE)

    @staticmethod
    def backward(ctx, by_mean_F):  # pyright: ignore[reportIncompatibleMethodOverride]
        factor_F = by_mean_F / ctx.rows
        slope_FE = ctx.slope_FE
        dW = slope_FE[:, :-2].to(by_mean_F.dtype, copy=True).mul_(factor_F[:, None])
        return None, dW, slope_FE[:, -2] * factor_F, None, None


def _product_type(x_BD: torch.Tensor, W_FD: torch.Tensor, plan: str) -> torch.dtype:
    if x_BD.is_cuda:
        return torch.bfloat16 if x_BD.dtype == torch.float32 else x_BD.dtype
    plan = encoder_plan(x_BD, W_FD) if plan == "auto" else plan
    return torch.bfloat16 if plan == "filter" else x_BD.dtype


def latents_of_a_block(device_type: str, column_bytes: int, F: int) -> int:
    block_bytes = BLOCK_BYTES.get(device_type, BLOCK_BYTES_ON_DEVICE)
    return min(max(block_bytes // column_bytes, 16), F)


@torch.no_grad()
def _means(
    x_BD, W_FD, b_F, workspace: Workspace, dtype: torch.dtype, slope_FE: torch.Tensor | None
) -> torch.Tensor:
    """The means. `slope_FE` is filled with their derivatives by W in the first D columns, and by b
    in the next, both times B."""
    (B, D), F = x_BD.shape, len(W_FD)
    # Two more columns, as in the filter: the bias is a sum of two bf16 numbers.
    x_BE = x_BD.new_ones(B, D + 2, dtype=dtype)
    x_BE[:, :D] = x_BD
    means_F = x_BD.new_empty(F)
    latents = latents_of_a_block(x_BD.device.type, B * dtype.itemsize, F)

    def block(rows: slice, slot: int) -> None:
        n = rows.stop - rows.start
        W_nE = workspace.get(f"sigmoid W {slot}", (latents, D + 2), x_BE)[:n]
        W_nE[:, :D] = W_FD[rows]
        W_nE[:, D] = b_F[rows]
        W_nE[:, D + 1] = b_F[rows] - W_nE[:, D].to(b_F.dtype)
        s_nB = workspace.get(f"sigmoid {slot}", (latents, B), x_BE)[:n]
        torch.mm(W_nE, x_BE.T, out=s_nB)
        torch.sum(s_nB.sigmoid_(), 1, dtype=means_F.dtype, out=means_F[rows])
        if slope_FE is not None:
            torch.mm(s_nB.addcmul_(s_nB, s_nB, value=-1), x_BE, out=slope_FE[rows])

    with torch.autocast(x_BD.device.type, enabled=False):
        map_chunks(block, spans(F, latents), threads_pay(x_BD, W_FD))
    return means_F.div_(B)
