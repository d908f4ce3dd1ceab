"""The orders of the latents that an input activates. Where only the size of an activation counts,
latents that are large everywhere come first in every text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from saekit.inspection.score import Scores
from saekit.inspection.search import trust_in_maximum

RELATIVE, SCORE = "relative", "score"


@dataclass(frozen=True)
class Orders:
    """What latents can be ordered by, beside the size of their activations: its share of the
    latent's largest activation (maxima (F,)), and the score. A share counts less where the
    latent is active in few rows of the store (active (F,)), as in `saekit features`."""

    maxima: torch.Tensor | None
    scores: Scores | None = None
    active: np.ndarray | None = None

    @property
    def names(self) -> tuple[str, ...]:
        has_scores = self.scores is not None and not bool(self.scores.score.isnan().all())
        return (RELATIVE,) * (self.maxima is not None) + (SCORE,) * has_scores

    def figure(self, act_F: np.ndarray, by: str) -> np.ndarray:
        """(F,): what `by` goes by, at most 1; 0 for a latent that never fired in the store."""
        if by == SCORE:
            assert self.scores is not None
            return self.scores.score.nan_to_num(0.0).numpy()
        assert self.maxima is not None
        max_F = self.maxima.numpy()
        share_F = np.divide(np.abs(act_F), max_F, out=np.zeros(len(act_F)), where=max_F > 0)
        return np.minimum(share_F, 1)

    def ordered(self, latents: np.ndarray, act_F: np.ndarray, by: str) -> np.ndarray:
        """These latents (n,), largest figure first, the earlier of equal ones first."""
        figure = self.figure(act_F, by)[latents]
        if by == RELATIVE and self.active is not None:
            figure = figure * trust_in_maximum(self.active[latents])
        return latents[np.argsort(-figure, kind="stable")]
