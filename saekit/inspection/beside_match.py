"""Latents of two dictionaries, matched by what they write: the cosine of decoder rows.

A latent has a partner where its best cosine is at least 0.7, a convention. Decoder rows are not
isotropic, so the level of chance is that of random directions with the mean and the covariance of
the other dictionary's rows, as many as it has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from saekit.inspection.relate import CHUNK, largest_of_rows
from saekit.measures.stability import matched

PARTNER = 0.7  # least cosine
KEPT = 5  # matches of each kind
SAMPLE = 1000  # latents for a level of chance
CHANCE = 0.99  # the share of them that stays below it
BINS = 50  # of best cosines
ONE_TO_ONE = 4096  # latents: the exact assignment takes 6 s for so many


@dataclass(frozen=True)
class Cosines:
    """Of the F latents of one dictionary with the G of another; dead ones have none."""

    nearest_FK: torch.Tensor
    """int64: the other's latents with the largest cosines, in descending order; -1 for none."""
    cosine_FK: torch.Tensor
    """fp32; -inf for none."""
    best_G: torch.Tensor
    """fp32: of each of the other's latents, the largest cosine with one of these; -inf for none."""


@torch.no_grad()
def nearest_directions(
    W_FD: torch.Tensor,
    V_GD: torch.Tensor,
    alive_F: torch.Tensor,
    alive_G: torch.Tensor,
    count: int = KEPT,
) -> Cosines:
    """Cosines of decoder rows both ways, in one pass over all pairs: 2 F G D operations."""
    W_FD, V_GD = _unit(W_FD), _unit(V_GD)
    count = min(count, len(V_GD))
    nearest_FK = torch.full((len(W_FD), count), -1)
    cosine_FK = torch.full((len(W_FD), count), -torch.inf)
    best_G = torch.full((len(V_GD),), -torch.inf)
    for chunk in alive_F.nonzero()[:, 0].split(CHUNK):
        cosine_NG = W_FD[chunk] @ V_GD.T
        best_G = torch.maximum(best_G, cosine_NG.amax(0))
        cosine_NG[:, ~alive_G] = -torch.inf
        best = largest_of_rows(cosine_NG, count)
        cosine_FK[chunk] = best.values
        nearest_FK[chunk] = torch.where(best.values > -torch.inf, best.indices, -1)
    best_G[~alive_G] = -torch.inf
    return Cosines(nearest_FK, cosine_FK, best_G)


@torch.no_grad()
def cosine_by_chance(
    W_FD: torch.Tensor, V_GD: torch.Tensor, alive_F: torch.Tensor, alive_G: torch.Tensor
) -> float:
    """What 99 % of the first dictionary's latents (a sample of at most 1,000) stay below with
    their best cosine, when the other's directions are random ones of the same number, mean and
    covariance. Seeded."""
    generator = torch.Generator().manual_seed(0)
    V = _unit(V_GD)[alive_G].double()
    mean_D = V.mean(0)
    values, axes = torch.linalg.eigh((V - mean_D).T @ (V - mean_D) / max(len(V), 1))
    root_DD = (axes * values.clamp_min(0).sqrt()).float()
    alive = alive_F.nonzero()[:, 0]
    sample = alive[torch.randperm(len(alive), generator=generator)[:SAMPLE]]
    W_ND = _unit(W_FD[sample])
    best_N = torch.full((len(sample),), -torch.inf)
    for size in torch.arange(len(V)).split(CHUNK):
        normal = torch.randn(len(size), len(mean_D), generator=generator)
        random_GD = _unit(normal @ root_DD.T + mean_D.float())
        best_N = torch.maximum(best_N, (W_ND @ random_GD.T).amax(1))
    return float(best_N.double().quantile(CHANCE))


def summary(
    W_FD: torch.Tensor,
    V_GD: torch.Tensor,
    alive_F: torch.Tensor,
    alive_G: torch.Tensor,
    cosines: Cosines,
) -> dict[str, Any]:
    """Figures of the two dictionaries as a whole, each pair in the order (first, other):

    "alive": latents that fire. "share": of them, those with a partner. "mean_best": the mean of
    their best cosines. "chance": `cosine_by_chance`. "counts": how many have their best cosine in
    each of 50 bins from -1 to 1. "one_to_one": the mean cosine of the exact matching
    (saekit.measures.stability.matched), None above 4,096 latents. "partners", "same_number": of the
    first's latents those with a partner, and those whose partner has the same number in the other,
    as it has where both started from the same directions; None for dictionaries of two sizes.
    """
    ways = [cosines.cosine_FK[alive_F, 0].double(), cosines.best_G[alive_G].double()]
    best_F, same_number = cosines.nearest_FK[:, 0], None
    partner_F = alive_F & (cosines.cosine_FK[:, 0] >= PARTNER)
    if len(W_FD) == len(V_GD):
        same_number = int((partner_F & (best_F == torch.arange(len(best_F)))).sum())
    one_to_one = None
    if max(len(best) for best in ways) <= ONE_TO_ONE:
        one_to_one = float(matched(W_FD[alive_F], V_GD[alive_G])[1].mean())
    return {
        "alive": [len(best) for best in ways],
        "share": [float((best >= PARTNER).double().mean()) for best in ways],
        "mean_best": [float(best.mean()) for best in ways],
        "chance": [
            cosine_by_chance(W_FD, V_GD, alive_F, alive_G),
            cosine_by_chance(V_GD, W_FD, alive_G, alive_F),
        ],
        "counts": [np.histogram(best, BINS, (-1, 1))[0].tolist() for best in ways],
        "one_to_one": one_to_one,
        "partners": int(partner_F.sum()),
        "same_number": same_number,
    }


def _unit(W_FD: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(W_FD.detach().float(), dim=1)
