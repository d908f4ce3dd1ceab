"""The torch path reads no memory that nothing has written: a step gives the same bits when the
buffers of its workspace begin as NaN, and when they hold an earlier batch."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from poisoned import reads_only_what_was_written
from saekit_kernels import (
    Workspace,
    batchtopk_reconstruction,
    encode_abs_topk,
    encode_threshold,
    relu_reconstruction,
    sigmoid_means,
    sigmoid_reconstruction,
    topk_reconstruction,
)

B, D, F, K = 70, 33, 515, 4  # F is not a multiple of 32, the size of a filter group
Tensors = tuple[torch.Tensor, ...]
PLANS = ("filter", "gemm")


def parameters() -> Tensors:
    W_enc, W_dec = (torch.randn(F, D) / D**0.5 for _ in range(2))
    return tuple(t.requires_grad_() for t in (W_enc, torch.randn(F) / 10, W_dec, torch.randn(D)))


def with_gradients(step, x, workspace: Workspace) -> Tensors:
    weights = parameters()
    result = step(x, *weights, workspace=workspace)
    result = result[0] if isinstance(result, tuple) else result
    result.total.backward()
    assert all(t.grad is not None for t in weights)
    return result.total.detach(), result.fired_F, *(t.grad for t in weights)


def above(x, workspace: Workspace, plan: str) -> Tensors:
    W, b, *_ = parameters()
    codes = encode_threshold(x, W.detach(), b.detach(), 0.5, workspace, plan)
    assert codes is not None
    return codes.vals, codes.idx, codes.ptr


def signed(x, workspace: Workspace, plan: str) -> Tensors:
    W, b, *_ = parameters()
    W, b = W[:512].detach(), b[:512].detach()  # magnitudes need whole groups
    codes = encode_abs_topk(x, W, b, K, workspace, plan)
    return codes.vals, codes.idx, codes.nnz


def means(x, workspace: Workspace, plan: str) -> Tensors:
    W, b, *_ = parameters()
    mean_F = sigmoid_means(x, W, b, workspace, plan)
    mean_F.square().sum().backward()
    return mean_F.detach(), W.grad, b.grad


BOUND = torch.zeros(())
STEPS = {
    **{
        f"topk, {path}, {plan}": partial(topk_reconstruction, k=K, path=path, plan=plan)
        for path, plan in (("sparse", "filter"), ("sparse", "gemm"), ("dense", "gemm"))
    },
    **{
        f"batchtopk, {plan}": partial(batchtopk_reconstruction, k=K, bound=BOUND, plan=plan)
        for plan in PLANS
    },
    **{
        f"relu, {path}": partial(relu_reconstruction, coef=0.1, path=path)
        for path in ("sparse", "dense")
    },
    "sigmoid": partial(sigmoid_reconstruction, coef=0.1, rate=0.02),
}
OPERATIONS = {
    **{name: partial(with_gradients, step) for name, step in STEPS.items()},
    **{f"above, {plan}": partial(above, plan=plan) for plan in PLANS},
    **{f"signed, {plan}": partial(signed, plan=plan) for plan in PLANS},
    **{f"means, {plan}": partial(means, plan=plan) for plan in PLANS},
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_new_workspace_is_written_before_it_is_read(name):
    def run() -> Tensors:
        return OPERATIONS[name](torch.randn(B, D), workspace=Workspace())

    reads_only_what_was_written(run)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_batch_leaves_nothing_to_the_next_one(name):
    """The first has other values, all of its rows long, and one that is not finite."""
    used, results = Workspace(), []
    first = 1e3 * torch.randn(B, D)
    first[3] = torch.nan
    OPERATIONS[name](first, workspace=used)
    for workspace in (used, Workspace()):
        torch.manual_seed(1)
        results.append(OPERATIONS[name](torch.randn(B, D), workspace=workspace))
    assert all(torch.equal(ours, fresh) for ours, fresh in zip(*results, strict=True))
