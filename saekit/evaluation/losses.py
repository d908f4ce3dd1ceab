"""Single predictions of a model, and how they change: cross-entropy, KL, agreement.

A language model predicts the next token at every position, an image classifier makes one prediction
per image. Both have logits (B,T,V) here, with T = 1 for images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from saekit.harvesting.inputs import ContextBatch, PositionKind
from saekit.types import Scope

CHUNK = 2**22  # logits whose probabilities exist at once: 32 MB in fp64, several times


@dataclass(frozen=True)
class Predictions:
    """M predictions of a batch, on the CPU."""

    example_M: torch.Tensor
    """Which context or image of the batch."""
    position_M: torch.Tensor
    target_M: torch.Tensor
    """The right token or class."""


def next_tokens(batch: ContextBatch, scope: Scope) -> Predictions:
    """The predictions made at the positions of the scope that a token follows. Rows that a store
    dropped for their norm count too."""
    real_BT = batch.kind_BT != PositionKind.PADDING
    followed_BT = torch.zeros_like(real_BT)
    followed_BT[:, :-1] = real_BT[:, 1:]
    example_M, position_M = (batch.rows_for_scope(scope) & followed_BT).nonzero(as_tuple=True)
    return Predictions(example_M, position_M, batch.inputs["input_ids"][example_M, position_M + 1])


def classes(target_B: torch.Tensor) -> Predictions:
    """One prediction per image."""
    example_B = torch.arange(len(target_B))
    return Predictions(example_B, torch.zeros_like(example_B), target_B.cpu())


def logits_of(output: Any) -> torch.Tensor:
    """(B,T,V) of a model's output."""
    logits = output.logits
    return logits[:, None] if logits.ndim == 2 else logits


def changes(
    clean_BTV: torch.Tensor, other_BTV: torch.Tensor, predictions: Predictions
) -> torch.Tensor:
    """(3,M) fp64 on the CPU: cross-entropy of `other`, KL(clean || other), both in nats, and
    whether the first choice is the same (1 or 0)."""
    device, M = clean_BTV.device, len(predictions.target_M)
    results = torch.zeros(3, M, dtype=torch.float64)
    for part in torch.arange(M).split(max(CHUNK // clean_BTV.shape[2], 1)):
        at = predictions.example_M[part].to(device), predictions.position_M[part].to(device)
        # in fp32 the KL of nearly equal predictions is rounding, and may be negative
        log_p_MV, log_q_MV = (x[at].double().log_softmax(1) for x in (clean_BTV, other_BTV))
        target_M1 = predictions.target_M[part, None].to(device)
        p_MV = log_p_MV.exp()
        # a token that the model rules out has p = 0 and the logarithm -inf
        terms_MV = torch.where(p_MV > 0, p_MV * (log_p_MV - log_q_MV), 0.0)
        same_M = log_p_MV.argmax(1) == log_q_MV.argmax(1)
        values = -log_q_MV.gather(1, target_M1)[:, 0], terms_MV.sum(1), same_M
        results[:, part] = torch.stack([value.double() for value in values]).cpu()
    return results
