"""ReLU codes made sparse by a penalty on their sizes a = z_j ||w_j||, mean_b sum_j phi(a_bj).

| `sparsity` | phi(a) | source |
|---|---|---|
| l1 | a | Anthropic, "Circuits Updates - April 2024": the norm, lest scale be shifted into the decoder |
| tanh | tanh(c a) / c | Jermyn et al., "Circuits Updates - February 2024": large values are not shrunk |
| log | log(1 + c a) / c | |
| p-anneal | a^p, p falling from 1 | Karvonen et al. 2024, arXiv 2408.00113: towards counting |

Division by c gives every phi the slope 1 at 0, and so coefficients of one size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from saekit_kernels import relu_reconstruction
from saekit_kernels.operations import OPERATIONS

from saekit.errors import UsageError, opt
from saekit.models.fused import Adam, fused_sparse_step
from saekit.models.sparsity.base import SAEConfig, Variant, summed
from saekit.models.sparsity.dead import aux_terms, revives_by_aux
from saekit.models.sparsity.preactivations import Pre, above, encoder_metrics
from saekit.models.sparsity.start import level_of, scale_encoder_to_fit
from saekit.models.sparsity.topk import encoder_copy
from saekit.types import ActivationBatch, LossTerms

if TYPE_CHECKING:
    from saekit.models.sae import SAE

SMALLEST = 1e-3  # added to a before a power below 1, whose slope at 0 would be infinite
START = 4.0  # times the L0 asked for: where a run begins


@dataclass(frozen=True)
class PenaltyConfig(SAEConfig):
    coef: float | None = None
    """Weight of the penalty, in units of the normalised input (E||x||^2 = D); with target_l0 the first one."""
    coef_warmup: float = 0.1
    """Share of the run over which the coefficient rises linearly from 0."""
    target_l0: float = 0
    """Active latents a row that the penalty and the biases are steered to (control.py); 0: neither is."""
    start_l0: float = 0
    """Active latents a row in the first step; 0: 4 times target_l0, without one half of all latents."""

    revive: str = "resample"

    default_coef = 2.0  # chosen by a measured grid (docs/log.md)
    steered = "coef"  # with a target_l0; control.py

    def resolved(self) -> SAEConfig:
        config = super().resolved()
        coef = self.default_coef if self.coef is None else self.coef
        if coef < 0:
            raise UsageError(f"{opt('coef', coef)} must not be negative")
        if not 0 <= self.target_l0 < config.latents:
            raise UsageError(f"{opt('target_l0', self.target_l0)} must be between 0 and the number of latents, {config.latents:,}")
        start = self.start_l0 or (min(START * self.target_l0, config.latents / 2) if self.target_l0 else config.latents / 2)
        return replace(config, coef=coef, start_l0=start)


class Penalised(Variant):
    """phi is `size`; the rest is common."""

    config = PenaltyConfig
    name = ""

    def size(self, sae: SAE, a: torch.Tensor, step: int) -> torch.Tensor:
        """phi(a), elementwise, 0 at 0."""
        raise NotImplementedError

    def preactivations(self, sae: SAE, x_BD: torch.Tensor, step: int) -> Pre:
        return above(sae, x_BD)

    def penalties(self, sae: SAE, pre: Pre, z: torch.Tensor, step: int) -> dict[str, tuple[torch.Tensor, float]]:
        fixed = sae.config.decoder_norm == "unit" and not sae.config.parts  # norms of 1, whose gradient is projected away
        a = z if fixed else z * pre.of(sae.decoder_norms())
        sizes = self.size(sae, a if sae.unit == 1.0 else a / sae.unit, step)
        return {self.name: (sizes.sum() / pre.rows, sae.coef(step))}

    def initialise(self, sae: SAE, sample_BD: torch.Tensor) -> None:
        """Biases lowered alike, so that `start_l0` latents are active in the mean row; then the scale."""
        sae.b_enc -= level_of(sae, sample_BD, sae.config.start_l0)
        scale_encoder_to_fit(sae, sample_BD[:4096])


class L1(Penalised):
    line = "ReLU, sum of z ||w||"
    name = "l1"

    def size(self, sae: SAE, a: torch.Tensor, step: int) -> torch.Tensor:
        return a

    def loss(self, sae: SAE, x_BD: torch.Tensor, target_BD: torch.Tensor, step: int, batch: ActivationBatch) -> LossTerms:
        if not sae.plain(x_BD, target_BD) or sae.config.parts:
            return super().loss(sae, x_BD, target_BD, step, batch)
        coef, unit = sae.coef(step) / sae.unit, sae.config.decoder_norm == "unit"
        arm = sae.arm if sae.backend == "triton" else "auto"
        made = relu_reconstruction(x_BD, *sae.weights, coef, unit, sae.workspace, arm, sae.encoder_plan, sae.backend)
        aux = aux_terms(sae, x_BD, made.residual_BD)
        terms = summed(
            {"reconstruction": (made.reconstruction, 1.0), "l1": (made.penalty, coef), **aux}, made.fired_F, encoder_metrics(made)
        )
        terms.total = made.total + sum(weight * term for term, weight in aux.values())  # it carries the gradients of the first two
        return terms

    def fused_step(self, sae: SAE, x_BD: torch.Tensor, step: int, adam: Adam) -> LossTerms | None:
        if sae.arm == "dense" or sae.config.parts or (revives_by_aux(sae) and sae.longest_dead(1) is not None):
            return None
        encoded = OPERATIONS["triton"].encode_relu(x_BD, encoder_copy(sae), sae.b_enc, sae.workspace, "auto", None)
        return fused_sparse_step(sae, x_BD, encoded, sae.coef(step) / sae.unit, adam)


@dataclass(frozen=True)
class ScaledConfig(PenaltyConfig):
    penalty_scale: float = 4.0
    """c: from a of about 1/c on, more of it costs little."""


class Tanh(Penalised):
    config = ScaledConfig
    line = "ReLU, sum of tanh(c z ||w||) / c"
    name = "tanh"

    def size(self, sae: SAE, a: torch.Tensor, step: int) -> torch.Tensor:
        c = sae.config.penalty_scale
        return (c * a).tanh() / c


class Log(Penalised):
    config = ScaledConfig
    line = "ReLU, sum of log(1 + c z ||w||) / c"
    name = "log"

    def size(self, sae: SAE, a: torch.Tensor, step: int) -> torch.Tensor:
        c = sae.config.penalty_scale
        return (c * a).log1p() / c


@dataclass(frozen=True)
class PAnnealConfig(PenaltyConfig):
    p_end: float = 0.2
    """The power at the end of the run."""
    p_anneal: float = 0.5
    """Share of the run, its first part, over which p stays 1; it then falls linearly to p_end."""


class PAnneal(Penalised):
    config = PAnnealConfig
    line = "ReLU, sum of (z ||w||)^p, p falling from 1"
    name = "lp"

    def power(self, sae: SAE, step: int) -> float:
        c, done = sae.config, step / max(sae.total_steps, 1)
        return 1.0 - (1.0 - c.p_end) * min(max((done - c.p_anneal) / (1.0 - c.p_anneal), 0.0), 1.0)

    def size(self, sae: SAE, a: torch.Tensor, step: int) -> torch.Tensor:
        """a^p, times what keeps the penalty of these codes what it was when p was larger (Karvonen et al. 2024, section 3): at each change
        of p the factor grows by sum a^old / sum a^new. Without it the same codes would cost ever more."""
        p, (old, factor) = self.power(sae, step), getattr(sae, "annealed", (1.0, 1.0))
        sizes = _power(a, p)
        if p != old:
            with torch.no_grad():
                new = sizes.sum()
                factor = torch.where(new > 0, factor * _power(a, old).sum() / new, factor)
            sae.annealed = (p, factor)
        return sizes if p == 1.0 else factor * sizes

    def state(self, sae: SAE) -> dict[str, float]:
        power, factor = getattr(sae, "annealed", (1.0, 1.0))
        return {"power": power, "factor": float(factor)}

    def restore(self, sae: SAE, state: dict[str, float]) -> None:
        sae.annealed = (state.get("power", 1.0), state.get("factor", 1.0))


def _power(a: torch.Tensor, p: float) -> torch.Tensor:
    return a if p == 1.0 else (a + SMALLEST).pow(p) - SMALLEST**p
