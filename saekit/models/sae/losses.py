"""Sums that every variant's loss is made of."""

from __future__ import annotations

import torch

from saekit.types import LossTerms


def own_error(target_BD: torch.Tensor, x_hat_BD: torch.Tensor) -> dict[str, torch.Tensor]:
    """{"squared_error": ...}: that of the model's own x_hat, where the loss's reconstruction has
    more parts or another weight."""
    return {"squared_error": squared_error(target_BD, x_hat_BD.detach())}


def squared_error(x_BD: torch.Tensor, x_hat_BD: torch.Tensor) -> torch.Tensor:
    """mean_b sum_d (x - x_hat)^2."""
    return (x_BD - x_hat_BD).square().sum(1).mean()


def summed(
    weighted: dict[str, tuple[torch.Tensor, float]],
    fired_F: torch.Tensor,
    metrics: dict[str, torch.Tensor],
) -> LossTerms:
    terms = {name: term for name, (term, _) in weighted.items()}
    weights = {name: weight for name, (_, weight) in weighted.items()}
    return LossTerms(
        sum(weights[name] * term for name, term in terms.items()), terms, weights, fired_F, metrics
    )
