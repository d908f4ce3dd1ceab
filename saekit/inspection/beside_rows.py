"""Latents of two dictionaries, matched by where they fire: Pearson correlation and Jaccard index
over the rows of one store, from the index of each.

The level of chance is that of the same activations with the other's rows moved on by half the
store.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sparse

from saekit.indexing.reader import Index
from saekit.inspection.beside_match import CHANCE, KEPT, SAMPLE

Matrix = Any  # a scipy.sparse.csr_matrix, which scipy does not type

LEAST_TOGETHER = 3  # rows: of fewer, any figure is chance
ENTRIES_AT_ONCE = 1 << 17
SAMPLED_AT_ONCE = 64


@dataclass(frozen=True)
class OnRows:
    """Pairs of latents on the same rows of a store: rows together, Jaccard index, and Pearson
    correlation of their activations over all rows."""

    together: np.ndarray
    jaccard: np.ndarray
    correlation: np.ndarray


class RowMatches:
    """The activations of two dictionaries on the same rows."""

    def __init__(self, own: Index, other: Index) -> None:
        assert own.rows == other.rows, "of one store"
        self.own, self.rows = own, own.rows
        order = other.by_row
        shape = (self.rows, len(other))
        values = np.asarray(order.value, np.float32).astype(np.float64)
        # rows x the other's latents
        self._other: Matrix = sparse.csr_matrix((values, order.latent, order.ptr), shape)
        self._other_active = np.bincount(order.latent, minlength=len(other))
        self._other_sums = _sums(self._other)

    def blocks(self) -> Iterator[tuple[int, int, Matrix, Matrix]]:
        """Of the latents [a, b) of the first with all of the other: on how many rows both are
        active, and the sum of their products there."""
        for a, b, own in self._own_blocks():
            yield a, b, *_products(own, self._other)

    def of_pairs(
        self, a: int, together: Any, products: Any, first: np.ndarray, other: np.ndarray
    ) -> OnRows:
        """The figures of pairs (n,), from the block that begins at latent a."""
        n_both = np.asarray(together[first - a, other], np.float64).ravel()
        product = np.asarray(products[first - a, other], np.float64).ravel()
        return self._figures(first, other, n_both, product)

    def best(
        self, a: int, together: Matrix, products: Matrix, count: int = KEPT
    ) -> dict[int, np.ndarray]:
        """Of each latent of a block, by number, the other's latents with the largest correlation,
        largest first, among those that are active with it on at least three rows."""
        first = a + np.repeat(np.arange(together.shape[0]), np.diff(together.indptr))
        other = together.indices
        figures = self._figures(first, other, together.data, products.data)
        chosen = figures.together >= LEAST_TOGETHER
        first, other = first[chosen], other[chosen]
        order = np.lexsort((other, -figures.correlation[chosen], first))
        first, other = first[order], other[order]
        begins = np.flatnonzero(np.diff(first, prepend=-1))
        ends = np.append(begins[1:], len(first))
        return {int(first[at]): other[at : min(at + count, end)] for at, end in zip(begins, ends)}

    def by_chance(self) -> float | None:
        """What 99 % of the latents that fire on at least three rows (a sample) stay below with
        their best correlation, when the other's rows are moved on by half the store; None where
        there are none."""
        half = self.rows // 2
        moved: Matrix = sparse.vstack([self._other[half:], self._other[:half]], format="csr")
        firing = np.flatnonzero(self.own.active >= LEAST_TOGETHER)
        if not len(firing):
            return None
        sample = np.sort(np.random.default_rng(0).permutation(firing)[:SAMPLE])
        best = []
        for part in np.array_split(sample, -(-len(sample) // SAMPLED_AT_ONCE)):
            both, products = _products(self._of(part), moved)
            first = np.repeat(part, np.diff(both.indptr))
            figures = self._figures(first, both.indices, both.data, products.data)
            value = np.where(figures.together >= LEAST_TOGETHER, figures.correlation, 0.0)
            largest = np.zeros(len(part))
            np.maximum.at(largest, np.repeat(np.arange(len(part)), np.diff(both.indptr)), value)
            best.append(largest)
        return float(np.quantile(np.concatenate(best), CHANCE))

    def _own_blocks(self) -> Iterator[tuple[int, int, Matrix]]:
        for a, b, rows, values, latent in self.own.blocks(ENTRIES_AT_ONCE):
            shape = (b - a, self.rows)
            yield a, b, sparse.csr_matrix((values.astype(np.float64), (latent, rows)), shape)

    def _of(self, latents: np.ndarray) -> Matrix:
        entries = [self.own.activations(j) for j in latents.tolist()]
        ptr = np.append(0, np.cumsum([len(entry) for entry in entries]))
        rows = np.concatenate([entry.rows for entry in entries])
        values = np.concatenate([entry.values for entry in entries]).astype(np.float64)
        return sparse.csr_matrix((values, rows, ptr), (len(latents), self.rows))

    def _figures(
        self, first: np.ndarray, other: np.ndarray, n_both: np.ndarray, product: np.ndarray
    ) -> OnRows:
        own_sum, own_squares = self._own_sums
        other_sum, other_squares = self._other_sums
        either = self.own.active[first] + self._other_active[other] - n_both
        covariance = product - own_sum[first] * other_sum[other] / self.rows
        own_variance = own_squares[first] - own_sum[first] ** 2 / self.rows
        other_variance = other_squares[other] - other_sum[other] ** 2 / self.rows
        scale = np.sqrt(np.maximum(own_variance * other_variance, 0))
        correlation = np.where(scale > 0, covariance / np.where(scale > 0, scale, 1), 0)
        return OnRows(n_both, n_both / np.maximum(either, 1), correlation)

    @cached_property
    def _own_sums(self) -> tuple[np.ndarray, np.ndarray]:
        total, squares = np.zeros(len(self.own)), np.zeros(len(self.own))
        for a, b, values in self._own_blocks():
            total[a:b] = np.asarray(values.sum(1)).ravel()
            squares[a:b] = np.asarray(values.multiply(values).sum(1)).ravel()
        return total, squares


def _sums(rows_by_latents: Matrix) -> tuple[np.ndarray, np.ndarray]:
    """Of each latent: the sum of its values, and of their squares."""
    size, values = rows_by_latents.shape[1], rows_by_latents.data
    latent = rows_by_latents.indices
    return np.bincount(latent, values, size), np.bincount(latent, values**2, size)


def _products(own: Matrix, other: Matrix) -> tuple[Matrix, Matrix]:
    """On how many rows both are active, and the sum of their products, with the same places."""
    together: Matrix = _ones(own) @ _ones(other)
    products: Matrix = own @ other
    together.sort_indices()
    products.sort_indices()
    if not np.array_equal(together.indices, products.indices):
        # values of both signs may cancel, and a product of 0 is not kept
        row = np.repeat(np.arange(together.shape[0]), np.diff(together.indptr))
        data = np.asarray(products[row, together.indices]).ravel()
        products = sparse.csr_matrix((data, together.indices, together.indptr), together.shape)
    return together, products


def _ones(matrix: Matrix) -> Matrix:
    ones = np.ones(len(matrix.indices))
    return sparse.csr_matrix((ones, matrix.indices, matrix.indptr), matrix.shape)
