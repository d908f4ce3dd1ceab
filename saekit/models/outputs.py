"""The activation function of a decoder's last layer, and the loss that belongs to it.

| `output` | x_hat | loss, mean over rows of the sum over D | data |
|---|---|---|---|
| linear | a | (x - x_hat)^2 | any |
| sigmoid | sigmoid(a) | (x - x_hat)^2 | in [0, 1] |
| bernoulli | sigmoid(a) | -x log x_hat - (1 - x) log(1 - x_hat) | in [0, 1] |

Cross-entropy is computed from a (logits), so that it is finite for every a.
"""

from __future__ import annotations

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from saekit.errors import DataError, opt


def activate(output: str, a: torch.Tensor) -> torch.Tensor:
    return a if output == "linear" else a.sigmoid()


def pointwise_loss(output: str, a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The loss of each value, in the shape of x."""
    if output == "bernoulli":
        return binary_cross_entropy_with_logits(a, x, reduction="none")
    return (activate(output, a) - x).square()


def summed_loss(
    output: str, a: torch.Tensor, x: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean over rows of the sum over D. Rows are the positions of x without its last dimension;
    `mask` (that shape) selects some of them."""
    loss = pointwise_loss(output, a, x)
    if mask is None:
        return loss.sum() / (x.numel() // x.shape[-1])
    return (loss * mask[..., None]).sum() / mask.sum()


def check_range(output: str, x: torch.Tensor) -> None:
    """Raise DataError for data outside the range of the output: a sigmoid has no values outside [0,
    1], and cross-entropy has no meaning there."""
    if output == "linear" or x.numel() == 0:
        return
    low, high = torch.stack(x.aminmax()).tolist()  # one transfer from the device
    if low < 0 or high > 1:
        raise DataError(
            f"{opt('output', output)} gives values in [0, 1], and the data range from {low:.4g} to"
            f" {high:.4g}",
            f"{opt('output', 'linear')}, or data scaled to [0, 1] with {opt('normalize', 'none')}",
        )
