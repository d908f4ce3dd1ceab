"""`aae`: an autoencoder whose codes a discriminator compares with draws from a prior (Makhzani et
al. 2015, arXiv 1511.05644), which does the work of a VAE's KL and needs no formula of a density.

    phase 1  min_d    -E_{z ~ N(0, I)} log d(z) - E_x log(1 - d(f(x)))
    phase 2  min_f,g  E_x loss(x~, g(f(x))) - w E_x log d(f(x))          f encodes, g decodes

The paper's reconstruction and regularization of the encoder are one step here, with
w = `adversarial_weight`: at d's optimum log(1 - d) - log d is log q(z) - log p(z), so the second
term is in nats, as the likelihood of `output` bernoulli is. The code is deterministic (its section
2.1), and `sample` decodes draws from the prior.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from saekit.errors import UsageError, opt
from saekit.models.adversarial import bodies
from saekit.models.adversarial.players import (
    CODES,
    NOISE,
    NOISE_AGAIN,
    NOISE_LAST,
    OpponentConfig,
    TwoPlayers,
    deceived,
    opponent_terms,
)
from saekit.models.classic import Classic
from saekit.models.dense import Dense, DenseConfig
from saekit.models.noise import step_generator
from saekit.options import Doc
from saekit.types import ActivationBatch, LossTerms, Step


@dataclass(frozen=True)
class AAEConfig(OpponentConfig, DenseConfig):
    without: ClassVar[tuple[str, ...]] = (
        *("sparsity", "coef", "target_rate", "contractive"),
        *("pretrain", "pretrain_share"),
    )
    latents: int = 30
    hidden: tuple[int, ...] = (512, 256)
    discriminator_hidden: Annotated[
        tuple[int, ...] | None,
        Doc("Widths of the discriminator's layers, from the code up (default: 256)."),
    ] = None
    adversarial_weight: Annotated[
        float, Doc("Weight of the code's distance from the prior in the encoder's loss.")
    ] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_opponent()
        if not 0 <= self.adversarial_weight < float("inf"):
            raise UsageError(
                f"{opt('adversarial_weight', self.adversarial_weight)} must not be negative"
            )
        if self.discriminator_hidden is not None:
            widths = tuple(self.discriminator_hidden)
            object.__setattr__(self, "discriminator_hidden", widths)
            if any(width < 1 for width in widths):
                raise UsageError(f"{opt('discriminator_hidden', widths)}: at least 1 each")
        self.refuse_shaping("aae", "whose code follows a prior")

    @property
    def judging(self) -> tuple[int, ...]:
        """Widths of the discriminator's hidden layers."""
        return (256,) if self.discriminator_hidden is None else self.discriminator_hidden


class AAE(TwoPlayers, Dense):  # pyright: ignore[reportIncompatibleVariableOverride]
    lr: ClassVar[float] = 1e-3
    decay_share: ClassVar[float] = 0.5

    def __init__(self, config: AAEConfig) -> None:
        super().__init__(config)
        self.strategy = TwoPlayers.strategy
        self.discriminator = bodies.DenseDiscriminator(
            self.latents, config.judging, spectral=config.spectral_norm
        )

    def initialise_from(self, sample: torch.Tensor, generator: torch.Generator) -> None:
        super().initialise_from(sample, generator)
        bodies.start(self.discriminator, generator)

    def numbers_per_row(self) -> int:
        return super().numbers_per_row() + 2 * sum(self.config.judging)

    def discriminator_loss(self, batch: ActivationBatch, step: Step) -> LossTerms:
        with torch.no_grad():
            z = self.to_code(self.noise(batch.x, self._generator(batch.x, step, 0)))
        prior = self._generator(z, step, CODES)
        drawn = torch.randn(z.shape, generator=prior, device=z.device)
        real_B = self.discriminator(self.seen(drawn, step, NOISE))
        coded_B = self.discriminator(self.seen(z, step, NOISE_AGAIN))
        return opponent_terms(real_B, coded_B, self.config.label_smoothing)

    def generator_loss(self, batch: ActivationBatch, step: Step) -> LossTerms:
        return Classic.loss(self, batch, step)

    def noisy_code(
        self, noisy: torch.Tensor, clean: torch.Tensor, step: Step
    ) -> tuple[torch.Tensor, dict, dict]:
        z = self.to_code(noisy)
        term = deceived(self.discriminator(self.seen(z, step, NOISE_LAST)))
        return z, {"generator": term}, {"generator": self.config.adversarial_weight}

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator, label: object = None) -> torch.Tensor:
        """(count, D): decoded draws from the prior, in raw units. Raises UsageError for a label."""
        self.no_label(label)
        z_BF = torch.randn(count, self.latents, generator=generator)
        return self.decode(z_BF.to(self.input_mean.device))

    def _generator(self, x: torch.Tensor, step: Step, stream: int) -> torch.Generator:
        return step_generator(step.seed, step.number, x.device, stream)
