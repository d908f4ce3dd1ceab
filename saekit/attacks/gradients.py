"""Gradients with respect to an input: the one place that computes them.

Shapes: B images, C channels, h w pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from saekit.errors import DataError, NumericsError

Score = Callable[[torch.Tensor], torch.Tensor]
"""x (B,C,h,w) -> (B,): what is to be raised, of each image by itself."""


def input_gradient(score: Score, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(score (B,), its gradient in the shape of x): row b of the gradient is that of score b, since
    images do not depend on each other.

    Parameters
        score: differentiable in x. A network in training mode with batch norm would mix the images.
        x: (B, ...), any float dtype; not changed.

    Raises DataError for a score that does not depend on x, NumericsError for NaN or inf in it or
    its gradient.
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x.detach().clone().requires_grad_(True)
        score_B = score(leaf)
        assert score_B.shape == x.shape[:1], "one score per image"
        if not score_B.requires_grad:
            raise DataError(
                "the score does not depend on the input, so there is no gradient",
                "check that no part of the model detaches it",
            )
        (gradient,) = torch.autograd.grad(score_B.sum(), leaf)
    if not (torch.isfinite(score_B).all() and torch.isfinite(gradient).all()):
        raise NumericsError(
            "the score of an image or its gradient is NaN or infinite", "run the model in float32"
        )
    return score_B.detach(), gradient
