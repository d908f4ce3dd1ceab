"""An SAE in the units of training, x~ = (x - mean) * scale, and in those of raw rows: `folded` and
`unfolded` undo each other.

A checkpoint acts on raw rows: mean and scale have moved into its weights. Fine-tuning brings them
back out, since learning rates are chosen for rows with E||x~||^2 = D.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from saekit.models.sae.module import SAE

Scale = torch.Tensor | float


@torch.no_grad()
def folded(
    sae: SAE, mean_D: torch.Tensor, scale: Scale, target: tuple[torch.Tensor, Scale] | None = None
) -> dict[str, torch.Tensor]:
    """The weights that act on raw x as those of `sae` act on (x - mean) * scale (docs/design.md),
    and give raw targets.

    Homogeneous codes are expressed in the target's raw units, so that decoder rows keep their norm;
    sigmoid codes keep their range, and the codes of several hooks, each with a scale of its own,
    stay in normalized units: the scales move into the weights.
    """
    mean_out, scale_out = (mean_D, scale) if target is None else target
    own = sae.effective()
    uniform = not torch.is_tensor(scale) and not torch.is_tensor(scale_out)
    unit = scale_out if sae.homogeneous and uniform else 1.0  # of the code
    W_enc = own["W_enc"] * (scale / unit)
    tensors = {
        "W_enc": W_enc,
        "b_enc": own["b_enc"] / unit - W_enc @ mean_D,
        "W_dec": own["W_dec"] / (scale_out / unit),
        "b_dec": own["b_dec"] / scale_out + mean_out,
    }
    if "threshold" in own:
        tensors["threshold"] = own["threshold"] / unit
    if sae.W_skip is not None:
        tensors["W_skip"] = sae.W_skip * scale / torch.as_tensor(scale_out).reshape(-1, 1)
        tensors["b_dec"] = tensors["b_dec"] - tensors["W_skip"] @ mean_D
    return tensors


@torch.no_grad()
def unfolded(sae: SAE, mean_D: torch.Tensor, scale: float) -> dict[str, torch.Tensor]:
    """The weights that act on (x - mean) * scale as those of `sae` act on raw x. `sae` is folded,
    and reconstructs its own input."""
    unit = scale if sae.homogeneous else 1.0  # of the code
    W_enc, mean_D = sae.W_enc.detach(), mean_D.to(sae.W_enc.device)
    tensors = {
        "W_enc": W_enc * (unit / scale),
        "b_enc": (sae.b_enc.detach() + W_enc @ mean_D) * unit,
        "W_dec": sae.W_dec.detach() * (scale / unit),
        "b_dec": (sae.b_dec.detach() - mean_D) * scale,
    }
    return tensors | ({"threshold": sae.threshold * unit} if sae.thresholded else {})
