"""Penalties besides the reconstruction: sparsity of the code (the formulas of the SAE) and the
contractive penalty.

z (B,F) is the code, ||w_j|| the norm of the outgoing weights of latent j, J the Jacobian of the
encoder at a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from saekit_kernels.dense import kl_of_means, l1_of_mass

# Activation function -> its derivative at a, computed from its value h where that is enough.
SLOPES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "linear": lambda a, h: torch.ones_like(a),
    "relu": lambda a, h: (a > 0).to(a.dtype),
    "sigmoid": lambda a, h: h * (1 - h),
    "tanh": lambda a, h: 1 - h.square(),
    "silu": lambda a, h: a.sigmoid() * (1 + a - h),
    "gelu": lambda a, h: (
        0.5 * (1 + torch.erf(a / 2**0.5)) + a * torch.exp(-0.5 * a.square()) / (2 * torch.pi) ** 0.5
    ),
}


def l1(z_BF: torch.Tensor, norm_F: torch.Tensor) -> torch.Tensor:
    """mean_b sum_j |z_bj| ||w_j||, as in the SAE: weighted so that it cannot be lowered by shifting
    scale into the decoder."""
    return l1_of_mass(z_BF.abs().sum(0), norm_F, len(z_BF))


def kl(f_BF: torch.Tensor, rate: float) -> torch.Tensor:
    """sum_j KL(rate || mean_b f_bj) of codes in [0, 1], as in the SAE (Ng, "Sparse autoencoder",
    CS294A notes)."""
    return kl_of_means(f_BF.mean(0), rate)[0]


def gaussian_kl(mean_BF: torch.Tensor, log_variance_BF: torch.Tensor) -> torch.Tensor:
    """(B,): KL(N(mean, diag sigma^2) || N(0, I)) = 1/2 sum_j (sigma_j^2 + mean_j^2 - log sigma_j^2
    - 1) (Kingma and Welling 2014, arXiv 1312.6114, appendix B)."""
    return 0.5 * (log_variance_BF.exp() + mean_BF.square() - log_variance_BF - 1).sum(1)


def contractive(slopes: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """mean_b ||J_b||_F^2 of an encoder h_l = s(W_l h_{l-1} + b_l), exact (Rifai et al. 2011,
    "Contractive auto-encoders", eq. 2).

    `slopes` are s'(a_l) (B, out_l), `weights` W_l (out_l, in_l), from the input up. One layer:
    sum_j s'_j^2 ||w_j||^2, without a Jacobian. More layers: the F rows of the Jacobian are
    propagated from the code back to the second layer, B x F x width numbers; of the first layer,
    the widest, only W_1 W_1^T is needed.
    """
    first = weights[0]
    if len(weights) == 1:
        return (slopes[0].square() @ first.square().sum(1)).mean()
    J = slopes[-1][:, :, None] * weights[-1]
    for slope, W in zip(reversed(slopes[1:-1]), reversed(weights[1:-1])):
        J = (J * slope[:, None, :]) @ W
    J = J * slopes[0][:, None, :]
    return ((J @ (first @ first.T)) * J).sum((1, 2)).mean()
