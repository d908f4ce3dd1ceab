"""Measures of denoising: PSNR, and the score of the data's density that a denoiser estimates.

For x = clean + sigma * noise the posterior mean of clean is x + sigma^2 * grad log p_sigma(x),
p_sigma being the density of x (Tweedie; Vincent 2011, Alain and Bengio 2014, arXiv 1211.4246). So a
trained denoiser's step, (g(f(x)) - x) / sigma^2, estimates that gradient. A mixture of Gaussians
has both sides in closed form, which makes it the test case. Shapes: B rows, D width, M components.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

Reconstruct = Callable[[torch.Tensor], torch.Tensor]
"""Rows (B,D) -> their reconstruction (B,D)."""


def psnr(clean: torch.Tensor, noisy: torch.Tensor, peak: float = 1.0) -> float:
    """10 log10(peak^2 / MSE) in dB, squared errors of all values pooled; inf where the two are
    equal."""
    assert clean.shape == noisy.shape and clean.numel() > 0, (clean.shape, noisy.shape)
    mse = (clean.double() - noisy.double()).square().mean().item()
    return 10 * math.log10(peak**2 / mse) if mse > 0 else math.inf


def score_estimate(reconstruct: Reconstruct, x_BD: torch.Tensor, sigma: float) -> torch.Tensor:
    """(B,D) estimate of grad log p_sigma(x) by a denoiser trained with Gaussian noise of std sigma
    (1211.4246, theorem 1)."""
    return (reconstruct(x_BD) - x_BD) / sigma**2


@torch.no_grad()
def vector_field(
    reconstruct: Reconstruct, low: tuple[float, float], high: tuple[float, float], count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(points, vectors), each (count^2, 2): g(f(x)) - x on an even grid from corner `low` to corner
    `high`, the first axis fastest."""
    axes = [torch.linspace(low[i], high[i], count) for i in (0, 1)]
    points = torch.cartesian_prod(axes[1], axes[0]).flip(1)
    return points, reconstruct(points) - points


@dataclass(frozen=True)
class GaussianMixture:
    """sum_m weights_m N(means_m, std^2 I): isotropic, one width for all components.

    With std 0 and the data as means it is the empirical distribution, and `denoise` the best
    denoiser a training set allows.
    """

    means_MD: torch.Tensor
    std: float
    weights_M: torch.Tensor
    """Positive; they need not sum to 1."""

    def __post_init__(self) -> None:
        assert (
            self.weights_M.shape == self.means_MD.shape[:1]
            and (self.weights_M > 0).all()
            and self.std >= 0
        )

    def sample(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """(n, D) draws."""
        component = torch.multinomial(self.weights_M, n, replacement=True, generator=generator)
        noise = torch.randn(
            n, self.means_MD.shape[1], generator=generator, dtype=self.means_MD.dtype
        )
        return self.means_MD[component] + self.std * noise

    def log_density(self, x_BD: torch.Tensor, sigma: float = 0.0) -> torch.Tensor:
        """(B,) log density in nats of a draw with Gaussian noise of std sigma added."""
        variance, D = self._variance(sigma), x_BD.shape[1]
        log_weight = self.weights_M.log() - self.weights_M.sum().log()
        return torch.logsumexp(
            log_weight - self._square_distance(x_BD) / (2 * variance), 1
        ) - D / 2 * math.log(2 * math.pi * variance)

    def score(self, x_BD: torch.Tensor, sigma: float = 0.0) -> torch.Tensor:
        """(B,D): the exact gradient of log_density in x."""
        return (self._responsibility(x_BD, sigma) @ self.means_MD - x_BD) / self._variance(sigma)

    def denoise(self, x_BD: torch.Tensor, sigma: float) -> torch.Tensor:
        """(B,D): E[clean | x], the reconstruction of least mean squared error. Each component
        shrinks x towards its mean by std^2 / (std^2 + sigma^2); their posterior probabilities weigh
        the results."""
        kept = self.std**2 / self._variance(sigma)
        per_component_BMD = self.means_MD + kept * (x_BD[:, None] - self.means_MD)
        return (self._responsibility(x_BD, sigma)[:, :, None] * per_component_BMD).sum(1)

    def _variance(self, sigma: float) -> float:
        assert self.std > 0 or sigma > 0, "a mixture of points has no density without noise"
        return self.std**2 + sigma**2

    def _square_distance(self, x_BD: torch.Tensor) -> torch.Tensor:
        # not cdist: for many rows it expands the square, which cancels where x is close to a mean
        return (x_BD[:, None] - self.means_MD).square().sum(2)

    def _responsibility(self, x_BD: torch.Tensor, sigma: float) -> torch.Tensor:
        """(B,M): the posterior probability of each component."""
        return torch.softmax(
            self.weights_M.log() - self._square_distance(x_BD) / (2 * self._variance(sigma)), 1
        )
