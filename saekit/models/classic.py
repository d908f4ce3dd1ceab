"""What every classic autoencoder shares: a code, an output with its loss, noise on the input,
penalties on the code.

A model adds its body, two maps between normalized input and code; everything here combines with
every body:

    x~ = (x - mean) * scale;   z = activation(to_code(noise(x~)));   a = from_code(z)
    loss = output's loss(a, x~) + penalties(z)

Shapes: B rows or examples, D d_in, F latents. `encode` and `decode` take and return raw units;
during training the mean is 0 and the scale 1, since the trainer normalizes. Unlike an SAE's, mean
and scale stay beside the weights, so that one rule works for every body; a code is in normalized
units.
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
from saekit.models.codes import Code, firing_counts
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
CODE_OF_SPARSITY = {"none": "linear", "l1": "relu", "kl-sigmoid": "sigmoid"}
ACTIVE_ABOVE = {"none": None, "l1": 0.0, "kl-sigmoid": 0.5}
DEFAULT_COEF = {"none": 0.0, "l1": 0.1, "kl-sigmoid": 0.5}


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
            "Noise on the input: gaussian:SD, masking:SHARE or salt-pepper:SHARE.",
            metavar="KIND:LEVEL",
        ),
    ] = None
    sparsity: Annotated[
        Literal["none", "l1", "kl-sigmoid"],
        Doc("Penalty on the code, as for a sparse autoencoder."),
    ] = "none"
    coef: Annotated[
        float | None, Doc("Weight of that penalty (default: 0.1 for l1, 0.5 for kl-sigmoid).")
    ] = None
    target_rate: Annotated[float, Doc("Mean activation that kl-sigmoid pulls every latent to.")] = (
        0.01
    )
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
                opt("sparsity", "l1", "kl-sigmoid") if self.coef >= 0 else "",
            )

    @property
    def penalty(self) -> float:
        return DEFAULT_COEF[self.sparsity] if self.coef is None else self.coef


class Classic(Autoencoder):
    """A subclass sets its modules and implements to_code and from_code."""

    input_mean: torch.Tensor
    input_scale: torch.Tensor
    output_mean: torch.Tensor
    output_scale: torch.Tensor

    reconstruction_weight = 1.0
    decay_share = 0.5
    gain = 2.0  # of the first weights: rectifiers halve the variance; 1 for bodies without them

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

    def to_code(self, x: torch.Tensor) -> torch.Tensor:
        """Normalized input -> (B,F), before the code's activation function."""
        raise NotImplementedError

    def from_code(self, z: torch.Tensor) -> torch.Tensor:
        """Code -> the output before its activation function, in the shape of the target."""
        raise NotImplementedError

    def leaving_norms(self) -> torch.Tensor:
        """(F,): the norm of each latent's outgoing weights, which weighs the L1 penalty."""
        raise NotImplementedError

    def numbers_per_row(self) -> int:
        """About how many numbers are kept for the backward pass per row or example, to estimate
        memory."""
        raise NotImplementedError

    def batch_bytes(self, batch: int) -> int:
        return 8 * batch * self.numbers_per_row()

    # -- the map

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """(..., F) of x (..., *example) in any float dtype; an example is a row (D,) or what
        `example_shape` says. Raises DataError for another shape, dtype or device."""
        code = self.code_activation(self.to_code(self.normalized(x)))
        return code.view(*self.leading(x), self.latents)

    def decode(self, code: Code) -> torch.Tensor:
        """x_hat (..., *example) of a code (..., F). Raises DataError as `encode`."""
        return self.raw_output(self.from_code(self.code_rows(code)), code)

    def code_rows(self, code: Code) -> torch.Tensor:
        """(B,F) of a code (..., F). Raises DataError."""
        return as_rows(code, self.latents, self.input_mean, "the code")

    def raw_output(self, a: torch.Tensor, code: Code) -> torch.Tensor:
        """x_hat (..., *example) of outputs before their activation function, with the leading
        dimensions of the code."""
        x_hat = outputs.activate(self.config.output, a) / self.output_scale + self.output_mean
        return x_hat.view(*code.shape[:-1], *x_hat.shape[1:])

    @property
    def example_shape(self) -> tuple[int | None, ...]:
        """The shape of what is encoded to one code; None is any length."""
        return (self.d_in,)

    def leading(self, x: torch.Tensor) -> torch.Size:
        """The dimensions of x before those of an example."""
        return x.shape[: x.ndim - len(self.example_shape)]

    def normalized(self, x: torch.Tensor) -> torch.Tensor:
        """Raw examples (..., *example) -> (B,*example), as in training."""
        examples = as_examples(x, self.example_shape, self.input_mean)
        return (examples - self.input_mean) * self.input_scale

    # -- training

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
        """Terms: reconstruction, and the penalty if there is one. fvu is computed from the metric
        `squared_error`, whatever the output."""
        batch, step = as_batch(batch), self.at(step)
        noisy = self.noise(batch.x, step_generator(step.seed, step.number, batch.x.device))
        z, terms, weights = self.noisy_code(noisy, batch.x, step)
        return self.judged(self.from_code(z), z, batch, terms, weights)

    def judged(
        self, a: torch.Tensor, z: torch.Tensor, batch: ActivationBatch, terms: dict, weights: dict
    ) -> LossTerms:
        """The loss of output a, before its activation function, and code z; `terms` and `weights`
        are those of the penalties."""
        target = batch.x if batch.target is None else batch.target
        outputs.check_range(self.config.output, target)
        # the weighted sum of reconstruction and penalties
        reconstruction = self.reconstruction(a, target, batch.mask)
        total = self.reconstruction_weight * reconstruction
        for name, term in terms.items():
            total = total + weights[name] * term
        terms = {"reconstruction": reconstruction, **terms}
        weights = {"reconstruction": self.reconstruction_weight, **weights}
        # what is reported besides
        with torch.no_grad():
            x_hat = outputs.activate(self.config.output, a)
            metrics = {"squared_error": outputs.summed_loss("linear", x_hat, target, batch.mask)}
            fired = None
            if self.active_above is not None:
                fired = firing_counts(z.detach(), self.active_above)
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
        if c.sparsity == "kl-sigmoid":
            return z, {"kl": penalties.kl(z, c.target_rate)}, {"kl": c.penalty}
        return z, {}, {}

    # -- saving

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
