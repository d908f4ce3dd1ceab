"""A small classifier of real images that judges generated ones: which classes are among them, are
those of a wanted class recognized, and the features in which sets are compared.

It is trained on the real training split, and its accuracy on held-out rows stands beside every
figure that it gives: a judge that is right 97 times in 100 cannot measure 99 %.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops.layers.torch import Rearrange
from torch import nn
from torch.nn import functional

from saekit.errors import DataError
from saekit.measures.arrays import Labels, classes

CHANNELS, FEATURES = (16, 32), 64
STEPS, BATCH, LR = 750, 64, 2e-3  # 12 passes over 4,000 images
FOUND = 0.1  # of a class's share of the real rows


@dataclass(frozen=True)
class Coverage:
    shares: dict[str, float]
    """Class -> share of the samples."""
    missing: tuple[str, ...]
    """Classes with less than a tenth of their share of the real rows."""
    entropy: float
    """Of the shares, over that of the real rows' shares: 1 as even, 0 a single class."""

    @property
    def found(self) -> int:
        return len(self.shares) - len(self.missing)


class Judge:
    """names: class names, sorted; accuracy: on the held-out rows it was given."""

    def __init__(self, network: nn.Sequential, names: np.ndarray) -> None:
        self.network, self.names, self.accuracy = network.eval(), names, float("nan")

    @torch.no_grad()
    def features(self, x: torch.Tensor) -> torch.Tensor:
        """(N,64): the last hidden layer, after its ReLU, of rows (N, ...)."""
        return torch.cat([self.network[:-1](part.flatten(1)) for part in x.float().split(512)])

    @torch.no_grad()
    def predict(self, x: torch.Tensor) -> np.ndarray:
        """(N,) names of classes."""
        return self.names[self.network[-1](self.features(x)).argmax(1).numpy()]

    def recognized(self, x: torch.Tensor, labels: Labels) -> float:
        """Share of rows (N, ...) that the judge gives their label."""
        return float((self.predict(x) == classes(labels, len(x), "rows")).mean())


def train_judge(
    x: torch.Tensor,
    labels: Labels,
    x_test: torch.Tensor,
    labels_test: Labels,
    shape: tuple[int, int, int],
    seed: int = 0,
    steps: int = STEPS,
) -> Judge:
    """Two convolutions, a layer of 64 and a softmax, for rows (N, ...) of images of `shape`
    (H,W,C), with Adam and a falling rate; the same seed gives the same bits on one thread. Raises
    DataError."""
    y = classes(labels, len(x), "training rows")
    names = np.unique(y)
    if len(names) < 2:
        raise DataError("the training labels have only one class", "rows of at least two classes")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(shape, len(names))
        _fit(network, x.flatten(1).float(), torch.from_numpy(np.searchsorted(names, y)), steps)
    judge = Judge(network, names)
    judge.accuracy = judge.recognized(x_test, labels_test)
    return judge


def coverage(predicted: Sequence[str] | np.ndarray, real: Sequence[str] | np.ndarray) -> Coverage:
    """Of samples that a judge found to be of the classes `predicted` (M,), beside the labels of
    real rows `real` (N,). Raises DataError."""
    if not len(predicted) or not len(real):
        raise DataError("coverage needs samples and labels of real rows")
    names, counts = np.unique(np.asarray(real), return_counts=True)
    expected = counts / counts.sum()
    shares = np.array([(np.asarray(predicted) == name).mean() for name in names])
    if len(names) < 2:
        raise DataError("the real rows are of a single class, so there is nothing to cover")
    return Coverage(
        shares={str(name): float(share) for name, share in zip(names, shares)},
        missing=tuple(str(name) for name in names[shares < FOUND * expected]),
        entropy=_entropy(shares) / _entropy(expected),
    )


def _entropy(shares: np.ndarray) -> float:
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())


def _network(shape: tuple[int, int, int], count: int) -> nn.Sequential:
    H, W, C = shape
    first, second = CHANNELS
    left = -(-H // 4) * -(-W // 4) * second  # two pools, which keep an odd edge
    pool = nn.MaxPool2d(2, ceil_mode=True)
    return nn.Sequential(
        Rearrange("n (h w c) -> n c h w", h=H, w=W, c=C),
        *(nn.Conv2d(C, first, 3, padding=1), nn.ReLU(), pool),
        *(nn.Conv2d(first, second, 3, padding=1), nn.ReLU(), pool),
        *(nn.Flatten(), nn.Linear(left, FEATURES), nn.ReLU()),
        nn.Linear(FEATURES, count),
    )


def _fit(network: nn.Module, x_ND: torch.Tensor, target_N: torch.Tensor, steps: int) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=LR, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    passes = -(-steps * BATCH // len(x_ND)) + 1
    batches = (rows for _ in range(passes) for rows in torch.randperm(len(x_ND)).split(BATCH))
    for rows in itertools.islice(batches, steps):
        loss = functional.cross_entropy(network(x_ND[rows]), target_N[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
