"""The sparse autoencoder: pre = x W_enc^T + b_enc, a sparse code z = sparsity(pre), x_hat = z W_dec
+ b_dec.

Weights are stored (F,D), one latent per row, for encoder and decoder alike: gathers of single
latents are contiguous. With another store as the target it is a transcoder (x_hat stands for the
output of a module whose input is x), `skip` adds x W_skip^T; with several hooks side by side in a
row, `parts`, it is a crosscoder. What makes the code sparse is a subclass (saekit.models.sparsity).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Literal

import torch
from saekit_kernels import (
    SparseCodes,
    Workspace,
    Workspaces,
    crossover_l0,
    next_path,
    preactivations,
)
from torch import nn

from saekit.errors import UsageError
from saekit.models.autoencoder import Autoencoder, Recipe, as_batch, power_of_two
from saekit.models.base import (
    as_rows,
    geometric_median,
    random_unit_rows,
    remove_parallel_,
    unit_rows_,
)
from saekit.models.codes import Code, decoded
from saekit.models.noise import Noise, step_generator
from saekit.models.sae.auxiliary import aux_terms
from saekit.models.sae.config import SAEConfig
from saekit.models.sae.control import Control
from saekit.models.sae.fold import folded, unfolded
from saekit.models.sae.fused import Adam, Shadows
from saekit.models.sae.losses import own_error, squared_error, summed
from saekit.models.sae.preactivations import Pre
from saekit.models.sae.start import scale_encoder_to_fit
from saekit.typed import as_type
from saekit.types import FIRST, ActivationBatch, LossTerms, Output, Step

REVIVED_NORM = 0.2  # of the living encoder rows
BATCH, EPOCHS = 4096, 8
# The best of a measured grid at these widths (docs/log.md).
PEAK_LR = 3e-3
MEASURED_TOPK, MEASURED_DENSE = 18_432, 2_048
DENSE_SHARE = 0.1  # of the latents active at the start


class SAE(Autoencoder):
    """A torch module with W_enc (F,D), b_enc (F,), W_dec (F,D_out), b_dec (D_out,).

        sae = JumpReLU(d_in=576, latents=18_432) # or SAE(config): the subclass that config.sparsity
        names sae.initialise_from(rows_BD)               # optional: a start that fits the data
        output = sae(x) # x (..., D) -> output.x_hat (..., D), output.code

    Options are the fields of `config_class`. folded=True: the tensors will be those of a
    checkpoint, without what only training has.
    """

    strategy = "gradient"
    takes = "rows"
    sparse_kernels = True
    decay_share = 0.2
    by_output = ("b_dec", "W_skip")

    sparsity: ClassVar[str] = ""
    """Its name among the variants."""
    config_class: ClassVar[type[SAEConfig]] = SAEConfig
    line: ClassVar[str] = ""
    """What it is, for lists."""
    active_above: float = 0.0
    homogeneous: ClassVar[bool] = True
    """encode(c x) = c encode(x) for c > 0 (threshold scaled too), so that the input's scale folds
    into biases."""
    thresholded: ClassVar[bool] = False
    """A trained model's code is pre where pre > threshold, saved with the weights."""
    largest_of_rows: ClassVar[bool] = False
    """The code is the k largest values of a row, and can be cut to fewer without training."""
    constrained_decoder: ClassVar[bool] = False
    """The decoder is made of parts that a checkpoint does not hold."""
    dense_start: ClassVar[bool] = False
    """All latents of a row move at once at first: such a code needs a lower learning rate."""
    shift: ClassVar[float] = 1.5
    """Of a bias, where a threshold would be multiplied by e (`steer`)."""
    by_latent: ClassVar[tuple[str, ...]] = ("W_enc", "b_enc", "W_dec", "threshold")
    """Tensors of a checkpoint with a row per latent."""
    in_code_units: ClassVar[tuple[str, ...]] = ("W_enc", "b_enc", "threshold")
    """Tensors that scale with the code."""

    def __new__(cls, config: SAEConfig | None = None, **_: Any) -> SAE:
        if cls is SAE:
            from saekit.models.sparsity import VARIANTS

            cls = VARIANTS[SAEConfig.sparsity if config is None else config.sparsity]
        return super().__new__(cls)

    def __init__(
        self, config: SAEConfig | None = None, *, folded: bool = False, **options: Any
    ) -> None:
        """Raises UsageError for options that cannot be."""
        super().__init__()
        config = (
            self.config_class(**options)
            if config is None
            else dataclasses.replace(config, **options)
        )
        if not isinstance(config, self.config_class):
            raise UsageError(
                f"{type(self).__name__} takes {self.config_class.__name__}, not"
                f" {type(config).__name__}"
            )
        self.config = dataclasses.replace(
            config, sparsity=self.sparsity or config.sparsity
        ).resolved()
        self.d_in, self.latents = self.config.d_in, self.config.latents
        self.d_out = self.config.d_out or self.d_in
        self.resamples = self.config.revive == "resample"
        self.is_folded = folded
        self.W_enc = nn.Parameter(torch.empty(self.latents, self.d_in))
        self.b_enc = nn.Parameter(torch.zeros(self.latents))
        self.W_dec = nn.Parameter(torch.empty(self.latents, self.d_out))
        self.b_dec = nn.Parameter(torch.zeros(self.d_out))
        self.W_skip = nn.Parameter(torch.zeros(self.d_out, self.d_in)) if self.config.skip else None
        if self.thresholded:
            # of a trained model's code, one per latent
            self.register_buffer("threshold", torch.zeros(self.latents))
        self.workspaces = Workspaces()
        self.arm = "dense"  # sparse | dense: how a thresholded code trains on a device (observe)
        self.control = Control(self.config)  # holds the coefficient, and steers to an L0 asked for
        self.shadows = Shadows()
        self.noise = Noise.parse(self.config.noise)
        # root mean square of a dimension of the centered target: constants are multiples of it; 1
        # after center+scale
        self.unit = 1.0
        with torch.no_grad():
            unit_rows_(self.W_dec.normal_())
            (
                self.W_enc.copy_(self.W_dec)
                if not self.transcodes
                else unit_rows_(self.W_enc.normal_())
            )
        if not folded:
            self.make_parameters()

    def make_parameters(self) -> None:
        """What the variant trains besides weights and biases, and its own first values of these."""

    def extra_repr(self) -> str:
        k = f", k={self.config.k}" if hasattr(self.config, "k") else ""
        out = f" -> {self.d_out}" if self.transcodes else ""
        return f"{self.d_in} -> {self.latents}{out}{k}" + (", folded" if self.is_folded else "")

    # -- the map
    # ----------------------------------------------------------------------------------------------

    def encode(self, x: torch.Tensor) -> Code:
        """The code of x (..., D), in any float dtype, computed in that of the weights: SparseCodes
        of all rows in one list where the class says `sparse_codes`, else a tensor; `to_dense()` of
        either is (..., F). Differentiable in x and the weights; which latents are active is
        constant. A row with NaN has a code with NaN. Several threads may encode at once. Raises
        DataError for another width, dtype or device."""
        code = self.code_of(as_rows(x, self.d_in, self.W_enc))
        return code.view(*x.shape[:-1], self.latents)

    def with_gradient(self, codes: SparseCodes, x_BD: torch.Tensor) -> SparseCodes:
        """Codes that a kernel selected, with values that are differentiable where that is asked
        for."""
        wanted = any(tensor.requires_grad for tensor in (x_BD, self.W_enc, self.b_enc))
        if not (wanted and torch.is_grad_enabled()):
            return codes
        vals = preactivations(codes, x_BD, self.W_enc, self.b_enc)
        return dataclasses.replace(codes, vals=vals)

    def code_of(self, x_BD: torch.Tensor) -> Code:
        """The code of rows: (B,F), or SparseCodes."""
        return self.thresholded_code(x_BD)

    def first_code(self, x_BD: torch.Tensor) -> Code:
        """The code by which the encoder's first scale is chosen (start.py)."""
        return self.code_of(x_BD)

    def thresholded_code(self, x_BD: torch.Tensor) -> torch.Tensor:
        """(B,F): pre above the threshold, ReLU(pre) where there is none."""
        pre = torch.addmm(self.b_enc, x_BD, self.W_enc.T)
        # NaN stays NaN
        return torch.where(pre <= self.threshold, 0.0, pre) if self.thresholded else pre.relu_()

    def decode(self, code: Code) -> torch.Tensor:
        """x_hat (..., D_out) of what `encode` gives, or of any code (..., F), without what a skip
        adds."""
        return decoded(code, self.decoder(), self.b_dec)

    def decoder(self) -> torch.Tensor:
        """W_dec (F,D_out), differentiable in what is trained of it."""
        return self.W_dec

    def decoder_rows(self, latents: torch.Tensor) -> torch.Tensor:
        """The decoder's rows of the given latents, likewise."""
        return self.W_dec[latents]

    def past(self, x: torch.Tensor) -> torch.Tensor | None:
        """(..., D_out): what goes past the code; None without a skip."""
        return None if self.W_skip is None else x.to(self.W_skip.dtype) @ self.W_skip.T

    def forward(self, x: torch.Tensor) -> Output:
        """x_hat (..., D_out) and the code of x (..., D)."""
        code = self.encode(x)
        x_hat = self.decode(code)
        return Output(x_hat if self.W_skip is None else x_hat + self.past(x), code)

    @property
    def workspace(self) -> Workspace:
        """Buffers of the calling thread."""
        return self.workspaces.current

    @property
    def transcodes(self) -> bool:
        return self.config.d_out > 0

    def decoder_norms(self) -> torch.Tensor:
        """(F,): ||w_j||, in a crosscoder summed over the hooks (Lindsey et al. 2024, "Sparse
        Crosscoders"): what a penalty weighs."""
        parts = self.W_dec.split(self.config.parts or self.d_out, dim=1)
        return sum(torch.linalg.vector_norm(part, dim=1) for part in parts)

    # -- the start
    # ----------------------------------------------------------------------------------------------

    def recipe(self, units: int) -> Recipe:
        dense = self.dense_start or getattr(self.config, "start_l0", 0) > DENSE_SHARE * self.latents
        return Recipe(
            min(BATCH, power_of_two(units / 8)), EPOCHS * units, peak_lr(self.latents, dense)
        )

    @torch.no_grad()
    def initialise_from(
        self, sample_BD: torch.Tensor, generator: torch.Generator | None = None
    ) -> None:
        """b_dec at the geometric median of the sample, unit decoder rows, the encoder their scaled
        transpose. A transcoder's encoder rows are random; its b_dec starts at the mean of its
        target (`start_at`)."""
        self.W_dec.copy_(random_unit_rows(self.latents, self.d_out, generator))
        if self.transcodes:
            self.W_enc.copy_(random_unit_rows(self.latents, self.d_in, generator))
            self.b_enc.zero_()
        else:
            self.b_dec.copy_(geometric_median(sample_BD))
            self.W_enc.copy_(self.W_dec)
            self.b_enc.copy_(-(self.W_enc @ self.b_dec))
            self.unit = (
                float((sample_BD - sample_BD.mean(0)).square().sum(1).mean() / self.d_in) ** 0.5
                or 1.0
            )
        self.start_from(sample_BD)

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
        """Called once W_enc, b_enc, W_dec, b_dec have their first values."""
        scale_encoder_to_fit(self, sample_BD[:4096])

    def start_from_target(self, target_BD: torch.Tensor, sample_BD: torch.Tensor) -> None:
        """For a transcoder, after `start_from`: rows of its target, besides those of its input."""

    # -- parts of a step, of which a variant overrides one or two
    # -----------------------------------------------------------

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
        self, pre: Pre, z: torch.Tensor, target_BD: torch.Tensor, past_BD: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(x_hat (B,D_out), error): the error is mean_b sum_d (target - x_hat)^2 unless a variant
        says otherwise. `past`: what goes past the code."""
        x_hat = pre.decode(z, self.decoder(), self.b_dec)
        x_hat = x_hat if past_BD is None else x_hat + past_BD
        return x_hat, squared_error(target_BD, x_hat)

    def loss(self, batch: ActivationBatch | torch.Tensor, step: Step | int = FIRST) -> LossTerms:
        """Of a batch, or of rows (B,D) alone, at a step of a run."""
        batch, step = as_batch(batch), self.at(step)
        x = (
            self.noise(batch.x, step_generator(step.seed, step.number, batch.x.device))
            if self.noise.kind
            else batch.x
        )
        return self.loss_of(x, batch.x if batch.target is None else batch.target, step, batch)

    def loss_of(
        self, x_BD: torch.Tensor, target_BD: torch.Tensor, step: Step, batch: ActivationBatch
    ) -> LossTerms:
        """`x` is what is encoded (with noise, where there is some), `target` what is
        reconstructed."""
        pre = self.preactivations(x_BD, step)
        z = self.activate(pre)
        x_hat, error = self.reconstruct(pre, z, target_BD, self.past(x_BD))
        weighted = {"reconstruction": (error, 1.0), **self.penalties(pre, z, step)}
        weighted |= aux_terms(self, x_BD, (x_hat - target_BD).detach(), step)
        return summed(weighted, pre.fired(z.detach()), pre.metrics() | own_error(target_BD, x_hat))

    def plain(self, x_BD: torch.Tensor, target_BD: torch.Tensor) -> bool:
        """Whether x itself is reconstructed, from the code only: what the kernels do in one
        piece."""
        return x_BD is target_BD and self.W_skip is None

    @property
    def weights(self) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter, nn.Parameter]:
        return self.W_enc, self.b_enc, self.W_dec, self.b_dec

    def fused_step(self, batch: ActivationBatch, step: Step, adam: Adam) -> LossTerms | None:
        if self.noise.kind or self.transcodes or step.backend != "triton":
            return None
        return self.fused(batch.x, step, adam)

    def fused(self, x_BD: torch.Tensor, step: Step, adam: Adam) -> LossTerms | None:
        """Loss, gradients and Adam in one pass, where there are kernels for it
        (saekit.models.sae.fused)."""
        return None

    def coef(self, step: Step | int) -> float:
        """The weight of the penalty at a step: the coefficient is meant in units of the target's
        variance per dimension."""
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
        """Bring the variant's parameters back to their constraints."""

    # -- between steps
    # ----------------------------------------------------------------------------------------------

    def observe(self, l0: float, step: Step) -> None:
        """Choose the arm, with hysteresis, and steer penalty and biases to the L0 that was asked
        for."""
        self.arm = next_path(self.arm, l0, crossover_l0(self.latents))
        self.steer(self.control.observe(l0, step.number, step.total))

    def steer(self, factor: float) -> None:
        """Raise what latents must pass to be active: trained thresholds, where there are some, by
        this factor, else all biases alike."""
        if factor != 1.0:
            with torch.no_grad():
                self.b_enc -= self.shift * self.unit * math.log(factor)

    @property
    def compares(self) -> bool:
        return self.control.steers is not None

    @torch.no_grad()
    def compare(self, x: torch.Tensor, step: Step) -> None:
        """How many latents held-out rows activate. Nothing else is learned from them."""
        self.control.compare(float(self.fired(x, step).sum()) / len(x))

    def fired(self, x_BD: torch.Tensor, step: Step) -> torch.Tensor:
        """(F,): in how many rows each latent is active, as `loss` counts it."""
        pre = self.preactivations(x_BD, step)
        return pre.fired(self.activate(pre))

    def run_state(self) -> dict[str, Any]:
        return {"arm": self.arm, "control": self.control.state(), "variant": self.own_state()}

    def continue_from(self, state: dict[str, Any]) -> None:
        self.arm = as_type(state.get("arm"), Literal["sparse", "dense"], "arm")
        self.control.restore(as_type(state.get("control"), dict[str, Any], "control"))
        self.restore_own(as_type(state.get("variant", {}), dict[str, float], "variant"))

    def own_state(self) -> dict[str, float]:
        """What a run of the variant has learned besides tensors, as JSON."""
        return {}

    def restore_own(self, state: dict[str, float]) -> None:
        """Take up again what `own_state` gave."""

    @torch.no_grad()
    def resample(
        self, dead: torch.Tensor, batch: ActivationBatch, generator: torch.Generator, step: Step
    ) -> None:
        """Point dead latents, no more than there are rows, at badly reconstructed rows, one each,
        drawn with probability ~ loss^2 (Bricken et al. 2023, "Towards monosemanticity"): decoder
        along the row as seen from b_dec, encoder the same at a fifth of the living norm.

        The paper's bias of 0 lets such a latent fire on every second row, and thousands of them at
        32x undo the sparsity at once; here it fires where a row has more than half of its own row's
        part along it.
        """
        self.shadows.clear()
        x, target = batch.x, batch.x if batch.target is None else batch.target
        loss = (target - self.reconstructed(x, step)).square().sum(1)
        # on the CPU, where the generator is, whatever the device
        weight = loss.square().cpu() + 1e-12
        chosen = torch.multinomial(weight, len(dead), generator=generator).to(x.device)
        origin = torch.zeros_like(x[0]) if self.transcodes else self.b_dec
        direction = unit_rows_(x[chosen] - origin)
        alive = torch.ones(self.latents, dtype=torch.bool, device=dead.device)
        alive[dead] = False
        norm = REVIVED_NORM * self.W_enc[alive].norm(dim=1).mean() if alive.any() else REVIVED_NORM
        self.W_dec[dead] = unit_rows_(target[chosen] - self.b_dec)
        self.W_enc[dead] = norm * direction
        along = ((x[chosen] - origin) * direction).sum(1)
        self.b_enc[dead] = -norm * (direction @ origin + along / 2)
        self.revive(dead)

    def reconstructed(self, x_BD: torch.Tensor, step: Step) -> torch.Tensor:
        """(B,D_out): x_hat by the code that is trained."""
        return self.forward(x_BD).x_hat

    def revive(self, dead: torch.Tensor) -> None:
        """Reset what the variant trains besides weights and biases, for latents that were
        resampled."""

    def batch_bytes(self, batch: int) -> int:
        """Two copies of the codes, in chunks where k is fixed."""
        return 8 * min(batch, 1024 if hasattr(self.config, "k") else 1 << 30) * self.latents

    # -- saving
    # ----------------------------------------------------------------------------------------------

    @classmethod
    def for_weights(cls, config: SAEConfig) -> SAE:
        return cls(config, folded=True)

    def effective(self) -> dict[str, torch.Tensor]:
        """W_enc, b_enc, W_dec, b_dec (and threshold) by which a folded model gives the trained
        code."""
        own = {name: getattr(self, name).detach() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        return own | ({"threshold": self.threshold} if self.thresholded else {})

    folded = folded
    unfolded = unfolded


def peak_lr(latents: int, dense: bool) -> float:
    """Peak rate for Adam: PEAK_LR up to the measured width, lower beyond it, where it is not
    measured.

    Sparse codes: ~ 1/sqrt(latents), the rule of Gao et al. 2024. Codes that begin dense: ~
    1/latents, since each step of Adam moves every entry by the rate, and all latents of a row add
    up.
    """
    if not dense:
        return PEAK_LR / max(latents / MEASURED_TOPK, 1.0) ** 0.5
    return PEAK_LR / max(latents / MEASURED_DENSE, 1.0)
