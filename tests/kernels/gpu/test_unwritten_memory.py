"""No kernel reads memory that nothing has written: every operation gives the same bits when new
tensors hold NaN, or the largest integer.

Whether results are right is tested elsewhere in this folder. Shapes are awkward ones, and on a
device those of a run too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from poisoned import new_memory, reads_only_what_was_written
from saekit_kernels import AdamSettings, FeatureState
from saekit_kernels.codes import Codes, RaggedCodes
from saekit_kernels.gpu import encode, entries, penalty
from saekit_kernels.gpu.decode import decode_gradients, decode_mse
from saekit_kernels.gpu.grad import plan_chunks, sparse_weight_grad, sparse_weight_grad_dual
from saekit_kernels.gpu.optim import feature_step
from saekit_kernels.gpu.redo import redo_rows
from saekit_kernels.gpu.select import select_topk
from saekit_kernels.gpu.transpose import transpose_codes
from sparse_rows import device, end_to_end, normal, random_codes

LOW = torch.bfloat16
Tensors = tuple[torch.Tensor, ...]


class Size(NamedTuple):
    B: int
    D: int
    F: int
    K: int


SMALL = Size(3, 33, 140, 4)  # one and a part of a tile of latents, widths not divisible by 16
FEW = Size(5, 33, 9, 4)  # latents are programs, and the interpreter takes one after the other
TALL = Size(260, 5, 2, 1)  # latent 0 has more entries than a chunk of 256
OF_A_RUN = Size(2048, 768, 24_576, 32)


def of(codes: Codes) -> Tensors:
    """What a code says. Values after a row's last entry are part of a padded one: they are 0."""
    ends = codes.ptr if isinstance(codes, RaggedCodes) else codes.nnz
    return codes.vals, codes.idx, ends


def weights(size: Size, dtype: torch.dtype = LOW) -> Tensors:
    B, D, F, _ = size
    return normal(B, D, dtype=dtype), (normal(F, D) * D**-0.5).to(dtype), normal(F) / 10


def codes_of(size: Size, ragged: bool) -> Codes:
    """Latent 0 is active in each row that has entries."""
    if size is OF_A_RUN:  # random_codes goes row by row
        codes, _ = encode.encode_topk(*weights(size), size.K, "gemm")
    else:
        codes = random_codes(size.B, size.F, size.K, full=size is TALL)
    codes.idx[:, 0] = 0
    codes = end_to_end(codes) if ragged else codes
    codes._transpose = transpose_codes(codes)
    return codes


def topk(size: Size) -> Tensors:
    results = []
    for plan, dtype in (("fused", LOW), ("gemm", LOW), ("gemm", torch.float32)):
        codes, redone = encode.encode_topk(*weights(size, dtype), size.K, plan)
        results += [*of(codes), redone]
    return tuple(results)


def redone_rows(size: Size) -> Tensors:
    """All rows, as if each had overflowed."""
    codes = encode.new_codes(size.B, size.K, size.F, torch.device(device))
    flags = torch.ones(size.B, dtype=torch.int32, device=device)
    redone = redo_rows(*weights(size), codes, flags)
    return *of(codes), redone


def thresholds(size: Size) -> Tensors:
    x, W, b = weights(size)
    results: list[torch.Tensor] = []
    for plan in ("fused", "gemm"):
        relu = encode.encode_relu(x, W, b - 1, size.B * size.F, plan)
        assert relu is not None and len(relu.vals)
        results += of(relu)
        codes, threshold = encode.encode_batchtopk(x, W, b, size.K, None, plan)
        results += [*of(codes), threshold]
    too_high = torch.tensor(50.0, device=device)
    codes, threshold = encode.encode_batchtopk(x, W, b, size.K, too_high, "gemm")
    return *results, *of(codes), threshold


def selection(size: Size) -> Tensors:
    """Rows with ties, too: more candidates than the groups list."""
    pre = normal(size.B, size.F)
    tied = torch.ones_like(pre)
    return *of(select_topk(pre.to(LOW), size.K)), *of(select_topk(tied, size.K))


def rows(size: Size, ragged: bool) -> Tensors:
    codes, x, b = codes_of(size, ragged), normal(size.B, size.D), normal(size.D)
    W = normal(size.F, size.D, dtype=LOW)
    whole = decode_mse(codes, W, b, x, True, normal(size.F).abs())
    lean = decode_gradients(codes, W, b, x, LOW)
    level = (codes.idx * 3).div(size.F, rounding_mode="floor")
    nested = entries.nested_row_errors(codes, W, b, x, level, 3, True)
    of_rows = [t for t in (*vars(whole).values(), *vars(lean).values()) if t is not None]
    return *of_rows, *nested, entries.decode(codes, W, b), entries.products(codes, x, W)


def gradients(size: Size, ragged: bool) -> Tensors:
    codes, x, g = codes_of(size, ragged), normal(size.B, size.D), normal(size.B, size.D)
    dvals = codes.vals * 0.3
    transposed = codes.transpose()
    both = sparse_weight_grad_dual(codes, dvals, x.to(LOW), codes.vals, g)
    used = transposed.pos[: int(transposed.ptr[-1])]
    return *both, sparse_weight_grad(codes, dvals, x), transposed.ptr, used


def step(size: Size, ragged: bool) -> Tensors:
    B, D, F, _ = size
    codes, x, g = codes_of(size, ragged), normal(B, D, dtype=LOW), normal(B, D, dtype=LOW)
    results: list[torch.Tensor] = []
    for sparse_rows in (False, True):
        W = torch.nn.functional.normalize(normal(F, D), dim=1)
        state = FeatureState(
            W / 3, normal(F), W,
            *(normal(*shape).abs() for shape in ((F, D), (F, D), (F,), (F,), (F, D), (F, D))),
            W_enc_low=(W / 3).to(LOW), W_dec_low=W.to(LOW),
            idle_F=torch.ones(F, dtype=torch.int64, device=device),
        )  # fmt: skip
        settings = AdamSettings(1e-3, 0.9, 0.999, 1e-8, 3, True, sparse_rows=sparse_rows)
        feature_step(state, codes, codes.vals * 0.3, x, g, settings)
        results += [t for t in vars(state).values() if t is not None]
    return tuple(results)


def passes(size: Size) -> Tensors:
    """Sigmoids with KL, and a ReLU while it is dense."""
    x, W, b = weights(size)
    f, mean = penalty.sigmoid_encode(x, W, b)
    dpre, db = penalty.sigmoid_dpre(normal(size.B, size.D, dtype=LOW), W, f, b)
    pull, db_pull = penalty.sigmoid_pull(f, b)
    z, dz = (normal(size.B, size.F, dtype=LOW) for _ in range(2))
    l1, nnz = penalty.relu_forward(z, b.abs())
    return f, mean, dpre, db, pull, db_pull, z, l1, nnz, penalty.relu_backward(z, dz, b), dz


OPERATIONS: dict[str, Callable[[Size], Tensors]] = {
    "topk": topk,
    "redone rows": redone_rows,
    "thresholds": thresholds,
    "selection": selection,
    "rows, padded": partial(rows, ragged=False),
    "rows, ragged": partial(rows, ragged=True),
    "gradients, padded": partial(gradients, ragged=False),
    "gradients, ragged": partial(gradients, ragged=True),
    "step, padded": partial(step, ragged=False),
    "step, ragged": partial(step, ragged=True),
    "passes": passes,
}


SIZES = {name: FEW if name.startswith(("gradients", "step")) else SMALL for name in OPERATIONS}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_reads_only_what_was_written(name):
    reads_only_what_was_written(partial(OPERATIONS[name], SIZES[name]))


def test_latents_of_several_chunks_read_only_what_was_written():
    assert plan_chunks(codes_of(TALL, ragged=False)).first.tolist() == [0, 1, 1]
    reads_only_what_was_written(partial(step, TALL, ragged=True))


@pytest.mark.gpu
@pytest.mark.skipif(device == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_of_a_run_reads_only_what_was_written(name):
    reads_only_what_was_written(partial(OPERATIONS[name], OF_A_RUN))


@pytest.mark.parametrize("dtype", [torch.float32, LOW, torch.int32, torch.int64])
def test_new_memory_is_poisoned(dtype):
    like = torch.zeros(3, dtype=dtype, device=device)
    with new_memory(poisoned=True):
        for new in (like.new_empty(70), torch.empty_like(like), like.expand(4, 3).new_empty(2, 5)):
            worst = new.isnan() if dtype.is_floating_point else new == torch.iinfo(dtype).max
            assert bool(worst.all())


def test_results_that_depend_on_memory_are_reported():
    kept, other = torch.ones(2), iter((torch.ones(2), torch.zeros(2)))
    with pytest.raises(AssertionError, match="result 1 depends on what memory held"):
        reads_only_what_was_written(lambda: (kept, next(other)))
    with pytest.raises(AssertionError, match="result 0 is not finite"):
        reads_only_what_was_written(lambda: (kept / 0, kept))
