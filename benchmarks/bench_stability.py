"""Do runs of several seeds find the same dictionary, and is that the variant's doing or that of a common start?

    python benchmarks/bench_stability.py STORE [--latents 512 --seeds 4 --rows 60000 --k 32 --archetypes 1024 --relax 0]

Fel et al. 2025 (arXiv 2502.12892) report archetypal SAEs to be the stable ones; Brzozowski and Chung 2026 (arXiv 2606.02061) that their
runs began with the same dictionary. So each kind is trained from starts of its own and from one common start:

    topk                       random directions of the run's seed
    topk, one start            the same directions for every seed
    archetypal                 as `saekit train` does it: rows of the run's own sample, which the seed draws
    archetypal, one hull       the same rows for every seed, atoms beginning near other ones of them
    archetypal, one start      the same rows, and the same first mixtures: the paper's practice, whose rows are k-means centroids

The order of the training rows is the seed's in each. Prints one JSON object: fvu held out and the stability of the decoders
(saekit.measures.stability), over all pairs of seeds, before training and after, each as mean, least and most.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import combinations
from pathlib import Path
from statistics import fmean

import torch

import saekit
from saekit.measures.stability import stability
from saekit.models.base import random_unit_rows
from saekit.models.sae import SAE
from saekit.models.sparsity import VARIANTS
from saekit.models.sparsity.archetypal import Archetypal
from saekit.models.sparsity.topk import TopK
from saekit.store.reader import Store
from saekit.training.inputs import estimate


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class WatchedTopK(TopK):
    """Remembers its first decoder; `common`: that of every seed."""

    def __init__(self, common: bool) -> None:
        self.common = common

    def initialise(self, sae: SAE, sample_BD: torch.Tensor) -> None:
        if self.common:
            sae.W_dec.copy_(random_unit_rows(sae.latents, sae.d_in, generator(0)))
            sae.W_enc.copy_(sae.W_dec)
            sae.b_enc.copy_(-(sae.W_enc @ sae.b_dec))
        super().initialise(sae, sample_BD)
        self.first = sae.W_dec.detach().clone()


class WatchedArchetypal(Archetypal):
    """Remembers its first decoder; `rows` (N,D): its archetypes, in an order that says where atoms begin (None: the run's sample)."""

    def __init__(self, rows: torch.Tensor | None) -> None:
        self.rows = rows

    def initialise(self, sae: SAE, sample_BD: torch.Tensor) -> None:
        super().initialise(sae, sample_BD if self.rows is None else self.rows)
        self.first = sae.W_dec.detach().clone()


def starts(hull_ND: torch.Tensor):
    """name -> (sparsity, the variant of a seed)."""
    return {
        "topk": ("topk", lambda seed: WatchedTopK(common=False)),
        "topk, one start": ("topk", lambda seed: WatchedTopK(common=True)),
        "archetypal": ("archetypal", lambda seed: WatchedArchetypal(None)),
        "archetypal, one hull": (
            "archetypal",
            lambda seed: WatchedArchetypal(hull_ND[torch.randperm(len(hull_ND), generator=generator(seed))]),
        ),
        "archetypal, one start": ("archetypal", lambda seed: WatchedArchetypal(hull_ND)),
    }


def trained(store: str, sparsity: str, variant: TopK, **options) -> tuple[float, torch.Tensor, torch.Tensor]:
    """(fvu, first decoder, last decoder)."""
    usual, VARIANTS[sparsity] = VARIANTS[sparsity], variant
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = saekit.train(store, Path(folder) / "run", sparsity=sparsity, **options)
            return result.metrics["fvu"], variant.first, saekit.load(result.path).W_dec
    finally:
        VARIANTS[sparsity] = usual


def spread(values: list[float]) -> dict[str, float]:
    return {"mean": round(fmean(values), 4), "least": round(min(values), 4), "most": round(max(values), 4)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("store")
    parser.add_argument("--latents", type=int, default=512)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--archetypes", type=int, default=1024)
    parser.add_argument("--relax", type=float, default=0.0)
    a = parser.parse_args()
    assert a.seeds > 1, "stability is that of a pair"
    common = {"latents": a.latents, "k": a.k, "rows": a.rows, "batch": a.batch}
    own = {"topk": {}, "archetypal": {"archetypes": a.archetypes, "relax": a.relax}}
    _, sample = estimate(Store(Path(a.store)), "center+scale", 0, torch.device("cpu"))
    runs = []
    for name, (sparsity, variant) in starts(sample[: a.archetypes]).items():
        done = [trained(a.store, sparsity, variant(seed), seed=seed, **common, **own[sparsity]) for seed in range(a.seeds)]
        fvu, first, last = zip(*done)
        before, after = ([stability(W, V) for W, V in combinations(each, 2)] for each in (first, last))
        runs.append({"name": name, "fvu": spread(fvu), "stability_before": spread(before), "stability": spread(after)})
    print(json.dumps({**vars(a), "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
