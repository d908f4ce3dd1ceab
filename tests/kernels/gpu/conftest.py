"""Without a CUDA device the kernels run in triton's interpreter, which must be chosen before triton
is imported.

tests/conftest.py makes the same choice earlier, before any test module can import triton. It is
repeated here for a run that collects only this folder, and checked, because half an interpreter
(our kernels interpreted, tl.sum compiled) fails obscurely.
"""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import triton.language as tl
from triton import knobs
from triton.runtime.interpreter import InterpretedFunction

if not torch.cuda.is_available():
    assert knobs.runtime.interpret and isinstance(tl.sum, InterpretedFunction), (
        "triton was imported before TRITON_INTERPRET was set"
    )
