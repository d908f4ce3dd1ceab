"""What every classic autoencoder shares: a code, an output with its loss, noise on the input,
penalties on the code.

A model adds its body, two maps between normalised input and code; everything here combines with
every body:

    x~ = (x - mean) * scale; z = s(to_code(noise(x~))); a = from_code(z); loss = output's loss(a,
    x~) + penalties(z)

Shapes: B rows or examples, D d_in, F latents. `encode` and `decode` take and give raw units; during
training mean is 0 and scale 1, since the trainer normalises. Unlike an SAE's, mean and scale stay
beside the weights, so that one rule serves every body; a code is in normalised units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import nn

from saekit.errors import UsageError, opt
from saekit.models import outputs, penalties
from saekit.models.autoencoder import Autoencoder, as_batch
from saekit.models.base import as_examples, as_rows
from saekit.models.codes import firing_counts
from saekit.models.noise import Noise, step_generator
from saekit.models.normalizer import Normalizer
from saekit.options import Doc, check
from saekit.types import FIRST, ActivationBatch, LossTerms, Step

HiddenActivation = Literal["relu", "sigmoid", "tanh", "silu", "gelu"]
ACTIVATIONS = {
    "linear": lambda a: a,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": nn.functional.silu,
    "gelu": nn.functional.gelu,
}
CODE_OF_SPARSITY = {"none": "linear", "l1": "relu", "kl": "sigmoid"}
ACTIVE_ABOVE = {"none": None, "l1": 0.0, "kl": 0.5}
DEFAULT_COEF = {"none": 0.0, "l1": 0.1, "kl": 0.5}


@dataclass(frozen=True)
class ClassicConfig:
    """Options of every classic model. Fields without a Doc come from the data."""

    d_in: int
    latents: Annotated[int, Doc("Size of the code.")] = 32
    output: Annotated[
        Literal["linear", "sigmoid", "bernoulli"],
        Doc("Output activation function and its loss: squared error, or cross-entropy."),
    ] = "linear"
    noise: Annotated[
        str | None,
        Doc(
            "Noise on the input, such as gaussian:0.3; masking, salt-pepper.", metavar="KIND:LEVEL"
        ),
    ] = None
    sparsity: Annotated[
        Literal["none", "l1", "kl"], Doc("Penalty on the code, as for a sparse autoencoder.")
    ] = "none"
    coef: Annotated[
        float | None, Doc("Weight of that penalty (default: 0.1 for l1, 0.5 for kl).")
    ] = None
    target_rate: Annotated[float, Doc("Mean activation that kl pulls every latent to.")] = 0.01
    d_out: int = 0
    """Width of a row of the target; 0: d_in."""

    def __post_init__(self) -> None:
        check(self)
        if self.latents < 1:
            raise UsageError(f"{opt('latents', self.latents)} must be at least 1")
        Noise.parse(self.noise)
        if not 0 < self.target_rate < 1:
            raise UsageError(f"{opt('target_rate', self.target_rate)} must be in (0, 1)")
        if self.coef is not None and (self.coef < 0 or self.sparsity == "none"):
            wrong = (
                "must not be negative" if self.coef < 0 else "weighs a penalty that there is not"
            )
            raise UsageError(
                f"{opt('coef', self.coef)} {wrong}",
                opt("sparsity", "l1", "kl") if self.coef >= 0 else "",
            )

    @property
    def penalty(self) -> float:
        return DEFAULT_COEF[self.sparsity] if self.coef is None else self.coef


class Classic(Autoencoder):
    """A subclass sets its modules and implements to_code and from_code."""

    reconstruction_weight = 1.0
    decay_share = 0.5
    gain = 2.0  # of the first weights: rectifiers halve the variance; 1 for bodies without

    def __init__(self, config: ClassicConfig) -> None:
        super().__init__()
        self.config = config
        self.d_in, self.latents, self.d_out = (
            config.d_in,
            config.latents,
            config.d_out or config.d_in,
        )
        self.noise = Noise.parse(config.noise)
        self.active_above = ACTIVE_ABOVE[config.sparsity]
        self.code_activation = ACTIVATIONS[CODE_OF_SPARSITY[config.sparsity]]
        self.register_buffer("input_mean", torch.zeros(self.d_in))
        self.register_buffer("input_scale", torch.ones(()))
        self.register_buffer("output_mean", torch.zeros(self.d_out))
        self.register_buffer("output_scale", torch.ones(()))

    # -- the body, which a model implements
    # ---------------------------------------------------------------------------------

    def to_code(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised input -> (B,F), before the code's activation."""
        raise NotImplementedError

    def from_code(self, z: torch.Tensor) -> torch.Tensor:
        """Code -> the output before its activation, in the shape of the target."""
        raise NotImplementedError

    def leaving_norms(self) -> torch.Tensor:
        """(F,): norms of the weights that leave each latent; they weigh the L1 penalty."""
        raise NotImplementedError

    def numbers_per_row(self) -> int:
        """About how many numbers a row (or example) leaves for the backward pass: for estimates of
        memory."""
        raise NotImplementedError

    def batch_bytes(self, batch: int) -> int:
        return 8 * batch * self.numbers_per_row()

    # -- the map
    # ----------------------------------------------------------------------------------------------

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """(..., F) of x (..., *example) in any float dtype; an example is a row (D,) or what
        `example_shape` says. Raises DataError for another shape, dtype or device."""
        code = self.code_activation(self.to_code(self.normalised(x)))
        return code.view(*self.leading(x), self.latents)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """x_hat (..., *example) of a code (..., F). Raises DataError as `encode`."""
        a = self.from_code(as_rows(z, self.latents, self.input_mean, "the code"))
        x_hat = outputs.activate(self.config.output, a) / self.output_scale + self.output_mean
        return x_hat.view(*z.shape[:-1], *x_hat.shape[1:])

    @property
    def example_shape(self) -> tuple[int | None, ...]:
        """Of what one code stands for; None is any length."""
        return (self.d_in,)

    def leading(self, x: torch.Tensor) -> torch.Size:
        """The dimensions of x before those of an example."""
        return x.shape[: x.ndim - len(self.example_shape)]

    def normalised(self, x: torch.Tensor) -> torch.Tensor:
        """Raw examples (..., *example) -> (B,*example), as in training."""
        return (
            as_examples(x, self.example_shape, self.input_mean) - self.input_mean
        ) * self.input_scale

    # -- training
    # ----------------------------------------------------------------------------------------------

    def initialise_from(self, sample: torch.Tensor, generator: torch.Generator) -> None:
        """Weights from N(0, gain / fan-in), biases 0 (He et al. 2015, arXiv 1502.01852)."""
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.dim() > 1:
                    parameter.copy_(
                        torch.randn(parameter.shape, generator=generator)
                        * math.sqrt(self.gain / parameter[0].numel())
                    )
                else:
                    parameter.zero_()

    def loss(self, batch: ActivationBatch | torch.Tensor, step: Step | int = FIRST) -> LossTerms:
        """Terms: reconstruction, and the penalty where there is one. `squared_error` is what fvu is
        computed from, whatever the output."""
        batch, step = as_batch(batch), self.at(step)
        noisy = self.noise(batch.x, step_generator(step.seed, step.number, batch.x.device))
        z, terms, weights = self.noisy_code(noisy, batch.x, step)
        return self.judged(self.from_code(z), z, batch, terms, weights)

    def judged(
        self, a: torch.Tensor, z: torch.Tensor, batch: ActivationBatch, terms: dict, weights: dict
    ) -> LossTerms:
        """The loss of output a, before its activation, and code z; `terms` and `weights` are the
        penalties'."""
        target = batch.x if batch.target is None else batch.target
        outputs.check_range(self.config.output, target)
        reconstruction = self.reconstruction(a, target, batch.mask)
        terms, weights = (
            {"reconstruction": reconstruction, **terms},
            {"reconstruction": self.reconstruction_weight, **weights},
        )
        total = sum(weights[name] * term for name, term in terms.items())
        with torch.no_grad():
            x_hat = outputs.activate(self.config.output, a)
            metrics = {"squared_error": outputs.summed_loss("linear", x_hat, target, batch.mask)}
            fired = (
                None if self.active_above is None else firing_counts(z.detach(), self.active_above)
            )
        return LossTerms(total, terms, weights, fired, metrics)

    def reconstruction(
        self, a: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        return outputs.summed_loss(self.config.output, a, target, mask)

    def noisy_code(
        self, noisy: torch.Tensor, clean: torch.Tensor, step: Step
    ) -> tuple[torch.Tensor, dict, dict]:
        """(code, penalties before weighting, their weights) of one training batch."""
        return self.penalised(self.code_activation(self.to_code(noisy)))

    def penalised(self, z: torch.Tensor) -> tuple[torch.Tensor, dict, dict]:
        """z with what its sparsity costs: (z, penalties before weighting, their weights)."""
        c = self.config
        if c.sparsity == "l1":
            return z, {"l1": penalties.l1(z, self.leaving_norms())}, {"l1": c.penalty}
        if c.sparsity == "kl":
            return z, {"kl": penalties.kl(z, c.target_rate)}, {"kl": c.penalty}
        return z, {}, {}

    # -- saving
    # ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def folded(
        self, inputs: Normalizer, targets: Normalizer | None = None
    ) -> dict[str, torch.Tensor]:
        """The tensors that act on raw rows: mean and scale are kept beside the weights."""
        targets = inputs if targets is None else targets
        units = {
            "input_mean": inputs.mean_D,
            "input_scale": torch.tensor(inputs.scale),
            "output_mean": targets.mean_D,
            "output_scale": torch.tensor(targets.scale),
        }
        return {**{name: tensor.detach() for name, tensor in self.state_dict().items()}, **units}
