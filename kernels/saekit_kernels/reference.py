"""The specification: the same operations, dense, by autograd, in the precision of the inputs.
Tests compare with this."""

from __future__ import annotations

import torch


def encode_topk_dense(
    x_BD: torch.Tensor, W_enc_FD: torch.Tensor, b_enc_F: torch.Tensor, k: int, stable: bool = True
) -> torch.Tensor:
    """z (B,F): the k largest pre-activations of each row (ties to the smallest column) through a
    ReLU, zeros elsewhere.

    Without `stable`, ties are broken as torch.topk does, which takes a fraction of the time.
    """
    pre = x_BD @ W_enc_FD.T + b_enc_F
    if not stable:
        vals, idx = pre.relu().topk(k, dim=1, sorted=False)
        return torch.zeros_like(pre).scatter(1, idx, vals)
    idx = pre.detach().sort(dim=1, descending=True, stable=True).indices[:, :k]
    return torch.zeros_like(pre).scatter(1, idx, pre.gather(1, idx).relu())


def topk_reconstruction_dense(
    x_BD, W_enc_FD, b_enc_F, W_dec_FD, b_dec_D, k: int, stable: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, z): mean over rows of the sum over D of (x_hat - x)^2 with x_hat = z W_dec + b_dec."""
    z_BF = encode_topk_dense(x_BD, W_enc_FD, b_enc_F, k, stable)
    x_hat = z_BF @ W_dec_FD + b_dec_D
    return (x_hat - x_BD).square().sum(1).mean(), z_BF


def relu_reconstruction_dense(
    x_BD, W_enc_FD, b_enc_F, W_dec_FD, b_dec_D
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(reconstruction, l1, z) with z = ReLU(x W_enc^T + b_enc) and l1 = mean_b sum_j z_bj ||w_j||,
    w_j the rows of W_dec."""
    z_BF = (x_BD @ W_enc_FD.T + b_enc_F).relu()
    x_hat = z_BF @ W_dec_FD + b_dec_D
    return (x_hat - x_BD).square().sum(1).mean(), (z_BF.mean(0) * W_dec_FD.norm(dim=1)).sum(), z_BF


def sigmoid_reconstruction_dense(x_BD, W_enc_FD, b_enc_F, W_dec_FD, b_dec_D, rate: float):
    """(reconstruction, kl, f) with f = sigmoid(x W_enc^T + b_enc) and kl = sum_j KL(rate || mean_b
    f_bj); means stay 1e-6 from 0 and 1."""
    f_BF = (x_BD @ W_enc_FD.T + b_enc_F).sigmoid()
    x_hat = f_BF @ W_dec_FD + b_dec_D
    rho = f_BF.mean(0).clamp(1e-6, 1 - 1e-6)
    kl = (rate * (rate / rho).log() + (1 - rate) * ((1 - rate) / (1 - rho)).log()).sum()
    return (x_hat - x_BD).square().sum(1).mean(), kl, f_BF
