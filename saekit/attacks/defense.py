"""Adversarial training: a small image classifier that is trained on the attack's pictures.

    min over weights of E [ max over x' in the ball of loss(x', y) ]      Madry et al. 2018, eq. 2.1

The inner maximum is the largest loss on a path of projected gradient from a random start (`pgd`),
or the mean of the losses of the picture and of its FGSM (`fgsm`; Goodfellow et al. 2015, section 6,
with their weight 1/2). FGSM in training is cheap, and may only teach the network to hide its
gradient: judge it by `pgd` with restarts (docs/attack.md).

Shapes: N B images, C channels, h w pixels, V classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from saekit.attacks.balls import BETWEEN, Ball
from saekit.attacks.perturb import STEP, climb, fgsm
from saekit.attacks.scores import ClassScore, Logits
from saekit.errors import DataError, UsageError, opt
from saekit.types import Progress

Adversary = Literal["none", "fgsm", "pgd"]
BALL = Ball("linf", 0.2)
JUDGED = 500  # images per forward pass
Attack = Callable[[ClassScore, torch.Tensor], torch.Tensor]
"""(score, x (B,C,h,w)) -> the changed pictures."""


@dataclass(frozen=True)
class DefenseConfig:
    """How `train_classifier` trains. Raises UsageError."""

    adversary: Adversary = "pgd"
    ball: Ball = BALL
    steps: int = 7
    """Of the inner pgd."""
    epochs: int = 20
    batch: int = 100
    lr: float = 2e-3

    def __post_init__(self) -> None:
        if self.adversary not in get_args(Adversary):
            raise UsageError(
                f"adversary {self.adversary!r} is not one of {', '.join(get_args(Adversary))}"
            )
        for name in ("steps", "epochs", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"{opt(name, getattr(self, name))} must be at least 1")


class SmallClassifier(nn.Module):
    """Two strided convolutions and two dense layers: x (B,C,h,w) in [0,1] -> logits (B,V). Without
    batch norm, so that images do not depend on each other in training either."""

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int = 16) -> None:
        super().__init__()
        C, h, w = shape
        down = [-(-side // 4) for side in (h, w)]
        self.layers = nn.Sequential(
            nn.Conv2d(C, width, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * width * down[0] * down[1], 100),
            nn.ReLU(),
            nn.Linear(100, classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x - 0.5)


def train_classifier(
    x: torch.Tensor,
    y: torch.Tensor,
    config: DefenseConfig,
    seed: int = 0,
    progress: Callable[[Progress], None] = lambda _: None,
) -> SmallClassifier:
    """A classifier of pictures x (N,C,h,w) in [0,1] by classes y (N,) int64, in eval mode.

    Adam, with a learning rate that falls to 0 as a cosine. The same seed on the same number of
    threads gives the same weights. Raises DataError for other shapes or dtypes, and for x outside
    of [0,1].
    """
    _check(x, y)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SmallClassifier((x.shape[1], x.shape[2], x.shape[3]), int(y.max()) + 1)
    network.to(x.device)
    per_epoch = -(-len(x) // config.batch)
    total = config.epochs * per_epoch
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    order = torch.empty(0)
    for step in range(total):
        progress(Progress("defend", step, total, "steps"))
        if step % per_epoch == 0:
            order = torch.randperm(len(x), generator=generator).to(x.device)
        at = step % per_epoch * config.batch
        chosen = order[at : at + config.batch]
        loss = _loss(network, x[chosen], y[chosen], config, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    progress(Progress("defend", total, total, "steps"))
    return network.eval().requires_grad_(False)


def _check(x: torch.Tensor, y: torch.Tensor) -> None:
    for name, values in (("x", x), ("y", y)):
        if not isinstance(values, torch.Tensor):
            raise DataError(
                f"{name} is a {type(values).__name__}", "give a tensor: torch.from_numpy, and"
                " classes as numbers from 0"
            )  # fmt: skip
    if x.ndim != 4 or not x.is_floating_point():
        raise DataError(
            f"pictures have the shape {tuple(x.shape)} in {x.dtype}",
            "give floats (N,C,h,w), such as x.reshape(-1, 1, 28, 28)",
        )
    if y.shape != x.shape[:1] or len(y) == 0 or y.dtype != torch.int64:
        raise DataError(
            f"classes have the shape {tuple(y.shape)} in {y.dtype} for {len(x)} pictures",
            "give one int64 for each picture",
        )
    if int(y.min()) < 0:
        raise DataError(f"class {int(y.min())} is negative", "number the classes from 0")
    if not bool(((x >= 0) & (x <= 1)).all()):
        raise DataError("pixels are outside of [0,1]", "divide 8-bit pixels by 255")


def _loss(
    network: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    config: DefenseConfig,
    generator: torch.Generator,
) -> torch.Tensor:
    if config.adversary == "none":
        return cross_entropy(network(x), y)
    score = ClassScore(network, y)
    if config.adversary == "fgsm":
        changed = fgsm(score, x, config.ball).x
        return (cross_entropy(network(x), y) + cross_entropy(network(changed), y)) / 2
    return cross_entropy(network(_strongest(score, x, config, generator)), y)


def _strongest(
    score: ClassScore, x: torch.Tensor, config: DefenseConfig, generator: torch.Generator
) -> torch.Tensor:
    """Of each image the iterate with the largest loss, from a random start."""
    ball, best, best_B = config.ball, x, torch.full((len(x),), -torch.inf, device=x.device)
    size = STEP * ball.eps / config.steps
    start = ball.random(x, generator)
    for now, score_B in climb(score, start, x, ball, config.steps, size):
        best = torch.where((score_B > best_B)[BETWEEN], now, best)
        best_B = torch.maximum(best_B, score_B)
    return best


def accuracy(
    network: Logits, x: torch.Tensor, y: torch.Tensor, attack: Attack | None = None
) -> float:
    """The share of pictures x (N,C,h,w) whose class y (N,) the network names, on the pictures that
    `attack` makes of them; None: as they are."""
    right = 0
    for x_B, y_B in zip(x.split(JUDGED), y.split(JUDGED)):
        shown = x_B if attack is None else attack(ClassScore(network, y_B), x_B)
        with torch.no_grad():
            right += int((network(shown).argmax(1) == y_B).sum())
    return right / len(x)
