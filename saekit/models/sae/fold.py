"""An SAE in the units of training, x~ = (x - mean) * scale, and in raw units: `folded` and
`unfolded` undo each other.

A checkpoint acts on raw rows: mean and scale have moved into its weights. Fine-tuning takes them
out again (saekit.models.normalizer says why).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from saekit.models.normalizer import Normalizer

if TYPE_CHECKING:
    from saekit.models.sae.dictionary import Dictionary


@torch.no_grad()
def folded(
    sae: Dictionary, inputs: Normalizer, targets: Normalizer | None = None
) -> dict[str, torch.Tensor]:
    """The weights that act on raw x as those of `sae` act on normalized x, and reconstruct raw
    targets (`targets`: of another store; None: x itself).

    Homogeneous codes are expressed in the target's raw units, so that decoder rows keep their norm.
    Sigmoid codes keep their range, and the codes of several hooks, each with its own scale, stay in
    normalized units: there the scales move into the weights.
    """
    sae.need_trainable()
    mean_D, scale = inputs.mean_D, inputs.scale
    targets = inputs if targets is None else targets
    weights = sae.effective()
    # the unit of the code, in which W_enc, b_enc and thresholds are divided
    one_scale = not any(isinstance(s, torch.Tensor) for s in (scale, targets.scale))
    unit = targets.scale if sae.homogeneous and one_scale else 1.0
    # encoder and decoder
    W_enc = weights["W_enc"] * (scale / unit)
    tensors = {
        "W_enc": W_enc,
        "b_enc": weights["b_enc"] / unit - W_enc @ mean_D,
        "W_dec": weights["W_dec"] / (targets.scale / unit),
        "b_dec": targets.invert(weights["b_dec"]),
    }
    if "threshold" in weights:
        tensors["threshold"] = weights["threshold"] / unit
    # the skip from raw x to the raw target
    if sae.W_skip is not None:
        tensors["W_skip"] = sae.W_skip * scale / torch.as_tensor(targets.scale).reshape(-1, 1)
        tensors["b_dec"] = tensors["b_dec"] - tensors["W_skip"] @ mean_D
    return tensors


@torch.no_grad()
def unfolded(sae: Dictionary, inputs: Normalizer) -> dict[str, torch.Tensor]:
    """The weights that act on normalized x as those of `sae` act on raw x. `sae` is folded, and
    reconstructs its own input; `inputs` has one scale."""
    sae.need_trainable()
    scale = inputs.scale
    unit = scale if sae.homogeneous else 1.0  # of the code
    W_enc, mean_D = sae.W_enc.detach(), inputs.mean_D.to(sae.W_enc.device)
    tensors = {
        "W_enc": W_enc * (unit / scale),
        "b_enc": (sae.b_enc.detach() + W_enc @ mean_D) * unit,
        "W_dec": sae.W_dec.detach() * (scale / unit),
        "b_dec": (sae.b_dec.detach() - mean_D) * scale,
    }
    return tensors | ({"threshold": sae.threshold * unit} if sae.thresholded else {})
