"""Real ablations of the nodes of an attribution: the largest one by one, and sets of the largest.

A set C is judged as in Marks et al. 2024 (arXiv 2403.19647, section 4), with zero ablation: m(C) is
the metric where only the nodes of C are kept, M are all nodes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from saekit.intervention.attribution import Keep, Node, Passes

Effects = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""Name of a place -> (T,F), (T,): the effects of its latents and of its errors."""


@dataclass(frozen=True)
class KeptSet:
    """The nodes with the largest effects, as a set C. None where m(M) = m(empty)."""

    nodes: int
    """How many."""
    faithfulness: float | None
    """(m(C) - m(empty)) / (m(M) - m(empty)); error nodes are nodes like others."""
    completeness: float | None
    """The same for all nodes but C: near 0 where C holds all that matters."""
    faithfulness_errors: float | None
    """Faithfulness, with all errors kept in every pass."""
    completeness_errors: float | None


@dataclass(frozen=True)
class Ablations:
    singles: list[float]
    """By how much the metric falls without each of the largest nodes."""
    together: float
    """The same without all of these."""
    total: float
    """The same without any node."""
    curve: list[KeptSet]
    """Sets of 1, 2, 5, 10, ... nodes up to all that have an effect."""


def ablations(passes: Passes, nodes: Sequence[Node], top: int) -> Ablations:
    """nodes: the largest first. top: how many are ablated one by one."""
    sizes = sorted({*_sizes(len(nodes)), min(top, len(nodes))})
    singles = passes.ablated([Keep([node]) for node in nodes[:top]])
    empty = passes.ablated([Keep((), True, errors) for errors in (False, True)])
    sets = passes.ablated(
        [
            Keep(nodes[:size], only, errors)
            for size in sizes
            for errors in (False, True)
            for only in (True, False)
        ]
    )
    quadruples = [sets[first : first + 4] for first in range(0, len(sets), 4)]
    curve = [
        KeptSet(
            size,
            *(_share(value, empty[0], passes.clean) for value in values[:2]),
            *(_share(value, empty[1], passes.clean) for value in values[2:]),
        )
        for size, values in zip(sizes, quadruples)
    ]
    rest = quadruples[sizes.index(min(top, len(nodes)))][1]
    return Ablations(
        [passes.clean - value for value in singles],
        passes.clean - rest,
        passes.clean - empty[0],
        curve,
    )


def by_size(effects: Effects) -> list[tuple[Node, float]]:
    """All nodes that have an effect, the largest by size first."""
    pairs: list[tuple[Node, float]] = []
    for name, (codes_TF, errors_T) in effects.items():
        joint = torch.cat([codes_TF, errors_T[:, None]], 1)
        latents = codes_TF.shape[1]
        for position, column in joint.nonzero().tolist():
            node = Node(name, position, column if column < latents else None)
            pairs.append((node, float(joint[position, column])))
    return sorted(pairs, key=lambda pair: -abs(pair[1]))


def pearson(a: Sequence[float], b: Sequence[float]) -> float | None:
    """The correlation; None where one of them does not vary."""
    both = torch.tensor([a, b], dtype=torch.float64)
    if both.shape[1] < 2 or bool((both.std(1) == 0).any()):
        return None
    r = float(torch.corrcoef(both)[0, 1])
    return r if math.isfinite(r) else None


def _sizes(count: int) -> Iterator[int]:
    """1, 2, 5, 10, ... below `count`, and `count`."""
    step = 1
    while step < count:
        yield from (size for size in (step, 2 * step, 5 * step) if size < count)
        step *= 10
    yield count


def _share(value: float, empty: float, full: float) -> float | None:
    """None where the passes differ by rounding only."""
    if abs(full - empty) <= 1e-6 * max(abs(full), abs(empty), 1.0):
        return None
    return (value - empty) / (full - empty)
