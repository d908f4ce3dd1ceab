"""How a latent's decoder direction relates to others and to the model's output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from saekit.errors import SaekitError
from saekit.harvesting.hooks import block_list, resolve_hook, stream_hooks
from saekit.harvesting.models import LiveModel

CHUNK = 512
BLOCK = 32  # values whose maximum is looked at first
OUTPUT_TOKENS = 10  # raised, and lowered
RANDOM_DIRECTIONS = 500


@torch.no_grad()
def decoder_neighbours(
    W_dec_FD: torch.Tensor, latents: torch.Tensor, alive_F: torch.Tensor, count: int = 8
) -> list[list[dict]]:
    """For each of `latents` the nearest other decoder rows of latents that fire: [{"index",
    "cosine"}], in descending order of cosine."""
    unit_FD = torch.nn.functional.normalize(W_dec_FD, dim=1)
    neighbours = []
    for chunk in latents.split(CHUNK):
        cosine = unit_FD[chunk] @ unit_FD.T
        cosine[:, ~alive_F] = -torch.inf
        cosine[torch.arange(len(chunk)), chunk] = -torch.inf
        nearest = largest_of_rows(cosine, count)
        for indices, cosines in zip(nearest.indices.tolist(), nearest.values.tolist()):
            known = [(j, c) for j, c in zip(indices, cosines) if c > -torch.inf]
            neighbours.append([{"index": j, "cosine": c} for j, c in known])
    return neighbours


@torch.no_grad()
def hook_shares(W_dec_FD: torch.Tensor, parts: Sequence[int]) -> torch.Tensor:
    """(F,P): each hook's share of a crosscoder's decoder norm, ||w_j^p|| / sum over q of ||w_j^q||
    (Lindsey et al. 2024, "Sparse Crosscoders"), for weights in units in which all hooks have the
    same size. 0 everywhere for a latent without a decoder row."""
    norms_FP = torch.stack([part.norm(dim=1) for part in W_dec_FD.split(list(parts), dim=1)], 1)
    return norms_FP / norms_FP.sum(1, keepdim=True).clamp_min(torch.finfo(norms_FP.dtype).tiny)


def off_the_residual_stream(live: LiveModel, hook: str) -> str:
    """Why a direction at `hook` is not one of the residual stream, which the output head reads; ''
    where it is.

    It is one at a block's input and output, and at what attention and MLP add (the aliases of
    list_hooks). What a module inside a block reads after a norm, or passes to the next module, is
    in another basis, even where it has the same width.
    """
    try:
        live.probe([hook])
        canonical = resolve_hook(live.module, hook, live.name)
        stem, _, number = canonical.removesuffix(":in").rpartition(".")
        if stem == block_list(live.module) and number.isdecimal():
            return ""
        if canonical in stream_hooks(live.module):
            return ""
    except SaekitError as error:
        return error.message
    return f"{hook} is inside a block, where vectors are not added to the residual stream unchanged"


def standing_out(logits_NV: torch.Tensor, count: int = OUTPUT_TOKENS) -> torch.Tensor:
    """(N,2): how far the `count` largest logits, and the smallest, lie from the mean on average, in
    standard deviations."""
    return deviations(logits_NV, count).mean(2)


def deviations(logits_NV: torch.Tensor, count: int = OUTPUT_TOKENS) -> torch.Tensor:
    """(N,2,K): how far each of the `count` largest logits lies above the mean, and each of the
    smallest below it, in standard deviations, the furthest first."""
    return _deviations(logits_NV, [end.values for end in _ends(logits_NV, count)])


def _deviations(logits_NV: torch.Tensor, ends_NK: Sequence[torch.Tensor]) -> torch.Tensor:
    mean_N1, std_N1 = logits_NV.mean(1)[:, None], logits_NV.std(1, correction=0)[:, None]
    std_N1 = std_N1.clamp_min(torch.finfo(logits_NV.dtype).tiny)
    largest_NK, smallest_NK = ends_NK
    return torch.stack([largest_NK - mean_N1, mean_N1 - smallest_NK], 1) / std_N1[:, None]


def _ends(logits_NV: torch.Tensor, count: int) -> tuple[Any, Any]:
    """The largest and the smallest `count`, in order: (values, indices) (N,K) of each."""
    return largest_of_rows(logits_NV, count), largest_of_rows(logits_NV, count, smallest=True)


def largest_of_rows(x_NV: torch.Tensor, count: int, smallest: bool = False) -> Any:
    """What `topk` gives, in a fifth of the time: those among the `count` blocks with the largest
    maximum hold the largest values."""
    width = x_NV.shape[1] // BLOCK * BLOCK
    count = min(count, x_NV.shape[1])
    if width < 4 * BLOCK * count:
        return x_NV.topk(count, 1, largest=not smallest)
    blocks_NPB = x_NV[:, :width].unflatten(1, (-1, BLOCK))
    ends_NP = blocks_NPB.amin(2) if smallest else blocks_NPB.amax(2)
    best_NK = ends_NP.topk(count, 1, largest=not smallest).indices.sort(1).values
    places_NC = (best_NK[:, :, None] * BLOCK + torch.arange(BLOCK)).flatten(1)
    rest = torch.arange(width, x_NV.shape[1]).expand(len(x_NV), -1)
    places_NC = torch.cat([places_NC, rest], 1)
    found = x_NV.gather(1, places_NC).topk(count, 1, largest=not smallest)
    return torch.return_types.topk((found.values, places_NC.gather(1, found.indices)))


class ByChance(NamedTuple):
    """What 99 % of random directions stay below, in standard deviations from the mean logit."""

    raised: float
    """The ten largest logits on average."""
    lowered: float
    """The ten smallest."""
    raised_one: float
    """The largest of the whole vocabulary."""
    lowered_one: float
    """The smallest."""


@torch.no_grad()
def standing_out_by_chance(W_U_VD: torch.Tensor) -> ByChance:
    """Of RANDOM_DIRECTIONS random directions; the length of a direction does not matter. The level
    of the strongest token is that of a maximum over all V tokens, taken on the same W_U, whose rows
    have different lengths. Seeded."""
    generator = torch.Generator().manual_seed(0)
    random_ND = torch.randn(RANDOM_DIRECTIONS, W_U_VD.shape[1], generator=generator)
    ends_N2K = torch.cat([deviations(part @ W_U_VD.T) for part in random_ND.split(CHUNK // 2)])
    of_one = ends_N2K[:, :, 0].quantile(0.99, dim=0).tolist()
    return ByChance(*ends_N2K.mean(2).quantile(0.99, dim=0).tolist(), *of_one)


@torch.no_grad()
def output_tokens(
    W_dec_FD: torch.Tensor,
    latents: torch.Tensor,
    W_U_VD: torch.Tensor,
    token: Any,
    count: int = OUTPUT_TOKENS,
) -> tuple[list[dict[str, list[dict]]], torch.Tensor]:
    """Logit lens: the tokens that each decoder row raises and lowers most on the direct path, w_j
    W_U^T, without the final norm.

    At most `count`. `token` maps a row of W_U to its text. Returns {"top", "bottom"}: [{"token",
    "value"}] for each of `latents`, and the `deviations` of their logits (N,2,K).
    """
    records, apart, count = [], [], min(count, len(W_U_VD))
    for chunk in latents.split(CHUNK):
        logits = W_dec_FD[chunk] @ W_U_VD.T
        ends = dict(zip(("top", "bottom"), _ends(logits, count)))
        apart.append(_deviations(logits, [end.values for end in ends.values()]))
        texts = {
            side: [
                [{"token": token(i), "value": value} for i, value in zip(indices, values)]
                for indices, values in zip(end.indices.tolist(), end.values.tolist())
            ]
            for side, end in ends.items()
        }
        records += [{side: texts[side][n] for side in texts} for n in range(len(chunk))]
    return records, torch.cat(apart) if apart else torch.zeros(0, 2, count)
