"""Steps of other toolkits on the same rows with the same optimiser, where they are installed (extra `peers`)."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable

import torch

from saekit.errors import MissingError, UsageError
from saekit.models.sae import SAE


def check_peers(names: list[str]) -> tuple[str, ...]:
    """Raises UsageError for an unknown peer, MissingError for one that is not installed."""
    for name in names:
        if name not in PEERS:
            raise UsageError(f"--against {name}: choose {', '.join(PEERS)}")
        if importlib.util.find_spec(_MODULES[name]) is None:
            raise MissingError(f"--against {name}: the package {name} is not installed", "pip install 'saekit[peers]'")
    return tuple(names)


def _sparsify(model: SAE, x_BD: torch.Tensor, k: int, lr: float) -> Callable[[], object]:
    """A TopK step as EleutherAI's trainer does it, with fused Adam, decoder projection and unit norm."""
    if not x_BD.is_cuda:
        os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")  # its kernels need a GPU; it then uses embedding_bag
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(model.d_in, SparseCoderConfig(num_latents=model.latents, k=k), device=x_BD.device)
    with torch.no_grad():
        coder.encoder.weight.copy_(model.W_enc)
        coder.W_dec.copy_(model.W_dec)
    optimizer = torch.optim.Adam(coder.parameters(), lr=lr, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        coder(x_BD).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        coder.set_decoder_norm_to_unit_norm()

    return step


PEERS: dict[str, Callable[[SAE, torch.Tensor, int, float], Callable[[], object]]] = {"eai-sparsify": _sparsify}
_MODULES = {"eai-sparsify": "sparsify"}
