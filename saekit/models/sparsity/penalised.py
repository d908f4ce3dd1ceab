"""ReLU codes with a penalty on their sizes a = z_j ||w_j||: mean_b sum_j phi(a_bj).

| `sparsity` | phi(a) | source |
|---|---|---|
| l1 | a | Anthropic, "Circuits Updates - April 2024" |
| tanh | tanh(c a) / c | Jermyn et al., "Circuits Updates - February 2024" |
| log | log(1 + c a) / c | |
| p-anneal | a^p, p falling from 1 | Karvonen et al. 2024, arXiv 2408.00113: towards counting |

The decoder norm in a prevents the penalty from being lowered by shifting scale into the decoder;
tanh does not shrink large values. Division by c gives every phi the slope 1 at 0, so that their
coefficients are of similar size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Self

import torch
from saekit_kernels import relu_reconstruction
from saekit_kernels.operations import OPERATIONS

from saekit.errors import UsageError, opt
from saekit.models.sae import SAE, SAEConfig
from saekit.models.sae.config import Revival
from saekit.models.sae.dead import aux_terms, has_aux_term
from saekit.models.sae.fused import Adam, fused_sparse_step
from saekit.models.sae.losses import loss_terms
from saekit.models.sae.preactivations import Pre, above, encoder_metrics
from saekit.models.sae.start import level_of, scale_encoder_to_fit
from saekit.models.sparsity.topk import encoder_copy
from saekit.options import Doc
from saekit.types import ActivationBatch, LossTerms, Step

SMALLEST = 1e-3  # added to a before a power below 1, whose slope at 0 would be infinite
START = 4.0  # L0 at the start of a run, as a multiple of the target L0


@dataclass(frozen=True)
class PenaltyConfig(SAEConfig):
    sparsity: str = "l1"
    coef: Annotated[
        float | None,
        Doc("Weight of the penalty, in units of normalized input; with a target L0, at first."),
    ] = None
    coef_warmup: Annotated[
        float, Doc("Share of the steps over which the weight rises linearly from 0.")
    ] = 0.1
    target_l0: Annotated[
        float | None,
        Doc("Mean L0 on held-out rows, which a controller holds by adjusting the penalty."),
    ] = None
    start_l0: Annotated[
        float | None,
        Doc("L0 of the first step (default: 4 times the target, or half of all latents)."),
    ] = None

    revive: Revival = "nudge"

    default_coef = 2.0  # chosen by a measured grid (docs/notes/log.md)
    steered = "coef"  # with a target_l0; control.py

    def resolved(self) -> Self:
        config = super().resolved()
        coef = self.default_coef if self.coef is None else self.coef
        if coef < 0:
            raise UsageError(f"{opt('coef', coef)} must not be negative")
        target = self.target_l0 or 0
        if not 0 <= target < config.n_latents:
            raise UsageError(
                f"{opt('target_l0', target)} must be between 0 and the number of latents,"
                f" {config.n_latents:,}"
            )
        start = self.start_l0 or (
            min(START * target, config.n_latents / 2) if target else config.n_latents / 2
        )
        return replace(config, coef=coef, start_l0=start)


class Penalised(SAE):
    """ReLU codes and the penalty mean_b sum_j phi(a_bj); a subclass defines phi, `size`."""

    config_class = PenaltyConfig
    penalty_name: ClassVar[str] = ""

    def size(self, a: torch.Tensor, step: Step) -> torch.Tensor:
        """phi(a), elementwise, 0 at 0."""
        raise NotImplementedError

    def preactivations(self, x_BD: torch.Tensor, step: Step) -> Pre:
        return above(self, x_BD, step)

    def penalties(
        self, pre: Pre, z: torch.Tensor, step: Step
    ) -> dict[str, tuple[torch.Tensor, float]]:
        # unit norms are 1, and their gradient is projected away
        unit_norms = self.config.decoder_norm == "unit" and not self.config.parts
        a = z if unit_norms else z * pre.of(self.decoder_norms())
        sizes = self.size(a if self.unit == 1.0 else a / self.unit, step)
        return {self.penalty_name: (sizes.sum() / pre.rows, self.coef(step))}

    def start_from(self, sample_BD: torch.Tensor) -> None:
        """All biases lowered by the same amount, so that on average `start_l0` latents per row are
        active; then the scale."""
        self.b_enc.sub_(level_of(self, sample_BD, self.config.start_l0))
        scale_encoder_to_fit(self, sample_BD[:4096])


class L1(Penalised):
    sparsity = "l1"
    line = "ReLU, sum of z ||w||"
    penalty_name = "l1"

    def size(self, a: torch.Tensor, step: Step) -> torch.Tensor:
        return a

    def loss_of(
        self, x_BD: torch.Tensor, target_BD: torch.Tensor, step: Step, batch: ActivationBatch
    ) -> LossTerms:
        if not self.is_autoencoder(x_BD, target_BD) or self.config.parts:
            return super().loss_of(x_BD, target_BD, step, batch)
        coef, unit = self.coef(step) / self.unit, self.config.decoder_norm == "unit"
        path = self.path if step.backend == "triton" else "auto"
        result = relu_reconstruction(
            x_BD, *self.weights, coef, unit, self.workspace, path, step.encoder_plan, step.backend
        )
        aux = aux_terms(self, x_BD, result.residual_BD, step)
        terms = loss_terms(
            {"reconstruction": (result.reconstruction, 1.0), "l1": (result.penalty, coef), **aux},
            result.fired_F,
            encoder_metrics(result),
        )
        # it has the gradients of the first two terms
        terms.total = result.total
        for term, weight in aux.values():
            terms.total = terms.total + weight * term
        return terms

    def fused(self, x_BD: torch.Tensor, step: Step, adam: Adam) -> LossTerms | None:
        if self.path == "dense" or self.config.parts or has_aux_term(self, step):
            return None
        encoded = OPERATIONS["triton"].encode_relu(
            x_BD, encoder_copy(self), self.b_enc, self.workspace, "auto", None
        )
        if encoded.codes is None:  # too many: until the next poll steps are dense
            self.path = "dense"
            return None
        return fused_sparse_step(self, x_BD, encoded, self.coef(step) / self.unit, adam)


@dataclass(frozen=True)
class ScaledConfig(PenaltyConfig):
    sparsity: str = "tanh"
    penalty_scale: Annotated[float, Doc("c: activations above about 1/c cost little more.")] = 4.0


class Tanh(Penalised):
    sparsity = "tanh"
    config_class = ScaledConfig
    line = "ReLU, sum of tanh(c z ||w||) / c"
    penalty_name = "tanh"

    def size(self, a: torch.Tensor, step: Step) -> torch.Tensor:
        c = self.config.penalty_scale
        return (c * a).tanh() / c


class Log(Penalised):
    sparsity = "log"
    config_class = ScaledConfig
    line = "ReLU, sum of log(1 + c z ||w||) / c"
    penalty_name = "log"

    def size(self, a: torch.Tensor, step: Step) -> torch.Tensor:
        c = self.config.penalty_scale
        return (c * a).log1p() / c


@dataclass(frozen=True)
class PAnnealConfig(PenaltyConfig):
    sparsity: str = "p-anneal"
    p_end: Annotated[float, Doc("The power p at the end of the run.")] = 0.2
    p_anneal: Annotated[
        float,
        Doc("Share of the steps, the first ones, in which p stays 1; it then falls linearly."),
    ] = 0.5


class PAnneal(Penalised):
    sparsity = "p-anneal"
    config_class = PAnnealConfig
    line = "ReLU, sum of (z ||w||)^p, p falling from 1"
    penalty_name = "lp"
    annealed: tuple[float, float | torch.Tensor] = (1.0, 1.0)
    """The power of the last step, and the factor that keeps the size of the penalty."""

    def power(self, step: Step) -> float:
        c, done = self.config, step.number / max(step.total, 1)
        return 1.0 - (1.0 - c.p_end) * min(max((done - c.p_anneal) / (1.0 - c.p_anneal), 0.0), 1.0)

    def size(self, a: torch.Tensor, step: Step) -> torch.Tensor:
        """a^p times a factor that keeps the penalty of these codes at what it was with the larger p
        (Karvonen et al. 2024, section 3): at each change of p the factor grows by sum a^old / sum
        a^new. Without it the same codes would cost more and more."""
        p, (old, factor) = self.power(step), self.annealed
        sizes = _power(a, p)
        if p != old:
            with torch.no_grad():
                total = sizes.sum()
                factor = torch.where(total > 0, factor * _power(a, old).sum() / total, factor)
            self.annealed = (p, factor)
        return sizes if p == 1.0 else factor * sizes

    def variant_state(self) -> dict[str, float]:
        power, factor = self.annealed
        return {"power": power, "factor": float(factor)}

    def restore_variant(self, state: dict[str, float]) -> None:
        self.annealed = (state.get("power", 1.0), state.get("factor", 1.0))


def _power(a: torch.Tensor, p: float) -> torch.Tensor:
    return a if p == 1.0 else (a + SMALLEST).pow(p) - SMALLEST**p
