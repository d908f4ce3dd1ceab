"""The sparse autoencoder: pre = x W_enc^T + b_enc, a sparse code z = sparsity(pre), x_hat = z W_dec + b_dec.

Weights are stored (F,D), one latent a row, for encoder and decoder alike: gathers of single latents are contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from saekit_kernels import SparseCodes, Workspace, crossover_l0, decode, next_arm
from torch import nn

from saekit.errors import UsageError, check_choice
from saekit.models.base import geometric_median, random_unit_rows, remove_parallel_, unit_rows_
from saekit.models.fused import Adam, Shadows
from saekit.models.noise import Noise
from saekit.models.sparsity import VARIANTS
from saekit.models.sparsity.denoising import denoising_loss
from saekit.types import ActivationBatch, LossTerms, Output


@dataclass(frozen=True)
class SAEConfig:
    d_in: int
    latents: int = 0
    """Number of latents F; 0: expansion * d_in."""
    expansion: float = 32
    sparsity: str = "topk"
    """topk | batchtopk | l1 | kl"""
    k: int = 32
    """Active latents a row (topk; batchtopk: on average)."""
    coef: float | None = None
    """Weight of the l1 or kl penalty, in units of the normalised input (E||x||^2 = D). None: DEFAULT_COEF."""
    coef_warmup: float = 0.1
    """Share of the run over which the coefficient rises linearly from 0."""
    target_rate: float = 0.01
    """Mean activation that kl pulls every latent to."""
    noise: str = ""
    """KIND:LEVEL on the input: gaussian | masking | salt-pepper (saekit.models.noise); '': none. Trains densely, by autograd."""
    decoder_norm: str = ""
    """unit | free; '': unit, for kl free."""
    aux_coef: float = 1 / 32
    """Weight of the auxiliary loss that revives dead latents (topk, batchtopk); 0 switches it off."""
    aux_k: int = 0
    """Dead latents that reconstruct the residual of a row; 0: d_in / 2."""
    aux_candidates: int = 2048
    aux_rows: int = 512

    def resolved(self) -> SAEConfig:
        """The config with every default filled in. Raises UsageError on values that cannot be."""
        from dataclasses import replace

        check_choice("--sparsity", self.sparsity, VARIANTS)
        Noise.parse(self.noise)
        if self.latents < 0 or self.latents > MAX_LATENTS:
            raise UsageError(f"--latents {self.latents} must be between 1 and {MAX_LATENTS:,}")
        if not 0 < self.expansion * self.d_in < MAX_LATENTS:
            raise UsageError(f"--expansion {self.expansion:g} must be above 0")
        latents = self.latents or max(round(self.expansion * self.d_in), 1)
        decoder_norm = self.decoder_norm or ("free" if self.sparsity == "kl" else "unit")
        check_choice("--decoder-norm", decoder_norm, ("unit", "free"))
        if not 0 < self.target_rate < 1:
            raise UsageError(f"--target-rate {self.target_rate:g} must be in (0, 1)")
        if "k" in VARIANTS[self.sparsity].options and not 1 <= self.k <= latents:
            raise UsageError(f"--k {self.k} must be between 1 and the number of latents, {latents:,}")
        coef = DEFAULT_COEF.get(self.sparsity) if self.coef is None else self.coef
        if coef is not None and coef < 0:
            raise UsageError(f"--coef {coef:g} must not be negative")
        return replace(self, latents=latents, expansion=latents / self.d_in, decoder_norm=decoder_norm, coef=coef)


MAX_LATENTS = 2**31 - 1  # latent indices are int32

# Chosen by a measured grid (docs/log.md).
DEFAULT_COEF = {"l1": 2.0, "kl": 0.5}


class SAE(nn.Module):
    """An `Autoencoder` (saekit.types). `encode` gives SparseCodes for topk, a dense (B,F) tensor for l1 and kl."""

    strategy = "gradient"
    takes = "rows"

    def __init__(self, config: SAEConfig) -> None:
        super().__init__()
        self.config = config.resolved()
        self.variant = VARIANTS[self.config.sparsity]
        self.d_in, self.latents = self.config.d_in, self.config.latents
        self.active_above, self.resamples = self.variant.active_above, self.variant.resamples
        self.W_enc = nn.Parameter(torch.zeros(self.latents, self.d_in))
        self.b_enc = nn.Parameter(torch.zeros(self.latents))
        self.W_dec = nn.Parameter(torch.zeros(self.latents, self.d_in))
        self.b_dec = nn.Parameter(torch.zeros(self.d_in))
        if self.variant.thresholded:
            self.register_buffer("threshold", torch.zeros(self.latents))  # of a trained model's code, one for each latent
        self.workspace = Workspace()
        self.backend = "torch"  # torch | triton: what the training step runs on; set by the trainer
        self.encoder_plan = "auto"  # filter | gemm | auto: how the torch path encodes; the same codes by all
        self.arm = "dense"  # sparse | dense: how a thresholded code trains on a device (observe)
        self.shadows = Shadows()
        self.noise = Noise.parse(self.config.noise)
        self.seed = 0  # of the noise; set by the trainer
        self.total_steps = 0  # set by the trainer; schedules of the loss are shares of it
        self.dead_order: torch.Tensor | None = None  # set by the trainer: dead latents, longest idle first

    # -- the map ---------------------------------------------------------------------------------------------------------

    def encode(self, x_BD: torch.Tensor) -> torch.Tensor | SparseCodes:
        return self.variant.encode(self, x_BD)

    def decode(self, code: torch.Tensor | SparseCodes) -> torch.Tensor:
        if isinstance(code, SparseCodes):
            return decode(code, self.W_dec, self.b_dec)
        return torch.addmm(self.b_dec, code, self.W_dec)

    def forward(self, x_BD: torch.Tensor) -> Output:
        code = self.encode(x_BD)
        return Output(self.decode(code), code)

    # -- training --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def initialise(self, sample_BD: torch.Tensor, generator: torch.Generator) -> None:
        """b_dec at the geometric median of the sample, unit decoder rows, the encoder their scaled transpose."""
        self.b_dec.copy_(geometric_median(sample_BD))
        self.W_dec.copy_(random_unit_rows(self.latents, self.d_in, generator))
        self.W_enc.copy_(self.W_dec)
        self.b_enc.copy_(-(self.W_enc @ self.b_dec))
        self.variant.initialise(self, sample_BD)

    def loss(self, batch: ActivationBatch, step: int) -> LossTerms:
        if self.noise.kind:
            return denoising_loss(self, batch.x, step)
        return self.variant.loss(self, batch.x, step)

    @property
    def weights(self) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter, nn.Parameter]:
        return self.W_enc, self.b_enc, self.W_dec, self.b_dec

    def fused_step(self, batch: ActivationBatch, step: int, adam: Adam) -> LossTerms | None:
        """Loss, gradients, Adam and constraints in one go, or None where that does not apply (saekit.models.fused)."""
        if self.noise.kind or self.backend != "triton":
            return None
        return self.variant.fused_step(self, batch.x, step, adam)

    def observe(self, l0: float) -> None:
        """Told the mean L0 of recent rows whenever the trainer looks at the device: choose the arm, with hysteresis."""
        self.arm = next_arm(self.arm, l0, crossover_l0(self.latents))

    def warmed_coef(self, step: int) -> float:
        warmup = self.config.coef_warmup * self.total_steps
        return self.config.coef * min(1.0, (step + 1) / warmup) if warmup > 0 else self.config.coef

    def longest_dead(self, most: int) -> torch.Tensor | None:
        """Indices of at most `most` dead latents, or None when none is dead."""
        return None if self.dead_order is None or len(self.dead_order) == 0 else self.dead_order[:most]

    def before_step(self) -> None:
        if self.config.decoder_norm == "unit" and self.W_dec.grad is not None:
            remove_parallel_(self.W_dec.grad, self.W_dec.data)

    def after_step(self) -> None:
        self.shadows.clear()
        if self.config.decoder_norm == "unit":
            unit_rows_(self.W_dec.data)

    @torch.no_grad()
    def resample(self, dead: torch.Tensor, x_BD: torch.Tensor, generator: torch.Generator) -> None:
        """Point dead latents at badly reconstructed rows, drawn with probability ~ loss^2 (Bricken et al. 2023, "Towards
        monosemanticity"): decoder along the row as seen from b_dec, encoder the same at a fifth of the living norm."""
        self.shadows.clear()
        loss = (x_BD - self.forward(x_BD).x_hat).square().sum(1)
        weight = loss.square().cpu() + 1e-12  # on the CPU, where the generator is, whatever the device
        chosen = torch.multinomial(weight, len(dead), replacement=len(dead) > len(x_BD), generator=generator).to(x_BD.device)
        direction = unit_rows_(x_BD[chosen] - self.b_dec)
        alive = torch.ones(self.latents, dtype=torch.bool, device=dead.device)
        alive[dead] = False
        norm = 0.2 * self.W_enc[alive].norm(dim=1).mean() if alive.any() else 0.2
        self.W_dec[dead] = direction
        self.W_enc[dead] = norm * direction
        self.b_enc[dead] = -(norm * direction) @ self.b_dec

    # -- saving ----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def folded(self, mean_D: torch.Tensor, scale: float) -> dict[str, torch.Tensor]:
        """The weights that act on raw x as these act on (x - mean) * scale (DESIGN 4).

        Homogeneous codes are expressed in raw units; sigmoid codes keep their range and the scale moves into the weights.
        """
        shift = self.W_enc @ mean_D
        b_dec = self.b_dec / scale + mean_D
        if self.variant.homogeneous:
            own = {"W_enc": self.W_enc.data, "b_enc": self.b_enc / scale - shift, "W_dec": self.W_dec.data, "b_dec": b_dec}
            return own | ({"threshold": self.threshold / scale} if self.variant.thresholded else {})
        return {
            "W_enc": self.W_enc * scale,
            "b_enc": self.b_enc - scale * shift,
            "W_dec": self.W_dec / scale,
            "b_dec": b_dec,
        }
