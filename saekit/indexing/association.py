"""How much each latent tells about a token or a label: counts, mutual information, AUROC, and what
the best latent reaches by chance.

Mutual information is that of "the latent is active" and "it is this token" (of rows) or "it has
this label" (of examples), over the entropy of the latter: 0 where the one says nothing about the
other, 1 where it decides it. It is small for a latent that fires twice, and for one that fires
everywhere, so it orders latents without a bound on counts or density. Only latents that are active
there more often than elsewhere count.

Chance: the same for rows or labels that were moved, the largest of all latents and SHUFFLES moves.
The rows of a token are shifted along the store, all by one random number of rows, so that they stay
as clustered as they are. Labels change places between documents, since contexts of one document
share one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import entr

from saekit.indexing.radix import bits_of_sizes, order_of
from saekit.indexing.reader import Index

SHUFFLES = 4
PIECE = 1 << 22  # entries in memory together


def information(
    both: np.ndarray, active: np.ndarray, target: int | np.ndarray, total: int
) -> np.ndarray:
    """(F,) fp64, share of the target's entropy: of `total` places `target` (one number, or (F,))
    are of the kind, each latent is active in `active` (F,), and in `both` (F,) of the kind.
    Negative where it is active there less often than elsewhere; 0 where all places, or none, are of
    the kind."""
    neither = total - active - target + both
    joint = np.stack([both, active - both, target - both, neither]) / total
    p_active, p_target = active / total, target / total
    of_target = entr([p_target, 1 - p_target]).sum(0)
    bits = entr([p_active, 1 - p_active]).sum(0) + of_target - entr(joint).sum(0)
    sign = np.where(both * float(total) < active * (target * 1.0), -1.0, 1.0)
    decided = np.where(of_target > 0, np.maximum(bits, 0.0), 0.0)
    return sign * decided / np.where(of_target > 0, of_target, 1.0)


@dataclass(frozen=True)
class TokenFigures:
    """Of every latent (F,): rows of the token on which it is active (`both`), its mean value over
    all of the token's rows, the share of these rows on which it is active, how many times more
    often that is than on all rows (`lift`), and `information`; `chance` is one number."""

    both: np.ndarray
    mean: np.ndarray
    share: np.ndarray
    lift: np.ndarray
    information: np.ndarray
    chance: float


def token_figures(index: Index, rows: np.ndarray, seed: int = 0) -> TokenFigures:
    """`rows` (n,) int64: where the token is, ascending; at least one."""
    order, active, total = index.by_row, index.active, index.rows
    both, n = order.counts(rows), len(rows)
    share = both / n
    rng = np.random.default_rng(seed)
    shifts = rng.integers(1, max(total, 2), SHUFFLES)
    moved = [np.sort((rows + shift) % total) for shift in shifts.tolist()]
    chance = max(
        float(information(order.counts(shifted), active, n, total).max(initial=0.0))
        for shifted in moved
    )
    return TokenFigures(
        both,
        order.sums(rows) / n,
        share,
        share / np.maximum(active / total, 1 / total),
        information(both, active, n, total),
        chance,
    )


@dataclass(frozen=True)
class LabelFigures:
    """Of every latent (F,): examples of the label in which it is active (`both`), their share of
    the label's examples, `lift` over all examples, `information` and `auroc`: the probability that
    its largest size is larger in an example of the label than in another one, ties counting half.
    The chances are one number each."""

    both: np.ndarray
    share: np.ndarray
    lift: np.ndarray
    information: np.ndarray
    chance: float
    auroc: np.ndarray
    auroc_chance: float


def label_figures(index: Index, label: int, seed: int = 0) -> LabelFigures:
    """`label`: its number in `index.origin`. An example counts with its largest size."""
    origin = index.origin
    kinds_SE = np.stack(
        [
            origin.example_label == label,
            *_shuffled(origin.example_label, origin.example_doc, label, seed),
        ]
    )
    total, sizes_S = kinds_SE.shape[1], kinds_SE.sum(1)
    active_F, both_SF, ranks_SF = _in_examples(index, kinds_SE)
    information_SF = np.stack(
        [information(both, active_F, int(n), total) for both, n in zip(both_SF, sizes_S)]
    )
    # examples in which a latent is not active share the lowest ranks
    silent_SF = sizes_S[:, None] - both_SF
    sums_SF = ranks_SF + silent_SF * (total - active_F + 1) / 2
    pairs_S = np.maximum(sizes_S * (total - sizes_S), 1)
    auroc_SF = (sums_SF - (sizes_S * (sizes_S + 1) / 2)[:, None]) / pairs_S[:, None]
    share_F = both_SF[0] / max(sizes_S[0], 1)
    return LabelFigures(
        both_SF[0],
        share_F,
        share_F / np.maximum(active_F / total, 1 / total),
        information_SF[0],
        float(information_SF[1:].max(initial=0.0)),
        auroc_SF[0],
        float(auroc_SF[1:].max(initial=0.0)),
    )


def _shuffled(label_E: np.ndarray, doc_E: np.ndarray, label: int, seed: int) -> list[np.ndarray]:
    """SHUFFLES x (E,) bool: the label's examples once documents have exchanged their labels."""
    _, first, doc = np.unique(doc_E, return_index=True, return_inverse=True)
    of_doc = label_E[first] == label
    rng = np.random.default_rng(seed)
    return [rng.permutation(of_doc)[doc] for _ in range(SHUFFLES)]


def _in_examples(index: Index, kinds_SE: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(active (F,), both (S,F), ranks (S,F)): in how many examples each latent is active, in how
    many of each kind, and the sum of the ranks of these among all examples, by largest size."""
    latents, (kinds, examples) = len(index), kinds_SE.shape
    active_F = np.zeros(latents, np.int64)
    both_SF, ranks_SF = np.zeros((kinds, latents), np.int64), np.zeros((kinds, latents))
    for a, b, row, value, latent in index.blocks(PIECE):
        example = index.origin.example[row]
        # the largest size of each latent in each example
        new = np.ones(len(row), bool)
        new[1:] = (latent[1:] != latent[:-1]) | (example[1:] != example[:-1])
        begin = np.flatnonzero(new)
        if not len(begin):
            continue
        size = np.maximum.reduceat(np.abs(value), begin)
        latent, example = latent[begin], example[begin]
        counts = np.bincount(latent, minlength=b - a)
        active_F[a:b] = counts
        # ranks after those of the examples in which the latent is not active
        rank = _ranks(size, latent) + (examples - counts)[latent]
        for s, kind_E in enumerate(kinds_SE):
            of_kind = kind_E[example]
            both_SF[s, a:b] = np.bincount(latent[of_kind], minlength=b - a)
            ranks_SF[s, a:b] = np.bincount(latent[of_kind], rank[of_kind], b - a)
    return active_F, both_SF, ranks_SF


def _ranks(size: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """The rank of each size among those of its owner, from 1; equal ones share their mean. Owners
    ascend."""
    order = order_of(bits_of_sizes(size))
    order = order[order_of(owner[order].astype(np.uint32))]
    size, owner = size[order], owner[order]
    new = np.ones(len(size), bool)
    new[1:] = (size[1:] != size[:-1]) | (owner[1:] != owner[:-1])
    begin = np.flatnonzero(new)
    ends = np.append(begin[1:], len(size))
    first_of_owner = np.searchsorted(owner, owner[begin])
    mean = (begin + 1 + ends) / 2 - first_of_owner
    ranks = np.empty(len(size))
    ranks[order] = np.repeat(mean, ends - begin)
    return ranks
