"""`vae`: the variational autoencoder on a dense body (Kingma and Welling 2014, arXiv 1312.6114),
with beta (Higgins et al. 2017).

q(z|x) = N(mean(x), diag sigma(x)^2), z = mean + sigma * N(0, I) in training, the mean as the code
at inference. The loss, a mean over rows, is

    -log p(x|z) + beta * KL(q(z|x) || N(0, I))
    KL = 1/2 sum_j (sigma_j^2 + mean_j^2 - log sigma_j^2 - 1)

The likelihood follows `output`: Bernoulli, or a Gaussian around x_hat (linear or sigmoid) with one
learned variance for all values (Rybkin et al. 2021, arXiv 2006.13202): a fixed variance would be a
second beta in disguise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import nn

from saekit.errors import UsageError, opt
from saekit.models import outputs, penalties
from saekit.models.base import as_rows
from saekit.models.dense import Dense, DenseConfig
from saekit.models.noise import step_generator
from saekit.options import Doc
from saekit.types import Output, Step

POSTERIOR = 2  # stream of random numbers within a step
# Bounds of log sigma^2, within which exp is finite in fp32 and the gradient does not change.
LOG_VARIANCE = (-12.0, 12.0)


@dataclass(frozen=True)
class VAEConfig(DenseConfig):
    without: ClassVar[tuple[str, ...]] = (
        "sparsity",
        "coef",
        "target_rate",
        "contractive",
        "pretrain",
        "pretrain_share",
    )
    hidden: tuple[int, ...] = (512, 256)
    output: Annotated[
        Literal["linear", "sigmoid", "bernoulli"],
        Doc("Output activation function and likelihood: Gaussian, Gaussian, Bernoulli."),
    ] = "linear"
    beta: Annotated[float, Doc("Weight of the KL divergence from N(0, I).")] = 1.0
    likelihood_weight: Annotated[float, Doc("Weight of the reconstruction's likelihood.")] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for option, value in (("beta", self.beta), ("likelihood_weight", self.likelihood_weight)):
            if value < 0:
                raise UsageError(f"{opt(option, value)} must not be negative")
        self.refuse_shaping("vae", "whose code is drawn from a Gaussian")


class VAE(Dense):
    generates: ClassVar[bool] = True

    def __init__(self, config: VAEConfig) -> None:
        super().__init__(config)
        width = (self.d_in, *self.hidden)[-1]
        self.W_spread = nn.Parameter(torch.zeros(self.latents, width))
        self.b_spread = nn.Parameter(torch.zeros(self.latents))
        self.reconstruction_weight = config.likelihood_weight
        # log variance of x around x_hat
        self.log_noise = nn.Parameter(torch.zeros(())) if config.output != "bernoulli" else None

    def initialise_from(self, sample: torch.Tensor, generator: torch.Generator) -> None:
        """sigma starts at 1, as in the prior; the noise starts at the variance of the data around
        their mean: a single number moves by the learning rate per step, and would not get there in
        a short run."""
        super().initialise_from(sample, generator)
        variance = (
            sample.var(0, correction=0).mean() if sample.shape[-1] == self.d_out else torch.ones(())
        )
        with torch.no_grad():
            self.W_spread.zero_()
            if self.log_noise is not None and variance > 0:
                self.log_noise.copy_(variance.log())

    def posterior(self, x_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(mean, log sigma^2), both (..., F), of raw rows (..., D)."""
        mean, log_variance = self._posterior(self.normalized(x_BD))
        return mean.view(*x_BD.shape[:-1], self.latents), log_variance.view(
            *x_BD.shape[:-1], self.latents
        )

    def _posterior(self, x_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pre = self.pre_activations(x_BD)
        below = self.activate(pre[-2]) if len(pre) > 1 else x_BD
        return pre[-1], torch.addmm(self.b_spread, below, self.W_spread.T).clamp(*LOG_VARIANCE)

    def noisy_code(
        self, noisy: torch.Tensor, clean: torch.Tensor, step: Step
    ) -> tuple[torch.Tensor, dict, dict]:
        mean, log_variance = self._posterior(noisy)
        z = _draw(
            mean, log_variance, step_generator(step.seed, step.number, mean.device, POSTERIOR)
        )
        return z, {"kl": penalties.gaussian_kl(mean, log_variance).mean()}, {"kl": self.config.beta}

    def reconstruction(
        self, a: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """-log p(x|z), mean over rows, in nats."""
        return -self._log_likelihood(a, target).mean()

    def _log_likelihood(self, a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        loss_B = outputs.pointwise_loss(self.config.output, a, x).sum(1)
        if self.log_noise is None:
            return -loss_B
        return -0.5 * (
            loss_B / self.log_noise.exp() + x.shape[1] * (math.log(2 * math.pi) + self.log_noise)
        )

    @torch.no_grad()
    def elbo(self, x_BD: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """(...,) in nats: log p(x|z) - KL of raw rows (..., D), with one z drawn per row. A
        Gaussian density is that of raw values."""
        rows_BD = as_rows(x_BD, self.d_in, self.input_mean)
        mean, log_variance = self.posterior(rows_BD)
        a = self.from_code(_draw(mean, log_variance, generator))
        target = (rows_BD - self.output_mean) * self.output_scale
        bound_B = self._log_likelihood(a, target)
        if self.log_noise is not None:
            bound_B = bound_B + self.d_out * self.output_scale.log()
        bound_B = bound_B - penalties.gaussian_kl(mean, log_variance)
        return bound_B.view(x_BD.shape[:-1])

    def forward(self, x: torch.Tensor) -> Output:
        output = super().forward(x)
        # a bound on p(x), which does not apply with another store as the target
        if not self.config.d_out:
            output.extras["elbo"] = self.elbo(x, step_generator(0, 0, x.device, POSTERIOR))
        return output

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator, label: object = None) -> torch.Tensor:
        """(count, D): decoded draws from the prior, in raw units. Raises UsageError for a label."""
        self.no_label(label)
        return self.decode(
            torch.randn(count, self.latents, generator=generator).to(self.input_mean.device)
        )


def _draw(
    mean: torch.Tensor, log_variance: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
    return mean + (0.5 * log_variance).exp() * noise
