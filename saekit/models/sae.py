"""The sparse autoencoder: pre = x W_enc^T + b_enc, a sparse code z = sparsity(pre), x_hat = z W_dec + b_dec.

Weights are stored (F,D), one latent a row, for encoder and decoder alike: gathers of single latents are contiguous. With another store as
the target it is a transcoder (x_hat stands for the output of a module whose input x is), `skip` adds x W_skip^T; with several hooks side by
side in a row, `parts`, it is a crosscoder. What makes the code sparse is a variant (saekit.models.sparsity).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from saekit_kernels import SparseCodes, Workspace, Workspaces, crossover_l0, decode, next_arm, preactivations
from torch import nn

from saekit.models.base import as_rows, geometric_median, random_unit_rows, remove_parallel_, unit_rows_
from saekit.models.fused import Adam, Shadows
from saekit.models.noise import Noise, step_generator
from saekit.models.sparsity import VARIANTS
from saekit.models.sparsity.base import SAEConfig
from saekit.models.sparsity.control import Control
from saekit.typed import as_type
from saekit.types import ActivationBatch, LossTerms, Output

REVIVED_NORM = 0.2  # of the living encoder rows


class SAE(nn.Module):
    """An `Autoencoder` (saekit.types). `encode` gives SparseCodes for topk and its like, a dense (B,F) tensor otherwise."""

    strategy = "gradient"
    takes = "rows"

    def __init__(self, config: SAEConfig) -> None:
        super().__init__()
        self.config = config.resolved()
        self.variant = VARIANTS[self.config.sparsity]
        self.d_in, self.latents = self.config.d_in, self.config.latents
        self.d_out = self.config.d_out or self.d_in
        self.active_above, self.resamples = self.variant.active_above, self.config.revive == "resample"
        self.needs_previous = self.variant.needs_previous
        self.W_enc = nn.Parameter(torch.zeros(self.latents, self.d_in))
        self.b_enc = nn.Parameter(torch.zeros(self.latents))
        self.W_dec = nn.Parameter(torch.zeros(self.latents, self.d_out))
        self.b_dec = nn.Parameter(torch.zeros(self.d_out))
        self.W_skip = nn.Parameter(torch.zeros(self.d_out, self.d_in)) if self.config.skip else None
        if self.variant.thresholded:
            self.register_buffer("threshold", torch.zeros(self.latents))  # of a trained model's code, one for each latent
        self.workspaces = Workspaces()
        self.backend = "torch"  # torch | triton: what the training step runs on; set by the trainer
        self.encoder_plan = "auto"  # filter | gemm | auto: how the torch path encodes; the same codes by all
        self.arm = "dense"  # sparse | dense: how a thresholded code trains on a device (observe)
        self.control = Control(self.config)  # holds the coefficient, and steers to an L0 asked for
        self.shadows = Shadows()
        self.noise = Noise.parse(self.config.noise)
        self.seed = 0  # of the noise; set by the trainer
        self.unit = 1.0  # root mean square of a dimension of the centred target: what constants are multiples of; 1 after center+scale
        self.total_steps = 0  # set by the trainer; schedules of the loss are shares of it
        self.dead_order: torch.Tensor | None = None  # set by the trainer: dead latents, longest idle first

    # -- the map ---------------------------------------------------------------------------------------------------------

    def encode(self, x: torch.Tensor) -> torch.Tensor | SparseCodes:
        """The code of x (..., D), in any float dtype, computed in that of the weights: SparseCodes of all rows in one list, whose
        `to_dense()` is (..., F), or a tensor (..., F). Differentiable in x and the weights; which latents are active is constant. A row
        with NaN has a code with NaN. Several threads may encode at once. Raises DataError for another width, dtype or device."""
        rows_BD, leading = as_rows(x, self.d_in, self.W_enc), x.shape[:-1]
        code = self.variant.encode(self, rows_BD)
        if not isinstance(code, SparseCodes):
            return code if x.ndim == 2 else code.view(*leading, self.latents)
        if torch.is_grad_enabled() and (rows_BD.requires_grad or self.W_enc.requires_grad or self.b_enc.requires_grad):
            code = dataclasses.replace(code, vals=preactivations(code, rows_BD, self.W_enc, self.b_enc))
        return code if x.ndim == 2 else dataclasses.replace(code, leading=tuple(leading))

    def decode(self, code: torch.Tensor | SparseCodes) -> torch.Tensor:
        """x_hat (..., D_out) of what `encode` gives, or of any code (..., F), without what a skip adds."""
        if isinstance(code, SparseCodes):
            x_hat = decode(code, self.W_dec, self.b_dec)
            return x_hat if code.leading is None else x_hat.view(*code.leading, self.d_out)
        x_hat = torch.addmm(self.b_dec, as_rows(code, self.latents, self.W_dec, "the code"), self.W_dec)
        return x_hat if code.ndim == 2 else x_hat.view(*code.shape[:-1], self.d_out)

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
        return self.workspaces.own

    def decoder_norms(self) -> torch.Tensor:
        """(F,): ||w_j||, in a crosscoder summed over the hooks (Lindsey et al. 2024, "Sparse Crosscoders"): what a penalty weighs."""
        parts = self.W_dec.split(self.config.parts or self.d_out, dim=1)
        return sum(torch.linalg.vector_norm(part, dim=1) for part in parts)

    # -- training --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def initialise(self, sample_BD: torch.Tensor, generator: torch.Generator) -> None:
        """b_dec at the geometric median of the sample, unit decoder rows, the encoder their scaled transpose. A transcoder's encoder rows
        are random; its b_dec starts at the mean of its target (`start_at`)."""
        self.W_dec.copy_(random_unit_rows(self.latents, self.d_out, generator))
        if self.transcodes:
            self.W_enc.copy_(random_unit_rows(self.latents, self.d_in, generator))
        else:
            self.b_dec.copy_(geometric_median(sample_BD))
            self.W_enc.copy_(self.W_dec)
            self.b_enc.copy_(-(self.W_enc @ self.b_dec))
            self.unit = float((sample_BD - sample_BD.mean(0)).square().sum(1).mean() / self.d_in) ** 0.5 or 1.0
        self.variant.initialise(self, sample_BD)

    @torch.no_grad()
    def start_at(self, mean_D: torch.Tensor, variance: float, target_BD: torch.Tensor, sample_BD: torch.Tensor) -> None:
        """Told, after `initialise`, the mean (D_out) of what is to be reconstructed, the mean of its ||x - mean||^2 and some rows of it,
        besides the sample of the input."""
        self.unit = (variance / self.d_out) ** 0.5 if variance > 0 else 1.0
        if self.transcodes:
            self.b_dec.copy_(mean_D)
            for name in ("W_enc", "b_enc", "threshold", "b_mag", "slow_theta"):  # the first code writes a tenth of the target's size
                if self.unit != 1.0 and self.variant.homogeneous and hasattr(self, name):
                    getattr(self, name).mul_(self.unit)
            self.variant.start_at(self, target_BD, sample_BD)

    @property
    def transcodes(self) -> bool:
        return self.config.d_out > 0

    def loss(self, batch: ActivationBatch, step: int) -> LossTerms:
        x = self.noise(batch.x, step_generator(self.seed, step, batch.x.device)) if self.noise.kind else batch.x
        return self.variant.loss(self, x, batch.x if batch.target is None else batch.target, step, batch)

    def plain(self, x_BD: torch.Tensor, target_BD: torch.Tensor) -> bool:
        """Whether x itself is reconstructed, from the code alone: what the kernels do in one piece."""
        return x_BD is target_BD and self.W_skip is None

    @property
    def weights(self) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter, nn.Parameter]:
        return self.W_enc, self.b_enc, self.W_dec, self.b_dec

    def fused_step(self, batch: ActivationBatch, step: int, adam: Adam) -> LossTerms | None:
        """Loss, gradients, Adam and constraints in one go, or None where that does not apply (saekit.models.fused)."""
        if self.noise.kind or self.transcodes or self.backend != "triton":
            return None
        return self.variant.fused_step(self, batch.x, step, adam)

    def observe(self, l0: float, step: int) -> None:
        """Told the mean L0 of recent rows, `step` steps done, whenever the trainer looks at the device: choose the arm, with
        hysteresis, and steer penalty and biases to the L0 that was asked for."""
        self.arm = next_arm(self.arm, l0, crossover_l0(self.latents))
        self.variant.steer(self, self.control.observe(l0, step, self.total_steps))

    @property
    def compares(self) -> bool:
        """Whether it wants to see held-out rows now and then."""
        return self.control.steers is not None

    @torch.no_grad()
    def compare(self, x_BD: torch.Tensor, step: int) -> None:
        """Shown held-out rows: how many latents they activate. Nothing else is learned from them."""
        self.control.compare(float(self.variant.fired(self, x_BD, step).sum()) / len(x_BD))

    def coef(self, step: int) -> float:
        """The weight of the penalty at a step: the coefficient is meant in units of the target's variance per dimension."""
        return self.control.coef * self.control.warmed(step, self.total_steps) * self.unit**2

    def run_state(self) -> dict[str, object]:
        """What training has come to know besides tensors; set by `continue_from`."""
        return {"arm": self.arm, "control": self.control.state(), "variant": self.variant.state(self)}

    def continue_from(self, state: dict) -> None:
        """Raises MisfitError for what is not a `run_state`."""
        self.arm = as_type(state.get("arm"), Literal["sparse", "dense"], "arm")
        self.control.restore(as_type(state.get("control"), dict[str, Any], "control"))
        self.variant.restore(self, as_type(state.get("variant", {}), dict[str, float], "variant"))

    def longest_dead(self, most: int) -> torch.Tensor | None:
        """Indices of at most `most` dead latents, or None when none is dead."""
        return None if self.dead_order is None or len(self.dead_order) == 0 else self.dead_order[:most]

    def before_step(self) -> None:
        if self.config.decoder_norm == "unit" and self.W_dec.grad is not None:
            remove_parallel_(self.W_dec.grad, self.W_dec.data)

    def after_step(self) -> None:
        self.shadows.clear()
        self.variant.after_step(self)
        if self.config.decoder_norm == "unit":
            unit_rows_(self.W_dec.data)

    @torch.no_grad()
    def resample(self, dead: torch.Tensor, batch: ActivationBatch, generator: torch.Generator) -> None:
        """Point dead latents, no more than there are rows, at badly reconstructed rows, one each, drawn with probability ~ loss^2
        (Bricken et al. 2023, "Towards monosemanticity"): decoder along the row as seen from b_dec, encoder the same at a fifth of the
        living norm.

        The paper's bias of 0 lets such a latent fire on every second row, and thousands of them at 32x undo the sparsity at once; here
        it fires where a row has more than half of its own row's part along it.
        """
        self.shadows.clear()
        x, target = batch.x, batch.x if batch.target is None else batch.target
        loss = (target - self.variant.reconstructed(self, x)).square().sum(1)
        weight = loss.square().cpu() + 1e-12  # on the CPU, where the generator is, whatever the device
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
        self.variant.revive(self, dead)

    # -- saving ----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def folded(
        self, mean_D: torch.Tensor, scale: torch.Tensor | float, target: tuple[torch.Tensor, torch.Tensor | float] | None = None
    ) -> dict[str, torch.Tensor]:
        """The weights that act on raw x as these act on (x - mean) * scale (DESIGN 4), and give raw targets.

        Homogeneous codes are expressed in the target's raw units, so that decoder rows keep their norm; sigmoid codes keep their range,
        and the codes of several hooks, each with a scale of its own, stay in normalised units: the scales move into the weights.
        """
        mean_out, scale_out = (mean_D, scale) if target is None else target
        own = self.variant.effective(self)
        uniform = not torch.is_tensor(scale) and not torch.is_tensor(scale_out)
        unit = scale_out if self.variant.homogeneous and uniform else 1.0  # of the code
        W_enc = own["W_enc"] * (scale / unit)
        made = {
            "W_enc": W_enc,
            "b_enc": own["b_enc"] / unit - W_enc @ mean_D,
            "W_dec": own["W_dec"] / (scale_out / unit),
            "b_dec": own["b_dec"] / scale_out + mean_out,
        }
        if "threshold" in own:
            made["threshold"] = own["threshold"] / unit
        if self.W_skip is not None:
            made["W_skip"] = self.W_skip * scale / torch.as_tensor(scale_out).reshape(-1, 1)
            made["b_dec"] = made["b_dec"] - made["W_skip"] @ mean_D
        return made
