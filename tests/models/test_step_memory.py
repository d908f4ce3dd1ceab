"""A sparse step makes nothing of the size of its codes, B x F, whatever the variant."""

from __future__ import annotations

import pytest
import torch
from batches import batch_of
from torch.utils._python_dispatch import TorchDispatchMode

from saekit.bench.shapes import hidden_rows
from saekit.models.catalog import build
from saekit.types import Step

B, D, F = 2048, 64, 4096
VARIANTS = {
    **dict.fromkeys(("topk", "batchtopk", "matryoshka", "matryoshka-topk", "hierarchical"), "k"),
    **dict.fromkeys(("l1", "tanh", "log", "p-anneal", "gated", "jumprelu"), "target_l0"),
    "matryoshka-jumprelu": "target_l0",
}


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided:
                size = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.elements = max(self.elements, size)
        return result


@pytest.mark.parametrize("plan", ["filter", "gemm"])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_makes_no_tensor_of_all_codes(name, plan):
    options = {"sparsity": name, "latents": F, VARIANTS[name]: 8}
    sae = build("sae", D, options | ({"bandwidth": 0.05} if "jumprelu" in name else {}))
    x = hidden_rows(B, D)
    sae.initialise_from(x, torch.Generator().manual_seed(0))
    with Largest() as largest:
        terms = sae.loss(batch_of(x), Step(90, 100, encoder_plan=plan))
        terms.total.backward()
    assert 0 < terms.fired.sum() < 64 * B
    assert largest.elements < B * F / 2
