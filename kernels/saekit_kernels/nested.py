"""The mean squared error over nested reconstructions: x_hat_g from the entries of a row up to level
g, for each of a few levels.

One pass over the entries for any number of levels, since the parts that the levels add are summed
up; an entry is part of the reconstructions of its own level and of all later ones, so its gradient
needs the sum of their residuals. Both sums are taken while a chunk of rows is in cache; of size B x
levels x D only the sums of residuals are kept, for the backward pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnF

from saekit_kernels.codes import Codes
from saekit_kernels.entries import products
from saekit_kernels.threads import map_chunks, spans

CHUNK_ROWS = 256  # 3 MB at 5 levels and D = 576
LEAST_THREADED = 1 << 25  # multiplications from which each chunk gets its own thread


def nested_error(
    codes: Codes,
    values: torch.Tensor,
    W_dec_FD: torch.Tensor,
    b_dec_D: torch.Tensor,
    target_BD: torch.Tensor,
    level: torch.Tensor,
    levels: int,
    backend: str = "torch",
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x_hat (B,D) from all entries, mean over rows and levels of sum_d (target - x_hat_g)^2).

    `level` is the level of every entry, from 0, in the shape of values. The error is differentiable
    in values, W_dec, b_dec and target; x_hat is constant. Raises ValueError for an empty batch.
    """
    if len(target_BD) == 0:
        raise ValueError("the mean over an empty batch is not defined")
    if backend == "triton":
        from saekit_kernels.gpu.entries import NestedError

        return NestedError.apply(values, W_dec_FD, b_dec_D, target_BD, codes, level, levels)
    return _NestedError.apply(
        values, W_dec_FD, b_dec_D, target_BD, codes, level.flatten().long(), levels
    )


class _NestedError(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, W_dec_FD, b_dec_D, target_BD, codes: Codes, level, levels: int):
        (B, D), flat = target_BD.shape, codes.without_padding(values).flatten()
        rows = codes.row_of(torch.arange(flat.numel(), dtype=torch.int32, device=flat.device))
        rows = rows.long()
        # One bag for each row and level. Columns ascend, so levels by latent are in order already.
        bag, latent, weights = rows * levels + level, codes.idx.flatten(), flat.to(W_dec_FD.dtype)
        if not bool((bag[1:] >= bag[:-1]).all()):
            order = torch.sort(bag.to(torch.int32), stable=True).indices
            latent, weights = latent[order], weights[order]
        ptr = nnF.pad(torch.bincount(bag, minlength=B * levels).cumsum(0), (1, 0)).to(latent.dtype)
        # Levels first: latents of one level then read one plane.
        needs_grad = any(ctx.needs_input_grad)
        later_GBD = target_BD.new_empty(levels, B, D) if needs_grad else None
        x_hat, error_BG = torch.empty_like(target_BD), target_BD.new_empty(B, levels)

        def reconstruct(chunk: slice, slot: int) -> None:
            ends = ptr[chunk.start * levels : chunk.stop * levels + 1]
            entries = slice(int(ends[0]), int(ends[-1]))
            parts = nnF.embedding_bag(
                latent[entries],
                W_dec_FD,
                ends - ends[0],
                mode="sum",
                per_sample_weights=weights[entries],
                include_last_offset=True,
            ).view(-1, levels, D)
            parts[:, 0] += b_dec_D
            for g in range(1, levels):
                parts[:, g] += parts[:, g - 1]
            x_hat[chunk] = parts[:, -1]
            residual = parts.sub_(target_BD[chunk, None])
            error_BG[chunk] = torch.linalg.vector_norm(residual, dim=2).square_()
            if later_GBD is not None:
                for g in range(levels - 2, -1, -1):
                    residual[:, g] += residual[:, g + 1]
                later_GBD[:, chunk] = residual.transpose(0, 1)

        on_cpu = target_BD.device.type == "cpu"
        threaded = on_cpu and flat.numel() * D >= LEAST_THREADED
        map_chunks(reconstruct, spans(B, CHUNK_ROWS if on_cpu else max(B, 1)), threaded)
        if later_GBD is not None:
            ctx.save_for_backward(flat, W_dec_FD, level * B + rows, later_GBD)
        ctx.codes = codes
        ctx.mark_non_differentiable(x_hat)
        return x_hat, error_BG.mean()

    @staticmethod
    def backward(ctx, _, slope):  # pyright: ignore[reportIncompatibleMethodOverride]
        (flat, W_dec_FD, plane_row, later_GBD), codes = ctx.saved_tensors, ctx.codes
        levels, B, D = later_GBD.shape
        scale, needs = slope * (2.0 / (levels * B)), ctx.needs_input_grad
        later, first = later_GBD.view(-1, D), later_GBD[0]
        dvalues = products(codes, plane_row, later, W_dec_FD).mul_(scale) if needs[0] else None
        dW = None
        if needs[1]:
            transpose = codes.transpose()
            pos = transpose.pos[: int(transpose.ptr[-1])].long()
            dW = nnF.embedding_bag(
                plane_row[pos],
                later,
                transpose.ptr.long(),
                mode="sum",
                per_sample_weights=(flat[pos] * scale).to(W_dec_FD.dtype),
                include_last_offset=True,
            )
        db = first.sum(0) * scale if needs[2] else None
        return dvalues, dW, db, first * -scale if needs[3] else None, None, None, None
