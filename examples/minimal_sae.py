"""A TopK sparse autoencoder in plain torch: what saekit's default trains, without kernels, revival
of dead latents, resume or checkpoints.

    python examples/minimal_sae.py # made-up rows: prints the loss and the share of variance that is
    not explained

The formulas are those of docs/variants.md (topk), after Gao et al. 2024, arXiv 2406.04093. Shapes:
B rows, D their width, F latents.
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
        """(B,F), at most k entries of a row above 0."""
        pre_BF = x_BD @ self.W_enc.T + self.b_enc
        top = pre_BF.topk(self.k, dim=1)
        return torch.zeros_like(pre_BF).scatter(1, top.indices, top.values.relu())

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        return self.encode(x_BD) @ self.W_dec + self.b_dec

    def loss(self, x_BD: torch.Tensor) -> torch.Tensor:
        """The squared error of a row, summed over D; mean over rows."""
        return (self(x_BD) - x_BD).square().sum(1).mean()

    @torch.no_grad()
    def keep_unit_rows(self) -> None:
        self.W_dec /= self.W_dec.norm(dim=1, keepdim=True)

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Drop the part of the decoder's gradient along each row: it would only change the norm,
        which is then reset."""
        self.W_dec.grad -= (self.W_dec.grad * self.W_dec).sum(1, keepdim=True) * self.W_dec


def normalize(x_ND: torch.Tensor) -> torch.Tensor:
    """Centered, and scaled so that the mean squared norm of a row is D."""
    x_ND = x_ND - x_ND.mean(0)
    return x_ND * (x_ND.shape[1] / x_ND.square().sum(1).mean()).sqrt()


def train(
    sae: MinimalSAE, x_ND: torch.Tensor, steps: int, batch: int, lr: float = 3e-3
) -> list[float]:
    """The loss of every step. Rows are drawn by torch's own random numbers."""
    optimizer, losses = torch.optim.Adam(sae.parameters(), lr=lr), []
    for step in range(steps):
        warmup, decay = max(round(0.05 * steps), 1), max(round(0.2 * steps), 1)
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / warmup, (steps - step) / decay)
        loss = sae.loss(x_ND[torch.randint(len(x_ND), (batch,))])
        optimizer.zero_grad()
        loss.backward()
        sae.project_gradient()
        optimizer.step()
        sae.keep_unit_rows()
        losses.append(loss.item())
    return losses


def made_up_rows(count: int = 8192, width: int = 32) -> torch.Tensor:
    """Sparse sums of twice as many directions as dimensions: an SAE can find them, PCA cannot."""
    directions = nn.functional.normalize(torch.randn(2 * width, width), dim=1)
    return (torch.rand(count, 2 * width) * (torch.rand(count, 2 * width) < 0.05)) @ directions


if __name__ == "__main__":
    torch.manual_seed(0)
    x = normalize(made_up_rows())
    sae = MinimalSAE(d_in=x.shape[1], latents=128, k=4)
    losses = train(sae, x, steps=1000, batch=256)
    print(
        f"loss {losses[0]:.2f} -> {losses[-1]:.2f}, fvu"
        f" {sae.loss(x).item() / x.square().sum(1).mean().item():.3f}"
    )
