"""The operations of a sparse training step, by backend: the same interface for torch and Triton.

On a CUDA device the Triton backend multiplies in bf16 (parameters stay fp32, sums are fp32), as the
dense step under autocast does; under the interpreter it keeps the precision of its inputs.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from saekit_kernels.codes import Codes
from saekit_kernels.cost import crossover_l0
from saekit_kernels.decode import Decoded, decode, decode_mse, sampled_products
from saekit_kernels.encode import encode_batchtopk, encode_threshold, encode_topk
from saekit_kernels.grad import sparse_column_sum, sparse_weight_grad
from saekit_kernels.workspace import Workspace

# The most entries per row of a thresholded code, on average over the batch: a multiple of the L0 up
# to which the sparse path is faster.
ROOM, LEAST_ROOM = 2, 64


class Encoded(NamedTuple):
    codes: Codes | None  # None: too many active latents for the sparse path to be faster
    # number of rows that the fast encoder left to the exact one; on the device
    redone: torch.Tensor | None = None


class Operations(Protocol):
    def encode_topk(
        self, x_BD, W_enc_FD, b_enc_F, k: int, workspace: Workspace, plan: str
    ) -> Encoded: ...

    def encode_relu(
        self, x_BD, W_enc_FD, b_enc_F, workspace: Workspace, plan: str, most: float | None
    ) -> Encoded: ...

    def encode_batchtopk(
        self, x_BD, W_enc_FD, b_enc_F, k: int, workspace: Workspace, plan: str, bound: torch.Tensor
    ) -> tuple[Encoded, torch.Tensor]:
        """(codes, smallest value kept)."""
        ...

    def decode_mse(self, codes, W_dec_FD, b_dec_D, x_BD, need_grad: bool, penalty_F) -> Decoded: ...

    def decode(self, codes, W_FD, b_D) -> torch.Tensor:
        """x_hat (B,D)."""
        ...

    def products(self, codes, g_BD, W_FD) -> torch.Tensor:
        """In the shape of the values: <g[b], W[j]> for every entry, 0 on padding."""
        ...

    def dense_products(self, x_BD, W_FD, b_F) -> torch.Tensor:
        """x W^T + b, differentiable in all three."""
        ...

    def weight_gradients(
        self, codes, dvals_BK, x_BD, g_BD
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(dW_enc, db_enc, dW_dec)."""
        ...

    def weight_gradient(self, codes, coef_BK, rows_BD) -> torch.Tensor:
        """(F,D): for every latent, the sum of coef * row over its entries."""
        ...

    def column_sum(self, codes, coef_BK) -> torch.Tensor: ...

    def latent_sums(self, codes, values) -> torch.Tensor:
        """(F,): the sum of the values of each latent, differentiable; the same bits every time."""
        ...


class TorchOperations:
    def encode_topk(self, x_BD, W_enc_FD, b_enc_F, k, workspace, plan) -> Encoded:
        return Encoded(encode_topk(x_BD, W_enc_FD, b_enc_F, k, workspace, plan))

    def encode_relu(self, x_BD, W_enc_FD, b_enc_F, workspace, plan, most) -> Encoded:
        return Encoded(encode_threshold(x_BD, W_enc_FD, b_enc_F, 0.0, workspace, plan, most))

    def encode_batchtopk(
        self, x_BD, W_enc_FD, b_enc_F, k, workspace, plan, bound
    ) -> tuple[Encoded, torch.Tensor]:
        codes, threshold = encode_batchtopk(
            x_BD, W_enc_FD, b_enc_F, k, workspace, plan, float(bound)
        )
        return Encoded(codes), threshold

    def decode_mse(self, codes, W_dec_FD, b_dec_D, x_BD, need_grad, penalty_F) -> Decoded:
        return decode_mse(codes, W_dec_FD, b_dec_D, x_BD, need_grad, penalty_F)

    def decode(self, codes, W_FD, b_D) -> torch.Tensor:
        return decode(codes, W_FD, b_D)

    def products(self, codes, g_BD, W_FD) -> torch.Tensor:
        return sampled_products(codes, g_BD.to(W_FD.dtype), W_FD)

    def dense_products(self, x_BD, W_FD, b_F) -> torch.Tensor:
        return torch.addmm(b_F, x_BD, W_FD.T)

    def weight_gradients(self, codes, dvals_BK, x_BD, g_BD):
        dW_enc = sparse_weight_grad(codes, dvals_BK, x_BD)
        db_enc = sparse_column_sum(codes, dvals_BK)
        return dW_enc, db_enc, sparse_weight_grad(codes, codes.vals, g_BD)

    def weight_gradient(self, codes, coef_BK, rows_BD) -> torch.Tensor:
        return sparse_weight_grad(codes, coef_BK, rows_BD)

    def column_sum(self, codes, coef_BK) -> torch.Tensor:
        return sparse_column_sum(codes, coef_BK)

    def latent_sums(self, codes, values) -> torch.Tensor:
        values = codes.without_padding(values)
        latent = codes.idx.flatten().long()
        return values.new_zeros(codes.F).index_add(0, latent, values.flatten())


class TritonOperations:
    """Imports on first use: triton takes a second to load, and its interpreter must be chosen
    before that."""

    def encode_topk(self, x_BD, W_enc_FD, b_enc_F, k, workspace, plan) -> Encoded:
        from saekit_kernels.gpu.encode import encode_topk as encode

        codes, redone = encode(low(x_BD), low(W_enc_FD), b_enc_F.detach(), k)
        return Encoded(_with_transpose(codes), redone)

    def encode_relu(self, x_BD, W_enc_FD, b_enc_F, workspace, plan, most) -> Encoded:
        from saekit_kernels.gpu.encode import encode_relu as encode

        # Beyond that the dense path is faster. A dense path is also the way out of a run that has
        # diverged, whose codes are NaN everywhere.
        F = len(W_enc_FD)
        room = len(x_BD) * min(F, max(round(ROOM * crossover_l0(F)), LEAST_ROOM))
        codes = encode(low(x_BD), low(W_enc_FD), b_enc_F.detach(), room)
        return Encoded(None if codes is None else _with_transpose(codes))

    def encode_batchtopk(
        self, x_BD, W_enc_FD, b_enc_F, k, workspace, plan, bound
    ) -> tuple[Encoded, torch.Tensor]:
        from saekit_kernels.gpu.encode import encode_batchtopk as encode

        codes, threshold = encode(low(x_BD), low(W_enc_FD), b_enc_F.detach(), k, bound)
        return Encoded(_with_transpose(codes)), threshold

    def decode_mse(self, codes, W_dec_FD, b_dec_D, x_BD, need_grad, penalty_F) -> Decoded:
        from saekit_kernels.gpu.decode import decode_mse as decode

        return decode(codes, W_dec_FD, b_dec_D, x_BD, need_grad, penalty_F)

    def decode(self, codes, W_FD, b_D) -> torch.Tensor:
        from saekit_kernels.gpu.entries import decode as decode_rows

        return decode_rows(codes, W_FD, b_D)

    def products(self, codes, g_BD, W_FD) -> torch.Tensor:
        from saekit_kernels.gpu.entries import products

        return products(codes, g_BD, W_FD)

    def dense_products(self, x_BD, W_FD, b_F) -> torch.Tensor:
        return _LowProducts.apply(x_BD, W_FD, b_F)

    def weight_gradients(self, codes, dvals_BK, x_BD, g_BD):
        from saekit_kernels.gpu.grad import sparse_weight_grad_dual

        dW_enc, dW_dec, db_enc = sparse_weight_grad_dual(codes, dvals_BK, x_BD, codes.vals, g_BD)
        return dW_enc, db_enc, dW_dec

    def weight_gradient(self, codes, coef_BK, rows_BD) -> torch.Tensor:
        from saekit_kernels.gpu.grad import sparse_weight_grad

        return sparse_weight_grad(codes, coef_BK, rows_BD)

    def column_sum(self, codes, coef_BK) -> torch.Tensor:
        return self.weight_gradient(codes, coef_BK, coef_BK.new_ones(len(codes), 1))[:, 0]

    def latent_sums(self, codes, values) -> torch.Tensor:
        return _LatentSums.apply(values, codes, self)


def product32(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a b for matrices that `low` gave, sums and result in fp32."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a, b).float()


def low(tensor: torch.Tensor) -> torch.Tensor:
    """Detached; fp32 becomes bf16 on a CUDA device."""
    tensor = tensor.detach()
    return tensor.bfloat16() if tensor.is_cuda and tensor.dtype == torch.float32 else tensor


class _LowProducts(torch.autograd.Function):
    """x W^T + b with all three products in the precision of `low`, and results in fp32: what a
    penalty does with them needs more than eight bits."""

    @staticmethod
    def forward(ctx, x_BD, W_FD, b_F):
        x, W = low(x_BD), low(W_FD)
        ctx.save_for_backward(x, W)
        return product32(x, W.T) + b_F

    @staticmethod
    def backward(ctx, dpre_BF):  # pyright: ignore[reportIncompatibleMethodOverride]
        (x, W), needs = ctx.saved_tensors, ctx.needs_input_grad
        dpre = low(dpre_BF)
        dx = product32(dpre, W) if needs[0] else None
        dW = product32(dpre.T, x) if needs[1] else None
        return dx, dW, dpre_BF.sum(0) if needs[2] else None


class _LatentSums(torch.autograd.Function):
    """By the transpose: index_add is an atomic addition of floats on a device."""

    @staticmethod
    def forward(ctx, values, codes, operations):
        ctx.codes = codes
        return operations.column_sum(codes, values)

    @staticmethod
    def backward(ctx, dsums_F):  # pyright: ignore[reportIncompatibleMethodOverride]
        return dsums_F[ctx.codes.idx.long()], None, None


def _with_transpose(codes):
    from saekit_kernels.gpu.transpose import transpose_codes

    codes._transpose = transpose_codes(codes)
    return codes


OPERATIONS: dict[str, Operations] = {"torch": TorchOperations(), "triton": TritonOperations()}
