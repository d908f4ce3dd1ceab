"""What a code tells about the data: classes from few or many labels, preserved neighborhoods,
compared subspaces, a map.

Labels never reach the autoencoder; they evaluate the code that it learned. Every measure is on
held-out rows: the caller gives two sets. All functions take tensors, arrays or the sparse codes of
an SAE, (N, F), and flatten further axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import subspace_angles
from scipy.sparse import csr_matrix
from sklearn import manifold
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from saekit.errors import DataError, UsageError, check_choice
from saekit.measures.arrays import Codes, Labels, Rows, classes, matrix

MAP_METHODS = ("pca", "tsne")


@dataclass(frozen=True)
class FewLabels:
    """Accuracy of a probe that saw `per_class` labels of each class."""

    per_class: int
    mean: float
    std: float | None
    """Sample standard deviation over the draws (n - 1); None for a single draw."""
    accuracies: tuple[float, ...]
    """One per seed."""


def knn_accuracy(
    train_codes: Rows, train_labels: Labels, codes: Rows, labels: Labels, k: int = 5
) -> float:
    """Share of rows with the label of the majority of their k nearest training codes (Euclidean).
    Raises UsageError, DataError."""
    z_train, y_train, z, y = _labeled(train_codes, train_labels, codes, labels)
    if not 1 <= k <= len(z_train):
        raise UsageError(
            f"k = {k} neighbors must be between 1 and the number of training rows, {len(z_train):,}"
        )
    return float(KNeighborsClassifier(k).fit(z_train, y_train).score(z, y))


def neighbours(
    train: tuple[Codes, Sequence], queries: tuple[Codes, Sequence], k: int
) -> float | None:
    """Accuracy of k nearest neighbors, from (codes, labels) of both sets; rows without a label are
    dropped. None: fewer than two classes."""
    (z_train, y_train), (z, y) = _with_labels(*train), _with_labels(*queries)
    if len(set(y_train)) < 2 or len(y) == 0 or len(y_train) < k:
        return None
    if isinstance(z, csr_matrix):
        return float(KNeighborsClassifier(k, algorithm="brute").fit(z_train, y_train).score(z, y))
    return knn_accuracy(np.asarray(z_train), y_train, z, y, k)


def trustworthiness(
    x: Rows, codes: Rows, neighbours: int = 5, rows: int = 2000, seed: int = 0
) -> float:
    """In [0, 1]: 1 when the nearest neighbors of every code are near neighbors of its row of x
    (Venna and Kaski 2001).

    Computes all N^2 distances, so at most `rows` rows are used, drawn by `seed`. Raises UsageError,
    DataError.
    """
    x_ND, z_NF = matrix(x, "x"), matrix(codes, "codes")
    if len(x_ND) != len(z_NF):
        raise DataError(
            f"{len(x_ND):,} rows of x and {len(z_NF):,} codes: they must be the same rows"
        )
    if len(x_ND) > rows:
        drawn = np.sort(np.random.default_rng(seed).choice(len(x_ND), rows, replace=False))
        x_ND, z_NF = x_ND[drawn], z_NF[drawn]
    if not 1 <= neighbours < len(x_ND) / 2:
        raise UsageError(
            f"neighbours = {neighbours} must be at least 1 and under half of the {len(x_ND):,} rows"
        )
    return float(manifold.trustworthiness(x_ND, z_NF, n_neighbors=neighbours))


def few_labels(
    train_codes: Rows,
    train_labels: Labels,
    codes: Rows,
    labels: Labels,
    per_class: Sequence[int] = (1, 5, 20, 50),
    seeds: Sequence[int] = (0, 1, 2),
) -> list[FewLabels]:
    """Accuracy of logistic regression (L2, C = 1) that saw `per_class` labeled training rows of
    each class, drawn again for each seed.

    The draws are nested: the 5 of a seed include its 1. Codes are standardized by all training
    rows, which needs no labels. Raises UsageError, DataError (a class with too few rows).
    """
    z_train, y_train, z, y = _labeled(train_codes, train_labels, codes, labels)
    if not per_class or not seeds:
        raise UsageError("few_labels needs at least one number of labels and one seed")
    scaler = StandardScaler().fit(z_train)
    z_train, z = np.asarray(scaler.transform(z_train)), np.asarray(scaler.transform(z))
    scores: dict[int, list[float]] = {n: [] for n in per_class}
    for seed in seeds:
        for n in per_class:
            drawn = draw_labeled(y_train, n, seed)
            scores[n].append(_probe(z_train[drawn], y_train[drawn]).score(z, y))
    return [
        FewLabels(n, float(np.mean(s)), float(np.std(s, ddof=1)) if len(s) > 1 else None, tuple(s))
        for n, s in scores.items()
    ]


def draw_labeled(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Indices of `per_class` rows of each class. Smaller draws of a seed are part of its larger
    ones. Raises UsageError, DataError."""
    names, counts = np.unique(labels, return_counts=True)
    rarest = counts.argmin()
    if per_class < 1:
        raise UsageError(f"per_class {per_class} must be at least 1")
    if counts[rarest] < per_class:
        raise DataError(
            f"class {names[rarest]} has {counts[rarest]} training rows, fewer than {per_class}",
            f"per_class up to {counts[rarest]}",
        )
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [rng.permutation(np.flatnonzero(labels == name))[:per_class] for name in names]
    )


def principal_angles(A: Rows, B: Rows) -> np.ndarray:
    """Angles in degrees, smallest first, between the row spaces of A (p, D) and B (q, D); as many
    as the smaller rank.

    All 0: one space contains the other. By sine and cosine (Knyazev and Argentati 2002), so small
    angles are exact. Raises DataError.
    """
    A, B = matrix(A, "A").astype(np.float64), matrix(B, "B").astype(np.float64)
    if A.shape[1] != B.shape[1]:
        raise DataError(f"rows of width {A.shape[1]} and {B.shape[1]} are in different spaces")
    if not A.any() or not B.any():
        raise DataError("a matrix of zeros spans no space")
    return np.degrees(subspace_angles(A.T, B.T))[::-1]


def map_2d(codes: Rows, method: str = "pca", seed: int = 0) -> np.ndarray:
    """(N, 2) coordinates at which to draw the codes.

    pca keeps distances along the two widest directions. tsne (van der Maaten and Hinton 2008) keeps
    only neighbors: sizes of its clusters and gaps between them mean nothing. Raises UsageError,
    DataError (fewer than 2 latents or 3 rows).
    """
    check_choice("method", method, MAP_METHODS)
    z_NF = matrix(codes, "codes")
    if z_NF.shape[1] < 2 or len(z_NF) < 3:
        raise DataError(
            f"{len(z_NF)} codes of {z_NF.shape[1]} latents: a map needs 3 codes of 2",
            "a histogram of the latent",
        )
    if method == "pca":
        return PCA(2, svd_solver="full").fit_transform(z_NF)
    # scikit-learn refuses its default perplexity of 30 below 31 rows; a third of the rows is van
    # der Maaten's own bound
    perplexity = min(30.0, (len(z_NF) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(z_NF)


def _labeled(
    train_codes: Rows, train_labels: Labels, codes: Rows, labels: Labels
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(training codes, their labels, codes, their labels), checked."""
    z_train, z = matrix(train_codes, "training codes"), matrix(codes, "codes")
    if z_train.shape[1] != z.shape[1]:
        raise DataError(f"{z_train.shape[1]} latents to train on, {z.shape[1]} to evaluate")
    y_train = classes(train_labels, len(z_train), "training codes")
    y = classes(labels, len(z), "codes")
    if len(np.unique(y_train)) < 2:
        raise DataError("the training labels have only one class", "rows of at least two classes")
    return z_train, y_train, z, y


def _with_labels(codes: Codes, labels: Sequence[str | None]) -> tuple[Codes, list[str]]:
    known = [i for i, label in enumerate(labels) if label is not None]
    return codes[known], [label for label in labels if label is not None]


def _probe(z: np.ndarray, y: np.ndarray) -> LogisticRegression:
    return LogisticRegression(max_iter=2000).fit(z, y)
