"""Other toolkits that saekit is measured against, where they are installed (extra `peers`).

`saekit bench train` times their steps, on the same rows with the same optimizer;
benchmarks/field.py trains them as they train themselves.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from saekit.errors import MissingError, check_choice, opt
from saekit.models.sae import SAE


@dataclass(frozen=True)
class Peer:
    module: str
    """Name under which its package is imported."""
    step: Callable[[SAE, torch.Tensor, int, float], Callable[[], object]] | None
    """(model to start from, x (B,D), k, learning rate) -> a call that trains one step; None: bench
    train does not time it."""


def check_peers(names: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """Raises UsageError for a peer that is not among `known`, MissingError for one that is not
    installed."""
    for name in names:
        check_choice("against", name, known)
        if importlib.util.find_spec(PEERS[name].module) is None:
            raise MissingError(
                f"{opt('against', name)}: the package {name} is not installed",
                "pip install 'saekit[peers]'",
            )
    return tuple(names)


def _sparsify(model: SAE, x_BD: torch.Tensor, k: int, lr: float) -> Callable[[], object]:
    """A TopK step as in EleutherAI's trainer, with fused Adam, decoder projection and unit norm."""
    if not x_BD.is_cuda:
        # its kernels need a GPU; it then uses embedding_bag
        os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
    from sparsify import SparseCoder, SparseCoderConfig  # pyright: ignore[reportMissingImports]

    config = SparseCoderConfig(num_latents=model.latents, k=k)
    coder = SparseCoder(model.d_in, config, device=x_BD.device)
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


PEERS = {"sae-lens": Peer("sae_lens", None), "eai-sparsify": Peer("sparsify", _sparsify)}
STEPS = {name: peer.step for name, peer in PEERS.items() if peer.step is not None}
