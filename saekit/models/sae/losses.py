"""Sums that the loss of every variant consists of."""

from __future__ import annotations

import torch

from saekit.types import LossTerms


def squared_error(x_BD: torch.Tensor, x_hat_BD: torch.Tensor) -> torch.Tensor:
    """mean_b sum_d (x - x_hat)^2."""
    return (x_BD - x_hat_BD).square().sum(1).mean()


def with_squared_error(
    metrics: dict[str, torch.Tensor], target_BD: torch.Tensor, x_hat_BD: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The metrics and `squared_error`, that of x_hat itself: the loss's reconstruction term may
    have more parts or another weight."""
    return metrics | {"squared_error": squared_error(target_BD, x_hat_BD.detach())}


def loss_terms(
    weighted: dict[str, tuple[torch.Tensor, float]],
    fired_F: torch.Tensor,
    metrics: dict[str, torch.Tensor],
) -> LossTerms:
    """The loss that is the weighted sum of its terms, name -> (term, weight)."""
    terms = {name: term for name, (term, _) in weighted.items()}
    weights = {name: weight for name, (_, weight) in weighted.items()}
    values = [weights[name] * term for name, term in terms.items()]
    return LossTerms(sum(values[1:], values[0]), terms, weights, fired_F, metrics)
