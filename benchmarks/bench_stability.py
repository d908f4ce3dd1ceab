"""Do runs with different seeds find the same dictionary, and is that due to the variant or to a
common start?

    python benchmarks/bench_stability.py STORE [--latents 512 --seeds 4 --rows 60000 --k 32]

Fel et al. 2025 (arXiv 2502.12892) report that archetypal SAEs are the stable ones; Brzozowski and
Chung 2026 (arXiv 2606.02061) that those runs began with the same dictionary. So both variants are
trained from a different start per seed and from a common start:

    topk                   random directions, drawn by the seed
    topk, one start        the same random directions for every seed
    archetypal             as `saekit train` does it: the seed draws the rows that atoms mix
    archetypal, one hull   the same rows for every seed, with atoms that start near different ones
    archetypal, one start  the same rows and the same first mixtures, as in the paper, whose rows
                           are k-means centroids

The seed always decides the order of the training rows. Prints one JSON object: held-out fvu, and
the stability of the decoders (saekit.measures.stability) over all pairs of seeds, before and after
training, each as mean, least and most.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
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


def watched(
    kind: type[SAE],
    firsts: list[torch.Tensor],
    before=lambda sae: None,
    rows: torch.Tensor | None = None,
) -> type[SAE]:
    """The variant, which appends its first decoder to `firsts`. `before` changes its first weights;
    `rows` (N,D) replace the sample of an archetypal run."""

    class Watched(kind):
        def start_from(self, sample_BD: torch.Tensor) -> None:
            before(self)
            super().start_from(sample_BD if rows is None else rows)
            firsts.append(self.W_dec.detach().clone())

    return Watched


def one_start(sae: SAE) -> None:
    """The same first weights for every seed."""
    sae.W_dec.copy_(random_unit_rows(sae.latents, sae.d_in, generator(0)))
    sae.W_enc.copy_(sae.W_dec)
    sae.b_enc.copy_(-(sae.W_enc @ sae.b_dec))


def starts(hull_ND: torch.Tensor):
    """name -> (sparsity, function of a seed and a list for first decoders that gives the
    variant)."""

    def shuffled(seed: int) -> torch.Tensor:
        return hull_ND[torch.randperm(len(hull_ND), generator=generator(seed))]

    return {
        "topk": ("topk", lambda seed, firsts: watched(TopK, firsts)),
        "topk, one start": ("topk", lambda seed, firsts: watched(TopK, firsts, one_start)),
        "archetypal": ("archetypal", lambda seed, firsts: watched(Archetypal, firsts)),
        "archetypal, one hull": (
            "archetypal",
            lambda seed, firsts: watched(Archetypal, firsts, rows=shuffled(seed)),
        ),
        "archetypal, one start": (
            "archetypal",
            lambda seed, firsts: watched(Archetypal, firsts, rows=hull_ND),
        ),
    }


def trained(
    store: str, sparsity: str, variant, **options
) -> tuple[float, torch.Tensor, torch.Tensor]:
    """(fvu, first decoder, last decoder). `variant` gives the class for a list of first
    decoders."""
    firsts: list[torch.Tensor] = []
    original, VARIANTS[sparsity] = VARIANTS[sparsity], variant(firsts)
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = saekit.train(store, Path(folder) / "run", sparsity=sparsity, **options)
            return result.metrics["fvu"], firsts[-1], saekit.load(result.path).W_dec
    finally:
        VARIANTS[sparsity] = original


def spread(values: list[float]) -> dict[str, float]:
    return {
        "mean": round(fmean(values), 4),
        "least": round(min(values), 4),
        "most": round(max(values), 4),
    }


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
    assert a.seeds > 1, "stability needs at least two seeds"
    common = {"latents": a.latents, "k": a.k, "rows": a.rows, "batch": a.batch}
    variant_options = {"topk": {}, "archetypal": {"archetypes": a.archetypes, "relax": a.relax}}
    _, sample = estimate(Store(Path(a.store)), "center+scale", 0, torch.device("cpu"))
    runs = []
    for name, (sparsity, variant) in starts(sample[: a.archetypes]).items():
        results = [
            trained(
                a.store,
                sparsity,
                partial(variant, seed),
                seed=seed,
                **common,
                **variant_options[sparsity],
            )
            for seed in range(a.seeds)
        ]
        fvu, first, last = zip(*results)
        before, after = (
            [stability(W, V) for W, V in combinations(decoders, 2)] for decoders in (first, last)
        )
        runs.append(
            {
                "name": name,
                "fvu": spread(fvu),
                "stability_before": spread(before),
                "stability": spread(after),
            }
        )
    print(json.dumps({**vars(a), "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
