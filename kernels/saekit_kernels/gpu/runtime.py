"""What the Triton kernels share: how they are checked without a device, and what the interpreter
cannot do.

Rules that a test holds (tests/kernels/gpu/test_traps.py): offsets are int64 from the program id on,
masked loads give `other`, and no cumulative sum runs over a comparison (an i1 scan is an
exclusive-or on the device).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
import triton.language as tl
from triton import knobs

from saekit_kernels.codes import Codes, RaggedCodes

# The interpreter's tl.dot multiplies the bit patterns of bf16 operands (triton 3.9): kernels take
# UPCAST and cast to fp32 first.
INTERPRETED: bool = knobs.runtime.interpret

# triton.jit for type checkers too: its own type allows tl.constexpr parameters to be passed only
# tl.constexpr objects, and knows neither num_warps nor num_stages.
jit: Callable[[Callable], Any] = triton.jit


@jit
def row_span(row_ptr, row, K, RAGGED: tl.constexpr):
    """(first, number) of the entries of a row in the flattened codes; `row_pointer` gives the
    arguments."""
    if RAGGED:
        first = tl.load(row_ptr + row).to(tl.int64)
        number = tl.load(row_ptr + row + 1) - tl.load(row_ptr + row)
    else:
        first = row * K
        number = tl.load(row_ptr + row)
    return first, number


def row_pointer(codes: Codes) -> tuple[torch.Tensor, int, bool]:
    """(row_ptr, K, RAGGED): where each row begins, or how many entries it has, K apart."""
    if isinstance(codes, RaggedCodes):
        return codes.ptr.contiguous(), 0, True
    return codes.nnz.contiguous(), codes.capacity, False


POINTER = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.int8: "*i8",
}


@dataclass(frozen=True)
class Case:
    """One way to compile a kernel, as its launcher would for the given shapes: the compile test
    builds it for each target."""

    name: str
    kernel: Any  # a triton JITFunction
    # argument -> "*bf16", "i32", "i64", "fp32" ...; without the constants
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    tensor_cores: bool = False  # a matrix kernel: the compiled code must use them
    # arguments divisible by 16; every pointer is assumed to be
    aligned: tuple[str, ...] = field(default=())


def launchable(*tensors: torch.Tensor) -> bool:
    """Whether kernels can run on these tensors: all on a CUDA device, or interpreted."""
    return INTERPRETED or all(t.is_cuda for t in tensors)


def unit_stride(rows: torch.Tensor) -> torch.Tensor:
    """`rows` as kernels read them: any row stride, unit column stride."""
    return rows if rows.stride(-1) == 1 or rows.shape[-1] <= 1 else rows.contiguous()


def next_power_of_2(n: int) -> int:
    return triton.next_power_of_2(max(n, 1))


def cdiv(a: int, b: int) -> int:
    return -(-a // b)
