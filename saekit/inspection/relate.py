"""How a latent's decoder direction relates to others and to the model's output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

CHUNK = 512


@torch.no_grad()
def decoder_neighbours(W_dec_FD: torch.Tensor, latents: torch.Tensor, alive_F: torch.Tensor, count: int = 8) -> list[list[dict]]:
    """For each of `latents` the nearest other living decoder rows: [{"index", "cosine"}], by falling cosine."""
    unit_FD = torch.nn.functional.normalize(W_dec_FD, dim=1)
    found = []
    for some in latents.split(CHUNK):
        cosine = unit_FD[some] @ unit_FD.T
        cosine[:, ~alive_F] = -torch.inf
        cosine[torch.arange(len(some)), some] = -torch.inf
        best = cosine.topk(min(count, cosine.shape[1]), dim=1)
        for indices, values in zip(best.indices.tolist(), best.values.tolist()):
            found.append([{"index": j, "cosine": c} for j, c in zip(indices, values) if c > -torch.inf])
    return found


@torch.no_grad()
def hook_shares(W_dec_FD: torch.Tensor, parts: Sequence[int]) -> torch.Tensor:
    """(F,P): each hook's share of a crosscoder's decoder norm, ||w_j^p|| / sum over q of ||w_j^q|| (Lindsey et al. 2024, "Sparse
    Crosscoders"), to be read in units in which the hooks are of one size. 0 everywhere for a latent without a decoder row."""
    norms_FP = torch.stack([part.norm(dim=1) for part in W_dec_FD.split(list(parts), dim=1)], 1)
    return norms_FP / norms_FP.sum(1, keepdim=True).clamp_min(torch.finfo(norms_FP.dtype).tiny)


@torch.no_grad()
def output_tokens(
    W_dec_FD: torch.Tensor, latents: torch.Tensor, W_U_VD: torch.Tensor, token: Any, count: int = 10
) -> list[dict[str, list[dict]]]:
    """Logit lens: the tokens that each decoder row raises and lowers most by the direct path, w_j W_U^T, without the final norm.

    `token` maps a vocabulary index to its text. Returns {"top", "bottom"}: [{"token", "value"}] for each of `latents`.
    """
    found = []
    for some in latents.split(CHUNK):
        logits = W_dec_FD[some] @ W_U_VD.T
        high, low = logits.topk(count, dim=1), logits.topk(count, dim=1, largest=False)
        for hi, hv, li, lv in zip(high.indices.tolist(), high.values.tolist(), low.indices.tolist(), low.values.tolist()):
            pairs = {"top": zip(hi, hv), "bottom": zip(li, lv)}
            found.append({side: [{"token": token(i), "value": v} for i, v in items] for side, items in pairs.items()})
    return found
