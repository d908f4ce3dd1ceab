"""A TopK sparse autoencoder in plain torch: the same loss as saekit's default model, without fast
kernels, an auxiliary loss for dead latents, resume or checkpoints.

    python examples/minimal_sae.py

It trains on synthetic rows and prints the loss and fvu, the fraction of variance unexplained. The
formulas are those of docs/variants.md (topk), after Gao et al. 2024, arXiv 2406.04093. Shapes: B
rows of a batch, N of the data, D their width, F latents.
"""

from __future__ import annotations

import torch
from torch import nn


class MinimalSAE(nn.Module):
    """z = the k largest ReLU(x W_enc^T + b_enc) of each row; x_hat = z W_dec + b_dec."""

    def __init__(self, d_in: int, latents: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.W_dec = nn.Parameter(nn.functional.normalize(torch.randn(latents, d_in), dim=1))
        self.W_enc = nn.Parameter(self.W_dec.detach().clone())
        self.b_enc = nn.Parameter(torch.zeros(latents))
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    def encode(self, x_BD: torch.Tensor) -> torch.Tensor:
        """The code (B,F), with at most k entries per row above 0."""
        pre_BF = x_BD @ self.W_enc.T + self.b_enc
        top = pre_BF.topk(self.k, dim=1)
        return torch.zeros_like(pre_BF).scatter(1, top.indices, top.values.relu())

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        return self.encode(x_BD) @ self.W_dec + self.b_dec

    def loss(self, x_BD: torch.Tensor) -> torch.Tensor:
        """The mean over rows of the squared error, summed over D."""
        return (self(x_BD) - x_BD).square().sum(1).mean()

    @torch.no_grad()
    def keep_unit_rows(self) -> None:
        """Scale every decoder row to norm 1."""
        self.W_dec /= self.W_dec.norm(dim=1, keepdim=True)

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Drop the part of the decoder's gradient along each row: it would only change the norm,
        which is then reset."""
        assert self.W_dec.grad is not None, "backward first"
        self.W_dec.grad -= (self.W_dec.grad * self.W_dec).sum(1, keepdim=True) * self.W_dec


def normalize(x_ND: torch.Tensor) -> torch.Tensor:
    """Centered, and scaled to a mean squared norm of D."""
    x_ND = x_ND - x_ND.mean(0)
    return x_ND * (x_ND.shape[1] / x_ND.square().sum(1).mean()).sqrt()


def train(
    sae: MinimalSAE, x_ND: torch.Tensor, steps: int, batch: int, lr: float = 3e-3
) -> list[float]:
    """The loss of every step. Batches are drawn by torch's global random generator."""
    optimizer = torch.optim.Adam(sae.parameters(), lr=lr)
    warmup, decay = max(round(0.05 * steps), 1), max(round(0.2 * steps), 1)
    losses = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / warmup, (steps - step) / decay)
        loss = sae.loss(x_ND[torch.randint(len(x_ND), (batch,))])
        optimizer.zero_grad()
        loss.backward()
        sae.project_gradient()
        optimizer.step()
        sae.keep_unit_rows()
        losses.append(loss.item())
    return losses


def synthetic_rows(count: int = 8192, width: int = 32) -> torch.Tensor:
    """Sparse sums of twice as many directions as dimensions: an SAE can find them, PCA cannot."""
    directions = nn.functional.normalize(torch.randn(2 * width, width), dim=1)
    return (torch.rand(count, 2 * width) * (torch.rand(count, 2 * width) < 0.05)) @ directions


if __name__ == "__main__":
    torch.manual_seed(0)
    x = normalize(synthetic_rows())
    sae = MinimalSAE(d_in=x.shape[1], latents=128, k=4)
    losses = train(sae, x, steps=1000, batch=256)
    fvu = sae.loss(x).item() / x.square().sum(1).mean().item()
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}, fvu {fvu:.3f}")
