"""An autoencoder's encoder as the start of a classifier: what learning without labels is worth
where labels are few.

Three accuracies with the same labelled rows and the same head: the encoder as it is (a probe of its
code), fine-tuned with the head, and a fresh encoder of the same shape trained on the labels alone.
Tuning starts from a head fitted to the codes as they are, so that a random head does not spoil the
encoder first (Kumar et al. 2022, arXiv 2202.10054).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from saekit.measures.arrays import Labels, classes
from saekit.measures.codes import draw_labelled, few_labels

STEPS, LR, DECAY = 200, 1e-3, 1e-2  # full-batch AdamW: a few hundred rows


@dataclass(frozen=True)
class Classifier:
    """Held-out accuracy with `per_class` labels a class, one entry a seed (draw of the labels, and
    of the fresh weights)."""

    per_class: int
    frozen: tuple[float, ...]
    tuned: tuple[float, ...]
    scratch: tuple[float, ...]


def as_classifier(
    model: nn.Module,
    x_ND: torch.Tensor,
    labels: Labels,
    x_test_MD: torch.Tensor,
    test_labels: Labels,
    per_class: int = 10,
    seeds: tuple[int, ...] = (0, 1, 2),
) -> Classifier:
    """`model` has a dense, differentiable code and takes raw rows; it is not changed. All rows of x
    standardise the code; `per_class` of each class are used with their labels. Raises UsageError,
    DataError (a class with too few rows)."""
    y = classes(labels, len(x_ND), "training rows")
    y_test = classes(test_labels, len(x_test_MD), "held-out rows")
    names = np.unique(y)
    target = torch.from_numpy(np.searchsorted(names, y))
    with torch.no_grad():
        probes = few_labels(
            model.encode(x_ND), y, model.encode(x_test_MD), y_test, (per_class,), seeds
        )
    tuned, scratch = [], []
    for seed in seeds:
        drawn = torch.from_numpy(draw_labelled(y, per_class, seed))
        fresh = copy.deepcopy(model)
        fresh.initialise_from(x_ND[:1024], torch.Generator().manual_seed(seed))
        for start, found in ((copy.deepcopy(model), tuned), (fresh, scratch)):
            network = _with_head(start, x_ND, drawn, target[drawn])
            _fit(network, x_ND[drawn], target[drawn])
            with torch.no_grad():
                found.append(float((names[network(x_test_MD).argmax(1).numpy()] == y_test).mean()))
    return Classifier(per_class, probes[0].accuracies, tuple(tuned), tuple(scratch))


class _Coded(nn.Module):
    """A model's code, standardised by constants."""

    def __init__(self, model: nn.Module, x_ND: torch.Tensor) -> None:
        super().__init__()
        self.model = model
        with torch.no_grad():
            z = model.encode(x_ND)
        self.register_buffer("mean", z.mean(0))
        spread = z.std(0)
        self.register_buffer("scale", torch.where(spread > 0, 1 / spread, 1.0))

    def forward(self, x_ND: torch.Tensor) -> torch.Tensor:
        return (self.model.encode(x_ND) - self.mean) * self.scale


def _with_head(
    model: nn.Module, x_ND: torch.Tensor, drawn: torch.Tensor, target_N: torch.Tensor
) -> nn.Module:
    """The model with a logistic regression of its codes on top, one output a class."""
    coded = _Coded(model, x_ND)
    with torch.no_grad():
        probe = LogisticRegression(max_iter=1000).fit(coded(x_ND[drawn]).numpy(), target_N.numpy())
    weight, bias = torch.from_numpy(probe.coef_).float(), torch.from_numpy(probe.intercept_).float()
    if len(probe.classes_) == 2:  # one row for two classes: the odds of the second
        weight, bias = torch.cat([-weight / 2, weight / 2]), torch.cat([-bias / 2, bias / 2])
    head = nn.Linear(*reversed(weight.shape))
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return nn.Sequential(coded, head)


def _fit(network: nn.Module, x_ND: torch.Tensor, target_N: torch.Tensor) -> None:
    parameters = [parameter.requires_grad_(True) for parameter in network.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=DECAY, fused=True)
    for _ in range(STEPS):
        loss = nn.functional.cross_entropy(network(x_ND), target_N)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
