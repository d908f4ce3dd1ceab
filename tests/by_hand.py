"""Edits of a code by plain torch, in fp64, with a loop that generates without a KV cache: what an
attached model is compared with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import torch

from saekit.models.catalog import restore

LATENTS, K = 48, 6


def dictionary(width: int, sparsity: str = "topk", seed: int = 0, d_out: int = 0, **config):
    """A random dictionary in fp64, a part of whose latents is active per row."""
    g = torch.Generator().manual_seed(seed)
    settings = {"d_in": width, "latents": LATENTS, "sparsity": sparsity, **config}
    if d_out:
        settings["d_out"] = d_out
    tensors = {
        "W_enc": torch.randn(LATENTS, width, generator=g),
        "b_enc": 0.1 * torch.randn(LATENTS, generator=g),
        "W_dec": torch.randn(LATENTS, d_out or width, generator=g),
        "b_dec": 0.1 * torch.randn(d_out or width, generator=g),
    }
    if sparsity == "topk":
        settings["k"] = K
    else:
        tensors["threshold"] = 0.3 * tensors["W_enc"].norm(dim=1)
    if settings.get("skip"):
        tensors["W_skip"] = 0.1 * torch.randn(d_out, width, generator=g)
    return restore("sae", settings, tensors).double()


def encode(sae, x: torch.Tensor) -> torch.Tensor:
    """z (..., F)."""
    pre = x @ sae.W_enc.T + sae.b_enc
    if sae.config.sparsity == "topk":
        smallest = pre.topk(K, dim=-1).values[..., -1:]
        return torch.where((pre >= smallest) & (pre > 0), pre, 0)
    return torch.where(pre > sae.threshold, pre, 0)


@contextmanager
def edited(
    layer: torch.nn.Module, sae, edit: Callable, mask: Callable | torch.Tensor | None = None
):
    """x + (z' - z) W_dec at the layer's output, where `mask` (B,T) of its states says so; `edit`
    makes z' of z (B,T,F)."""

    def hook(_module, _args, output):
        x = output[0] if isinstance(output, tuple) else output
        z = encode(sae, x)
        delta = (edit(z.clone()) - z) @ sae.W_dec
        chosen = mask(x) if callable(mask) else mask
        new = x + (delta if chosen is None else torch.where(chosen[..., None], delta, 0))
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def generate(
    model, ids: torch.Tensor, mask: torch.Tensor, steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens (B,T+steps), logits (B,steps,V)) by argmax, running the whole text for each token."""
    # as `generate` counts them: from the position of the last column, 0 at padding
    positions, logits = (mask.cumsum(1) - 1) * mask, []
    for _ in range(steps):
        out = model(ids, attention_mask=mask, position_ids=positions, use_cache=False)
        logits.append(out.logits[:, -1])
        ids = torch.cat([ids, logits[-1].argmax(-1, keepdim=True)], 1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        positions = torch.cat([positions, positions[:, -1:] + 1], 1)
    return ids, torch.stack(logits, 1)
