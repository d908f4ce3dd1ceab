"""An autoencoder's encoder as the start of a classifier: how much learning without labels helps
where there are few labels.

Three accuracies with the same labeled rows and the same head: the encoder as it is (a probe of its
code), fine-tuned with the head, and a fresh encoder of the same shape trained only on the labels.
Fine-tuning starts from a head that was fitted to the codes as they are, so that a random head does
not spoil the encoder first (Kumar et al. 2022, arXiv 2202.10054).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from saekit.measures.arrays import Labels, classes
from saekit.measures.codes import draw_labeled, few_labels
from saekit.models.autoencoder import Autoencoder

STEPS, LR, DECAY = 200, 1e-3, 1e-2  # full-batch AdamW: a few hundred rows


@dataclass(frozen=True)
class Classifier:
    """Held-out accuracy with `per_class` labels per class, one value per seed (of the draw of the
    labels and of the fresh weights)."""

    per_class: int
    frozen: tuple[float, ...]
    tuned: tuple[float, ...]
    scratch: tuple[float, ...]


def as_classifier(
    model: Autoencoder,
    x_ND: torch.Tensor,
    labels: Labels,
    x_test_MD: torch.Tensor,
    test_labels: Labels,
    per_class: int = 10,
    seeds: tuple[int, ...] = (0, 1, 2),
) -> Classifier:
    """`model` has a dense, differentiable code and takes raw rows; it is not changed. The code is
    standardized by all rows of x; `per_class` rows of each class are used with their labels. Raises
    UsageError, DataError (a class with too few rows)."""
    # the encoder as it is
    y = classes(labels, len(x_ND), "training rows")
    y_test = classes(test_labels, len(x_test_MD), "held-out rows")
    names = np.unique(y)
    target = torch.from_numpy(np.searchsorted(names, y))
    with torch.no_grad():
        probes = few_labels(
            model.encode(x_ND), y, model.encode(x_test_MD), y_test, (per_class,), seeds
        )

    # fine-tuned, and from fresh weights
    tuned, scratch = [], []
    for seed in seeds:
        drawn = torch.from_numpy(draw_labeled(y, per_class, seed))
        fresh = copy.deepcopy(model)
        fresh.initialise_from(x_ND[:1024], torch.Generator().manual_seed(seed))
        for start, accuracies in ((copy.deepcopy(model), tuned), (fresh, scratch)):
            network = _with_head(start, x_ND, drawn, target[drawn])
            _fit(network, x_ND[drawn], target[drawn])
            with torch.no_grad():
                predicted = names[network(x_test_MD).argmax(1).numpy()]
            accuracies.append(float((predicted == y_test).mean()))
    return Classifier(per_class, probes[0].accuracies, tuple(tuned), tuple(scratch))


class _Coded(nn.Module):
    """A model's code, standardized by constants."""

    def __init__(self, model: Autoencoder, x_ND: torch.Tensor) -> None:
        super().__init__()
        self.model = model
        with torch.no_grad():
            z_NF = _dense_code(model, x_ND)
        spread = z_NF.std(0)
        self.mean = nn.Buffer(z_NF.mean(0))
        self.scale = nn.Buffer(torch.where(spread > 0, 1 / spread, 1.0))

    def forward(self, x_ND: torch.Tensor) -> torch.Tensor:
        return (_dense_code(self.model, x_ND) - self.mean) * self.scale


def _dense_code(model: Autoencoder, x_ND: torch.Tensor) -> torch.Tensor:
    code = model.encode(x_ND)
    assert isinstance(code, torch.Tensor), "a dense code"
    return code


def _with_head(
    model: Autoencoder, x_ND: torch.Tensor, drawn: torch.Tensor, target_N: torch.Tensor
) -> nn.Module:
    """The model with a logistic regression of its codes on top, one output per class."""
    coded = _Coded(model, x_ND)
    with torch.no_grad():
        probe = LogisticRegression(max_iter=1000).fit(coded(x_ND[drawn]).numpy(), target_N.numpy())
    weight, bias = torch.from_numpy(probe.coef_).float(), torch.from_numpy(probe.intercept_).float()
    if len(probe.classes_) == 2:  # one row for two classes: the odds of the second
        weight, bias = torch.cat([-weight / 2, weight / 2]), torch.cat([-bias / 2, bias / 2])
    head = nn.Linear(weight.shape[1], weight.shape[0])
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
