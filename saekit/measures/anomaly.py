"""Does a model reconstruct anomalies badly? Areas under the ROC curve of reconstruction errors.

Such a value says little without that of PCA: on 5,000 images of MNIST, 4,000 to fit and 1,000 to
test, the residual of PCA with 30 components reaches 0.951 on average over the ten classes taken as
normal (worst 0.867, the 8).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from saekit.errors import DataError
from saekit.measures.arrays import Labels, Rows, classes, matrix

Score = Callable[[torch.Tensor], Rows]
"""(N, ...) rows -> (N,) scores, higher for more anomalous rows."""


@dataclass(frozen=True)
class OneClass:
    by_class: dict[str | int, float]
    """Class -> AUROC with that class as the normal one."""

    @property
    def mean(self) -> float:
        return sum(self.by_class.values()) / len(self.by_class)

    @property
    def worst(self) -> tuple[str | int, float]:
        """(class, AUROC)."""
        return min(self.by_class.items(), key=lambda item: item[1])


def squared_errors(
    target: torch.Tensor, x_hat: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """(N,): squared error of each row or example, summed over its values, without padding."""
    squares = (target - x_hat).double().square()
    return (squares if mask is None else squares * mask[..., None]).flatten(1).sum(1)


def auroc(normal_errors: Rows, anomalous_errors: Rows) -> float:
    """Probability that an anomalous row has a larger error than a normal one; ties count half.
    Raises DataError, NumericsError."""
    normal = _errors(normal_errors, "normal errors")
    anomalous = _errors(anomalous_errors, "anomalous errors")
    truth = np.concatenate([np.zeros(len(normal)), np.ones(len(anomalous))])
    return float(roc_auc_score(truth, np.concatenate([normal, anomalous])))


def one_class(
    fit: Callable[[torch.Tensor], Score],
    x: torch.Tensor,
    labels: Labels,
    x_test: torch.Tensor,
    labels_test: Labels,
) -> OneClass:
    """Each class in turn is normal: `fit` sees only its training rows, and the test rows of all
    other classes are anomalies.

    x and x_test are (N, ...) and (M, ...); fit(x of one class) gives the score function. Raises
    DataError (a class missing from a side).
    """
    y, y_test = classes(labels, len(x), "x"), classes(labels_test, len(x_test), "x_test")
    names = np.unique(y_test)
    if len(names) < 2 or not np.isin(names, y).all():
        raise DataError(
            "the test rows must be of two classes or more, each of them among the training rows"
        )
    by_class = {}
    for name in names:
        score = fit(x[torch.from_numpy(y == name)])
        errors = _errors(score(x_test), f"scores with class {name} as normal")
        by_class[name.item()] = auroc(errors[y_test == name], errors[y_test != name])
    return OneClass(by_class)


def error_histogram(
    normal: Rows, anomalous: Rows, bins: int = 40
) -> tuple[list[float], dict[str, list[int]]]:
    """(bins + 1 edges, counts by name) over the range of both; what `charts.histogram` draws.
    Raises DataError, NumericsError."""
    rows = {
        "normal": _errors(normal, "normal errors"),
        "anomalous": _errors(anomalous, "anomalous errors"),
    }
    edges = np.histogram_bin_edges(np.concatenate(list(rows.values())), bins)
    return edges.tolist(), {
        name: np.histogram(errors, edges)[0].tolist() for name, errors in rows.items()
    }


def _errors(values: Rows, name: str) -> np.ndarray:
    errors = matrix(values, name)
    if errors.shape[1] != 1:
        raise DataError(f"{name}: {errors.shape[1]} values per row; expected one")
    return errors[:, 0]
