"""Encoder and selection: rows x -> SparseCodes, by three rules: the k largest, everything above a
threshold, the B*k largest of a batch.

Two plans give the same selected sets. `gemm` computes the pre-activations of a chunk of rows in
fp32 and selects. `filter` (filter.py) finds the latents that can matter with a bf16 product and
scores those in fp32; it is chosen where the CPU multiplies bf16 natively and the matrices are
large. The values of the two plans differ in the last bits, since their sums run in different
orders. Nothing of size B x F outlives a call.
"""

from __future__ import annotations

import functools

import torch

from saekit_kernels.by_filter import above_by_filter, batch_by_filter, topk_by_filter
from saekit_kernels.by_product import above_by_product, batch_by_product, topk_by_product
from saekit_kernels.codes import RaggedCodes, SparseCodes, from_entries, from_selected
from saekit_kernels.filter import GROUP as FILTER_GROUP
from saekit_kernels.filter import LEAST_PRODUCT, fast_bf16
from saekit_kernels.select import Entries, end_to_end, signed_topk_rows
from saekit_kernels.workspace import Workspace

SIGNED_ROWS = 1024  # pre-activations that a selection by magnitude holds at a time


def as_given(function):
    """Without gradients, and without autocast, which acts only on this thread."""

    @functools.wraps(function)
    def run(x_BD, *arguments, **options):
        with torch.no_grad(), torch.autocast(x_BD.device.type, enabled=False):
            return function(x_BD, *arguments, **options)

    return run


def check_plan(plan: str) -> None:
    if plan not in ("auto", "filter", "gemm"):
        raise ValueError(f"plan {plan}: choose auto, filter, gemm")


def encoder_plan(x_BD: torch.Tensor, W_enc_FD: torch.Tensor) -> str:
    """filter | gemm: the plan that `auto` takes for these."""
    large = x_BD.numel() * W_enc_FD.shape[0] >= LEAST_PRODUCT
    if (
        x_BD.device.type == "cpu"
        and x_BD.dtype == W_enc_FD.dtype == torch.float32
        and large
        and fast_bf16()
    ):
        return "filter"
    return "gemm"


@as_given
def encode_topk(
    x_BD: torch.Tensor,
    W_enc_FD: torch.Tensor,
    b_enc_F: torch.Tensor,
    k: int,
    workspace: Workspace | None = None,
    plan: str = "auto",
) -> SparseCodes:
    """The k largest ReLU(x W_enc^T + b_enc) of each row; exact, ties to the smallest column. Not
    differentiable.

    `plan` filter needs at least 64 k latents and becomes gemm below that. Rows with fewer than k
    positive pre-activations have nnz < k. Raises ValueError when k is not in [1, F].
    """
    F = W_enc_FD.shape[0]
    if not 1 <= k <= F:
        raise ValueError(f"k must lie in [1, {F}], got {k}")
    x_BD, W_enc_FD, b_enc_F = x_BD.detach(), W_enc_FD.detach(), b_enc_F.detach()
    if len(x_BD) == 0:
        return _no_rows(x_BD, k, F)
    workspace = workspace or Workspace()
    check_plan(plan)
    plan = encoder_plan(x_BD, W_enc_FD) if plan == "auto" else plan
    if plan == "filter" and F // FILTER_GROUP >= 2 * k:
        selected = topk_by_filter(x_BD, W_enc_FD, b_enc_F, k, workspace)
        if selected is not None:
            return from_selected(*selected, F)
    return from_selected(*topk_by_product(x_BD, W_enc_FD, b_enc_F, k, workspace), F)


@as_given
def encode_abs_topk(
    x_BD: torch.Tensor,
    W_enc_FD: torch.Tensor,
    b_enc_F: torch.Tensor,
    k: int,
    workspace: Workspace | None = None,
    plan: str = "auto",
) -> SparseCodes:
    """The k pre-activations of each row that are largest in magnitude, with their signs, without
    those that are 0; ties to the smallest column. Not differentiable.

    `plan` filter needs at least 64 k latents, a multiple of 32, and becomes gemm otherwise. Raises
    ValueError when k is not in [1, F].
    """
    F = W_enc_FD.shape[0]
    if not 1 <= k <= F:
        raise ValueError(f"k must lie in [1, {F}], got {k}")
    x_BD, W_enc_FD, b_enc_F = x_BD.detach(), W_enc_FD.detach(), b_enc_F.detach()
    if len(x_BD) == 0:
        return _no_rows(x_BD, k, F)
    check_plan(plan)
    plan = encoder_plan(x_BD, W_enc_FD) if plan == "auto" else plan
    selected = None
    if plan == "filter" and F // FILTER_GROUP >= 2 * k and F % FILTER_GROUP == 0:
        workspace = workspace or Workspace()
        selected = topk_by_filter(x_BD, W_enc_FD, b_enc_F, k, workspace, signed=True)
    if selected is None:
        pieces = (
            signed_topk_rows(torch.addmm(b_enc_F, x, W_enc_FD.T), k)
            for x in x_BD.split(SIGNED_ROWS)
        )
        vals, idx = map(torch.cat, zip(*pieces))
        selected = vals, idx
    return from_selected(*selected, F, keep_negative=True)


@as_given
def encode_threshold(
    x_BD: torch.Tensor,
    W_enc_FD: torch.Tensor,
    b_enc_F: torch.Tensor,
    threshold: torch.Tensor | float = 0.0,
    workspace: Workspace | None = None,
    plan: str = "auto",
    most: float | None = None,
) -> RaggedCodes | None:
    """Every positive pre-activation above its threshold: a ReLU with 0, a JumpReLU with one
    threshold per latent (F,), BatchTopK inference with one scalar. NaN counts as active. Returns
    None when the first rows have more than `most` active latents on average: dense work is then
    cheaper, and little was lost. Not differentiable."""
    F = W_enc_FD.shape[0]
    x_BD, W_enc_FD, b_enc_F = x_BD.detach(), W_enc_FD.detach(), b_enc_F.detach()
    if len(x_BD) == 0:
        return from_entries(*_no_entries(x_BD), 0, F)
    threshold_F = (
        torch.as_tensor(threshold, dtype=x_BD.dtype, device=x_BD.device).clamp_min(0.0).expand(F)
    )
    workspace = workspace or Workspace()
    check_plan(plan)
    plan = encoder_plan(x_BD, W_enc_FD) if plan == "auto" else plan
    find, pieces = above_by_filter if plan == "filter" else above_by_product, []
    for piece in find(x_BD, W_enc_FD, b_enc_F, threshold_F, workspace, most):
        if piece is None:
            return None
        rows, row, column, vals = piece
        if rows.start == 0 and most is not None and len(vals) > most * rows.stop:
            return None
        pieces.append((row + rows.start, column, vals))
    row, column, vals = end_to_end(pieces)
    return from_entries(row, column, vals, len(x_BD), F)


@as_given
def encode_batchtopk(
    x_BD: torch.Tensor,
    W_enc_FD: torch.Tensor,
    b_enc_F: torch.Tensor,
    k: int,
    workspace: Workspace | None = None,
    plan: str = "auto",
    bound: float = 0.0,
) -> tuple[RaggedCodes, torch.Tensor]:
    """(codes, threshold): the B*k largest positive pre-activations of the whole batch (ties to the
    smallest row, then column), and the smallest of them, 0-d (0 when none is positive). Bussmann et
    al. 2024, arXiv 2412.06410. Not differentiable.

    `bound` is a guess below the threshold, such as a fraction of the last step's: when B*k entries
    lie above it, only those are considered. A wrong guess only costs time. Raises ValueError when k
    is not in [1, F].
    """
    (B, _), F = x_BD.shape, W_enc_FD.shape[0]
    if not 1 <= k <= F:
        raise ValueError(f"k must lie in [1, {F}], got {k}")
    x_BD, W_enc_FD, b_enc_F = x_BD.detach(), W_enc_FD.detach(), b_enc_F.detach()
    if len(x_BD) == 0:
        return from_entries(*_no_entries(x_BD), 0, F), x_BD.new_zeros(())
    workspace = workspace or Workspace()
    check_plan(plan)
    plan = encoder_plan(x_BD, W_enc_FD) if plan == "auto" else plan
    inputs, found = (x_BD, W_enc_FD, b_enc_F, B * k), None
    if plan == "filter":
        found = batch_by_filter(*inputs, bound, workspace)
    elif bound > 0:
        found = batch_by_product(*inputs, bound, workspace)
    if found is None or len(found[2]) < B * k:
        found = batch_by_product(*inputs, 0.0, workspace)
    row, column, vals = found
    threshold = vals.min() if len(vals) else vals.new_zeros(())
    return from_entries(row, column, vals, B, F), threshold


def _no_entries(x_BD: torch.Tensor) -> Entries:
    empty = torch.zeros(0, dtype=torch.int64, device=x_BD.device)
    return empty, empty, x_BD.new_zeros(0)


def _no_rows(x_BD: torch.Tensor, k: int, F: int) -> SparseCodes:
    empty = x_BD.new_zeros(0, k)
    return SparseCodes(empty, empty.to(torch.int32), empty.new_zeros(0, dtype=torch.int32), F)
