"""`kl`: the mean activation of every latent is pulled to `target_rate` by coef * sum_j KL(rho || rho_hat_j) (Ng, "Sparse
autoencoder", CS294A notes). Three objectives, which differ in what rho_hat is the mean of:

| `sparsity` | code | rho_hat_j |
|---|---|---|
| kl | sigmoid(pre) | mean_b of the code |
| kl-means | ReLU(pre) | mean_b sigmoid(pre), over all entries |
| kl-rates | ReLU(pre) | mean_b [pre > 0], the firing rate; its gradient is a window's of width eps around 0 (jumprelu.py) |

With `target_l0`, rho is aim target_l0 / F, and `aim` is steered until the code has that L0 (control.py): a larger weight would pull rare
latents up as hard as frequent ones down. Means of sigmoids hardly tell how many values are above 0: rho of kl-means is the mean over
latents of rho_hat_j, taken as constant, which evens them out around where they are, and biases alone are steered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from saekit_kernels import sigmoid_reconstruction
from saekit_kernels.dense import kl_of_means

from saekit.errors import UsageError, opt
from saekit.models.sparsity.base import Variant, summed
from saekit.models.sparsity.jumprelu import Step
from saekit.models.sparsity.penalised import Penalised, PenaltyConfig
from saekit.models.sparsity.preactivations import DensePre, Pre, above
from saekit.types import ActivationBatch, LossTerms

if TYPE_CHECKING:
    from saekit.models.sae import SAE


@dataclass(frozen=True)
class KLConfig(PenaltyConfig):
    decoder_norm: str = "free"
    target_rate: float | None = None
    """rho, the mean that every latent is pulled to; None: 0.01, with target_l0 target_l0 / latents (which kl-means does not use)."""
    revive: str = "none"

    default_coef = 0.5
    default_rate = 0.01
    aimed_coef = 10.0
    """The default with target_l0: a rate that is steered must be held against the reconstruction."""
    steered = "aim"

    def resolved(self) -> PenaltyConfig:
        config = super().resolved()
        config = replace(config, coef=self.aimed_coef) if self.coef is None and self.target_l0 else config
        default = self.target_l0 / config.latents if self.target_l0 else self.default_rate
        rate = default if self.target_rate is None else self.target_rate
        if not 0 < rate < 1:
            raise UsageError(f"{opt('target_rate', rate)} must be in (0, 1)")
        if self.target_l0 and rate != default:
            raise UsageError(f"{opt('target_rate')} and {opt('target_l0')} both say how often latents are active", "drop one of them")
        return replace(config, target_rate=rate)


def rate_of(sae: SAE) -> float:
    """rho of the coming step."""
    return min(sae.config.target_rate * sae.control.aim, 0.5)


class KL(Variant):
    config = KLConfig
    line = "sigmoid codes, KL on their means"
    homogeneous = False  # codes stay in [0, 1] whatever the input's scale
    active_above = 0.5
    dense_start = True
    shift = 0.6  # every code moves with its bias, and batches differ

    def preactivations(self, sae: SAE, x_BD: torch.Tensor, step: int) -> Pre:
        return DensePre(torch.addmm(sae.b_enc, x_BD, sae.W_enc.T))

    def activate(self, sae: SAE, pre: Pre) -> torch.Tensor:
        return pre.values.sigmoid()

    def penalties(self, sae: SAE, pre: Pre, z: torch.Tensor, step: int) -> dict[str, tuple[torch.Tensor, float]]:
        return {"kl": (kl_of_means(z.mean(0), rate_of(sae))[0], sae.coef(step))}

    def encode(self, sae: SAE, x_BD: torch.Tensor) -> torch.Tensor:
        return torch.addmm(sae.b_enc, x_BD, sae.W_enc.T).sigmoid_()

    def loss(self, sae: SAE, x_BD: torch.Tensor, target_BD: torch.Tensor, step: int, batch: ActivationBatch) -> LossTerms:
        if not sae.plain(x_BD, target_BD):
            terms = super().loss(sae, x_BD, target_BD, step, batch)
            terms.fired = self.fired(sae, x_BD.detach(), step)
            return terms
        coef, rate = sae.coef(step), rate_of(sae)
        made = sigmoid_reconstruction(x_BD, *sae.weights, coef, rate, sae.workspace, sae.backend)
        terms = summed({"reconstruction": (made.reconstruction, 1.0), "kl": (made.penalty, coef)}, made.fired_F, {})
        terms.total = made.total  # it carries the gradients
        return terms

    @torch.no_grad()
    def fired(self, sae: SAE, x_BD: torch.Tensor, step: int) -> torch.Tensor:
        return (self.encode(sae, x_BD) > self.active_above).sum(0)

    def initialise(self, sae: SAE, sample_BD: torch.Tensor) -> None:
        """Codes start near the target rate, so that the penalty starts near its minimum."""
        sae.b_enc += math.log(sae.config.target_rate / (1 - sae.config.target_rate))


@dataclass(frozen=True)
class SparseKLConfig(KLConfig):
    decoder_norm: str = "unit"
    revive: str = "aux"

    default_coef = 10.0


@dataclass(frozen=True)
class KLMeansConfig(SparseKLConfig):
    steered = "biases"


class KLMeans(Penalised):
    config = KLMeansConfig
    line = "ReLU codes, KL on the means of sigmoid(pre)"
    shift = 4.5  # the KL moves all biases too

    def preactivations(self, sae: SAE, x_BD: torch.Tensor, step: int) -> Pre:
        return DensePre(torch.addmm(sae.b_enc, x_BD, sae.W_enc.T))  # every entry has its part in the penalty

    def penalties(self, sae: SAE, pre: Pre, z: torch.Tensor, step: int) -> dict[str, tuple[torch.Tensor, float]]:
        means = pre.values.sigmoid().mean(0)
        rate = means.detach().mean() if sae.config.target_l0 else rate_of(sae)
        return {"kl": (kl_of_means(means, rate)[0], sae.coef(step))}


@dataclass(frozen=True)
class KLRatesConfig(SparseKLConfig):
    bandwidth: float = 0.5
    """eps: width of the window through which firing rates learn."""


class KLRates(Penalised):
    config = KLRatesConfig
    line = "ReLU codes, KL on firing rates"

    def preactivations(self, sae: SAE, x_BD: torch.Tensor, step: int) -> Pre:
        return above(sae, x_BD, torch.full_like(sae.b_enc, -sae.config.bandwidth * sae.unit / 2))

    def penalties(self, sae: SAE, pre: Pre, z: torch.Tensor, step: int) -> dict[str, tuple[torch.Tensor, float]]:
        active = Step.apply(pre.values, torch.zeros_like(pre.values), sae.config.bandwidth * sae.unit, True)
        rates = pre.sums(active) / pre.rows
        # A latent that is silent in a batch fires in less than one row of it: it is pulled up as one that fires in half a row.
        rates = rates + (rates.clamp_min(0.5 / pre.rows) - rates).detach()
        return {"kl": (kl_of_means(rates, rate_of(sae))[0], sae.coef(step))}
