"""Batches of bare rows for tests of models, and what must hold of every loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saekit.types import ActivationBatch, LossTerms


def batch_of(x: torch.Tensor, **fields: Any) -> ActivationBatch:
    """Rows, sequences or grids, each example a document of its own."""
    number = torch.arange(len(x))
    return ActivationBatch(x, number, number, number.int(), **fields)


def batch_with_previous(x: torch.Tensor, **fields: Any) -> ActivationBatch:
    """All rows are one example: each has the row before it, except the first."""
    has_previous = torch.arange(len(x)) > 0
    return batch_of(x, previous=x.roll(1, 0), has_previous=has_previous, **fields)


def expect_gradients(model: torch.nn.Module, terms: LossTerms) -> None:
    """The total is the weighted sum of the terms, and its gradient reaches every parameter."""
    terms.total.backward()
    weighted = sum(terms.weights[name] * term.item() for name, term in terms.terms.items())
    assert terms.total.item() == pytest.approx(weighted)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
