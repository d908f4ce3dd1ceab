"""Two players in one model: what the trainer knows of every adversarial model.

A discriminator d tells training rows from generated ones; everything else in the model is the
generator's. A step has two phases (Goodfellow et al. 2014, arXiv 1406.2661, algorithm 1):

    phase 1  only the discriminator descends   mean_b BCE(d(x), 1 - s) + mean_b BCE(d(G(z)), 0)
    phase 2  only the generator descends       mean_b BCE(d(G(z)), 1) = -mean_b log d(G(z))

Phase 2 is the non-saturating loss of its section 3, whose gradient does not vanish while the
discriminator is right. At equilibrium both cannot do better than a guess: 2 log 2 = 1.386 and
log 2 = 0.693 (with s = 0). s is one-sided label smoothing (Salimans et al. 2016, arXiv 1606.03498,
3.4). Instance noise is added to all that the discriminator sees, and falls linearly to 0 over the
run (Sonderby et al. 2017, arXiv 1610.04490, 2.2; Arjovsky and Bottou 2017, arXiv 1701.04862).

In each phase the other player stands still to the bit: its parameters have no gradient, and its
buffers (means of batch norm, vectors of spectral norm) do not move.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from saekit.errors import UsageError, opt
from saekit.models.adversarial.bodies import Conditional
from saekit.models.adversarial.layers import Moving
from saekit.models.autoencoder import Autoencoder, as_batch
from saekit.models.noise import step_generator
from saekit.options import Doc
from saekit.types import FIRST, ActivationBatch, LossTerms, Step, Strategy

Side = Literal["generator", "discriminator"]
# Streams of random numbers within a step: codes of the two phases, noise on rows.
CODES, CODES_AGAIN, NOISE, NOISE_AGAIN, NOISE_LAST = 3, 4, 5, 6, 7
DISCRIMINATOR = "discriminator."


@dataclass(frozen=True)
class OpponentConfig:
    """Options of every discriminator."""

    discriminator_rate: Annotated[
        float | None,
        Doc(
            "Learning rate of the discriminator, as a multiple of the generator's (default: 0.25"
            " for convolutions, else 1)."
        ),
    ] = None
    label_smoothing: Annotated[
        float, Doc("Training rows count as real with 1 minus this probability.")
    ] = 0.1
    instance_noise: Annotated[
        float,
        Doc(
            "Standard deviation of noise on all that the discriminator sees; falls to 0 over the"
            " run."
        ),
    ] = 0.0
    spectral_norm: Annotated[
        bool, Doc("Divide the discriminator's weights by their largest singular values.")
    ] = False

    def check_opponent(self) -> None:
        """Raise UsageError for values outside their bounds."""
        rate = self.discriminator_rate
        if rate is not None and not 0 < rate < float("inf"):
            raise UsageError(f"{opt('discriminator_rate', rate)} must be above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise UsageError(f"{opt('label_smoothing', self.label_smoothing)} must be in [0, 0.5)")
        if not 0 <= self.instance_noise < float("inf"):
            raise UsageError(f"{opt('instance_noise', self.instance_noise)} must not be negative")


class TwoPlayers(Autoencoder):
    """A subclass has the module `discriminator`, and gives the losses of both phases."""

    strategy: Strategy = "adversarial"
    generates: ClassVar[bool] = True
    lr: ClassVar[float] = 5e-4
    weight_decay: ClassVar[float] = 0.0
    beta1: ClassVar[float] = 0.5
    """Adam's decay of gradients; with 0.9 training oscillates (Radford et al. 2015, section 4)."""
    decay_share: ClassVar[float] = 0.2
    rate: ClassVar[float] = 1.0
    """Of the discriminator's learning rate to the generator's, unless the user says otherwise."""
    discriminator: Conditional

    @property
    def discriminator_rate(self) -> float:
        given = self.config.discriminator_rate
        return self.rate if given is None else given

    def discriminator_loss(self, batch: ActivationBatch, step: Step) -> LossTerms:
        """Phase 1."""
        raise NotImplementedError

    def generator_loss(self, batch: ActivationBatch, step: Step) -> LossTerms:
        """Phase 2."""
        raise NotImplementedError

    def loss(self, batch: ActivationBatch | torch.Tensor, step: Step | int = FIRST) -> LossTerms:
        """Both losses, for their values: a gradient step on the sum would train neither player."""
        batch, step = as_batch(batch), self.at(step)
        with self.moving(None):
            return both(self.discriminator_loss(batch, step), self.generator_loss(batch, step))

    def side(self, side: Side) -> list[tuple[str, nn.Parameter]]:
        """The named parameters of one player."""
        return [
            (name, parameter)
            for name, parameter in self.named_parameters()
            if name.startswith(DISCRIMINATOR) == (side == "discriminator")
        ]

    @contextmanager
    def moving(self, side: Side | None) -> Iterator[None]:
        """Only this player has gradients, and only its buffers move; None: neither's do."""
        before = [(parameter, parameter.requires_grad) for parameter in self.parameters()]
        buffers = [(name, m) for name, m in self.named_modules() if isinstance(m, Moving)]
        own = set() if side is None else {id(parameter) for _, parameter in self.side(side)}
        try:
            for parameter, _ in before:
                parameter.requires_grad_(id(parameter) in own)
            for name, module in buffers:
                is_opponent = f"{name}.".startswith(DISCRIMINATOR)
                module.moves = side is not None and is_opponent == (side == "discriminator")
            yield
        finally:
            for parameter, required in before:
                parameter.requires_grad_(required)
            for _, module in buffers:
                module.moves = True

    def seen(self, x: torch.Tensor, step: Step, stream: int) -> torch.Tensor:
        """Rows as the discriminator sees them: with instance noise."""
        level = self.config.instance_noise
        if step.total:
            level *= 1 - step.number / step.total
        if not level:
            return x
        generator = step_generator(step.seed, step.number, x.device, stream)
        return torch.randn(x.shape, generator=generator, device=x.device).mul_(level).add_(x)


def opponent_terms(real_B: torch.Tensor, generated_B: torch.Tensor, smoothing: float) -> LossTerms:
    """Phase 1, of the discriminator's logits: the loss, and as the metric `told_apart` the share of
    rows that it is right about."""
    target_B = torch.full_like(real_B, 1.0 - smoothing)
    total = binary_cross_entropy_with_logits(real_B, target_B) + softplus(generated_B).mean()
    with torch.no_grad():
        right = ((real_B > 0).float().mean() + (generated_B < 0).float().mean()) / 2
    return LossTerms(
        total, {"discriminator": total}, {"discriminator": 1.0}, None, {"told_apart": right}
    )


def deceived(generated_B: torch.Tensor) -> torch.Tensor:
    """Phase 2: -log d(G(z)), mean over rows, of the discriminator's logits."""
    return softplus(-generated_B).mean()


def both(first: LossTerms, second: LossTerms) -> LossTerms:
    """The losses of the two phases of a step, as one line of metrics."""
    return LossTerms(
        (first.total + second.total).detach(),
        {**second.terms, **first.terms},
        {**second.weights, **first.weights},
        None,
        {**second.metrics, **first.metrics},
    )


def as_two_players(model: Any) -> TwoPlayers:
    assert isinstance(model, TwoPlayers), "the strategy is adversarial"
    return model
