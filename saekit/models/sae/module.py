"""The sparse autoencoder: pre = x W_enc^T + b_enc, a sparse code z = sparsity(pre), x_hat = z W_dec
+ b_dec.

With another store as the target it is a transcoder: x_hat stands for the output of a module whose
input is x, and `skip` adds x W_skip^T. With several hooks side by side in a row (`parts`) it is a
crosscoder. What makes the code sparse is a subclass (saekit.models.sparsity).

The weights and the map are in saekit.models.sae.dictionary. This file is about training: start,
loss, and what happens between steps.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from saekit_kernels import crossover_l0, next_path

from saekit.models.autoencoder import Recipe, as_batch, power_of_two
from saekit.models.base import geometric_median, random_unit_rows, remove_parallel_, unit_rows_
from saekit.models.codes import Code
from saekit.models.noise import Noise, step_generator
from saekit.models.sae.config import SAEConfig
from saekit.models.sae.control import Control
from saekit.models.sae.dead import aux_terms, nudge, resample
from saekit.models.sae.dictionary import Dictionary
from saekit.models.sae.fused import Adam, Shadows
from saekit.models.sae.losses import loss_terms, squared_error, with_squared_error
from saekit.models.sae.preactivations import Pre
from saekit.models.sae.start import scale_encoder_to_fit
from saekit.typed import as_type
from saekit.types import FIRST, ActivationBatch, LossTerms, Step

BATCH, EPOCHS = 4096, 8
# The best of a measured grid at these widths (docs/notes/log.md).
PEAK_LR = 3e-3
MEASURED_TOPK, MEASURED_DENSE = 18_432, 2_048
DENSE_SHARE = 0.1  # of the latents active at the start


class SAE(Dictionary):
    """A torch module with W_enc (F,D), b_enc (F,), W_dec (F,D_out), b_dec (D_out,).

        sae = JumpReLU(d_in=576, latents=18_432)  # or SAE(config): config.sparsity names the class
        sae.initialise_from(rows_BD)              # optional: a start that fits the data
        output = sae(x)                           # x (..., D) -> output.x_hat, output.code

    Options are the fields of `config_class`.
    """

    strategy = "gradient"
    takes = "rows"
    sparse_kernels = True
    decay_share = 0.2
    by_output = ("b_dec", "W_skip")

    dense_start: ClassVar[bool] = False
    """Whether all latents of a row change at once at first: such a code needs a lower learning
    rate."""
    nudge_share: ClassVar[float] = 0.1
    """Of the gap that a nudge closes. A larger one leaves fewer latents dead, and costs held-out
    error (docs/variants.md)."""
    turns_dead: ClassVar[bool] = False
    """Whether nudges turn the decoder rows of dead latents too (saekit.models.sae.dead)."""
    shift: ClassVar[float] = 1.5
    """How far a bias moves where a threshold would be multiplied by e (`steer`)."""

    def __new__(cls, config: SAEConfig | None = None, **_: Any) -> SAE:
        if cls is SAE:
            from saekit.models.sparsity import VARIANTS

            cls = VARIANTS[SAEConfig.sparsity if config is None else config.sparsity]
        return super().__new__(cls)  # pyright: ignore[reportArgumentType]

    def __init__(
        self, config: SAEConfig | None = None, *, folded: bool = False, **options: Any
    ) -> None:
        """As Dictionary. Raises UsageError for invalid options."""
        super().__init__(config, folded=folded, **options)
        if not folded:
            self.need_trainable()
        self.resamples = self.config.revive == "resample"
        self.nudges = self.config.revive == "nudge"
        self.path: Literal["sparse", "dense"] = "dense"
        """How a thresholded code trains on a device (`observe`)."""
        self.control = Control(self.config)
        """Holds the coefficient, and drives L0 to its target."""
        self.shadows = Shadows()
        self.noise = Noise.parse(self.config.noise)
        self.unit = 1.0
        """Root mean square of a dimension of the centered target: constants are multiples of it. 1
        with center+scale."""
        if not folded:
            self.make_parameters()

    def make_parameters(self) -> None:
        """Creates what the variant trains besides weights and biases, and sets its own first values
        of these."""

    # -- the start

    def recipe(self, units: int) -> Recipe:
        dense = self.dense_start or getattr(self.config, "start_l0", 0) > DENSE_SHARE * self.latents
        return Recipe(
            min(BATCH, power_of_two(units / 8)), EPOCHS * units, peak_lr(self.latents, dense)
        )

    @torch.no_grad()
    def initialise_from(
        self, sample: torch.Tensor, generator: torch.Generator | None = None
    ) -> None:
        """b_dec at the geometric median of the sample (B,D), unit decoder rows, the encoder their
        scaled transpose. A transcoder's encoder rows are random; its b_dec starts at the mean of
        its target (`start_at`)."""
        self.W_dec.copy_(random_unit_rows(self.latents, self.d_out, generator))
        if self.transcodes:
            self.W_enc.copy_(random_unit_rows(self.latents, self.d_in, generator))
            self.b_enc.zero_()
        else:
            self.b_dec.copy_(geometric_median(sample))
            self.W_enc.copy_(self.W_dec)
            self.b_enc.copy_(-(self.W_enc @ self.b_dec))
            variance = (sample - sample.mean(0)).square().sum(1).mean()
            self.unit = float(variance / self.d_in) ** 0.5 or 1.0
        self.start_from(sample)

    @torch.no_grad()
    def start_at(
        self,
        mean_D: torch.Tensor,
        variance: float,
        target_BD: torch.Tensor,
        sample_BD: torch.Tensor,
    ) -> None:
        self.unit = (variance / self.d_out) ** 0.5 if variance > 0 else 1.0
        if self.transcodes:
            self.b_dec.copy_(mean_D)
            # the first code writes a tenth of the target's size
            if self.unit != 1.0 and self.homogeneous:
                for name in self.in_code_units:
                    if hasattr(self, name):
                        getattr(self, name).mul_(self.unit)
            self.start_from_target(target_BD, sample_BD)

    def start_from(self, sample_BD: torch.Tensor) -> None:
        """Called when W_enc, b_enc, W_dec, b_dec have their first values."""
        scale_encoder_to_fit(self, sample_BD[:4096])

    def start_from_target(self, target_BD: torch.Tensor, sample_BD: torch.Tensor) -> None:
        """For a transcoder, called after `start_from` with rows of the target and of the input."""

    def first_code(self, x_BD: torch.Tensor) -> Code:
        """The code (B,F) by which the encoder's first scale is chosen (start.py)."""
        return self.code_of(x_BD)

    # -- parts of a step, of which a variant overrides one or two

    def preactivations(self, x_BD: torch.Tensor, step: Step) -> Pre:
        """Those that may be active."""
        raise NotImplementedError

    def activate(self, pre: Pre) -> torch.Tensor:
        """The code's values, in the shape of pre.values."""
        return pre.values.relu()

    def penalties(
        self, pre: Pre, z: torch.Tensor, step: Step
    ) -> dict[str, tuple[torch.Tensor, float]]:
        """name -> (term before weighting, weight)."""
        return {}

    def reconstruct(
        self, pre: Pre, z: torch.Tensor, target_BD: torch.Tensor, skip_BD: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(x_hat (B,D_out), error): the error is mean_b sum_d (target - x_hat)^2 unless a variant
        overrides it."""
        x_hat = pre.decode(z, self.decoder(), self.b_dec)
        x_hat = x_hat if skip_BD is None else x_hat + skip_BD
        return x_hat, squared_error(target_BD, x_hat)

    # -- a step

    def loss(self, batch: ActivationBatch | torch.Tensor, step: Step | int = FIRST) -> LossTerms:
        """Of a batch, or of rows (B,D), at a step of a run."""
        self.need_trainable()
        batch, step = as_batch(batch), self.at(step)
        x = batch.x
        if self.noise.kind:
            x = self.noise(x, step_generator(step.seed, step.number, x.device))
        return self.loss_of(x, batch.x if batch.target is None else batch.target, step, batch)

    def loss_of(
        self, x_BD: torch.Tensor, target_BD: torch.Tensor, step: Step, batch: ActivationBatch
    ) -> LossTerms:
        """`x` is encoded (with noise, where the config has some), `target` is reconstructed."""
        pre = self.preactivations(x_BD, step)
        z = self.activate(pre)
        x_hat, error = self.reconstruct(pre, z, target_BD, self.skip(x_BD))
        weighted = {"reconstruction": (error, 1.0), **self.penalties(pre, z, step)}
        weighted |= aux_terms(self, x_BD, (x_hat - target_BD).detach(), step)
        metrics = with_squared_error(pre.metrics(), target_BD, x_hat)
        return loss_terms(weighted, pre.fired(z.detach()), metrics)

    def is_autoencoder(self, x_BD: torch.Tensor, target_BD: torch.Tensor) -> bool:
        """Whether x itself is reconstructed, from the code only: what the kernels do in one
        piece."""
        return x_BD is target_BD and self.W_skip is None

    def fused_step(self, batch: ActivationBatch, step: Step, adam: Adam) -> LossTerms | None:
        if self.noise.kind or self.transcodes or step.backend != "triton":
            return None
        return self.fused(batch.x, step, adam)

    def fused(self, x_BD: torch.Tensor, step: Step, adam: Adam) -> LossTerms | None:
        """Loss, gradients and Adam in one pass, where there are kernels for it
        (saekit.models.sae.fused)."""
        return None

    def coef(self, step: Step | int) -> float:
        """The weight of the penalty at a step. The coefficient is in units of the target's variance
        per dimension."""
        step = self.at(step)
        return self.control.coef * self.control.warmed(step.number, step.total) * self.unit**2

    def before_step(self) -> None:
        if self.config.decoder_norm == "unit" and self.W_dec.grad is not None:
            remove_parallel_(self.W_dec.grad, self.W_dec.data)

    def after_step(self) -> None:
        self.shadows.clear()
        self.constrain()
        if self.config.decoder_norm == "unit":
            unit_rows_(self.W_dec.data)

    def constrain(self) -> None:
        """Project the variant's parameters onto their constraints."""

    # -- between steps

    def observe(self, l0: float, step: Step) -> None:
        """Choose the path, with hysteresis, and drive penalty and biases to the target L0."""
        path = next_path(self.path, l0, crossover_l0(self.latents))
        self.path = as_type(path, Literal["sparse", "dense"], "path")
        self.steer(self.control.observe(l0, step.number, step.total))

    def steer(self, factor: float) -> None:
        """Raise what latents must exceed to be active: trained thresholds by this factor, where
        there are any, else all biases alike."""
        if factor != 1.0:
            with torch.no_grad():
                self.b_enc.sub_(self.shift * self.unit * math.log(factor))

    @property
    def compares(self) -> bool:
        return self.control.steers is not None

    @torch.no_grad()
    def compare(self, x: torch.Tensor, step: Step) -> None:
        """Count how many latents are active in held-out rows. Nothing else is learned from them."""
        self.control.compare(float(self.fired(x, step).sum()) / len(x))

    def fired(self, x_BD: torch.Tensor, step: Step) -> torch.Tensor:
        """(F,): the number of rows in which each latent is active, as `loss` counts it."""
        pre = self.preactivations(x_BD, step)
        return pre.fired(self.activate(pre))

    @torch.no_grad()
    def resample(
        self, dead: torch.Tensor, batch: ActivationBatch, generator: torch.Generator, step: Step
    ) -> None:
        resample(self, dead, batch, generator, step)

    @torch.no_grad()
    def nudge(self, dead: torch.Tensor, batch: ActivationBatch, step: Step) -> None:
        nudge(self, dead, batch, step)

    def firing_level(
        self, x_BD: torch.Tensor, latents: torch.Tensor, step: Step
    ) -> torch.Tensor | float:
        """What the pre-activations of these latents must exceed in these rows for them to be
        active; broadcasts to (B,n)."""
        return 0.0

    def reconstructed(self, x_BD: torch.Tensor, step: Step) -> torch.Tensor:
        """(B,D_out): x_hat by the code that is trained."""
        return self.forward(x_BD).x_hat

    def biases_moved(self, latents: torch.Tensor, change: torch.Tensor) -> None:
        """Told that a nudge has added `change` (n,) to b_enc of these latents."""

    def reset_latents(self, latents: torch.Tensor) -> None:
        """Reset what the variant trains besides weights and biases, for latents that were
        resampled."""

    def run_state(self) -> dict[str, Any]:
        return {"arm": self.path, "control": self.control.state(), "variant": self.variant_state()}

    def continue_from(self, state: dict[str, Any]) -> None:
        self.path = as_type(state.get("arm"), Literal["sparse", "dense"], "arm")
        self.control.restore(as_type(state.get("control"), dict[str, Any], "control"))
        self.restore_variant(as_type(state.get("variant", {}), dict[str, float], "variant"))

    def variant_state(self) -> dict[str, float]:
        """What a run of the variant has learned besides tensors, as JSON."""
        return {}

    def restore_variant(self, state: dict[str, float]) -> None:
        """Restore what `variant_state` returned."""

    def batch_bytes(self, batch: int) -> int:
        """Two copies of the codes, in chunks where k is fixed."""
        return 8 * min(batch, 1024 if hasattr(self.config, "k") else 1 << 30) * self.latents


def peak_lr(latents: int, dense: bool) -> float:
    """Peak rate for Adam: PEAK_LR up to the measured width, and lower for wider dictionaries, which
    were not measured.

    Sparse codes: ~ 1/sqrt(latents), the rule of Gao et al. 2024. Codes that begin dense: ~
    1/latents, since each step of Adam moves every entry by the rate, and all latents of a row add
    up.
    """
    if not dense:
        return PEAK_LR / max(latents / MEASURED_TOPK, 1.0) ** 0.5
    return PEAK_LR / max(latents / MEASURED_DENSE, 1.0)
