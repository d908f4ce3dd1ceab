"""`kl`: the mean activation of every latent is pulled to a rate rho by coef * sum_j KL(rho ||
rho_hat_j) (Ng, "Sparse autoencoder", CS294A notes). Three objectives, which differ in the code and
in what rho_hat is the mean of:

| `sparsity` | code | rho_hat_j |
|---|---|---|
| kl | ReLU(pre) | mean_b sigmoid(pre), over all entries: the mean probability of being active |
| kl-rates | ReLU(pre) | mean_b [pre > 0], the firing rate |
| kl-sigmoid | sigmoid(pre) | mean_b of the code, the classical form: its codes are dense |

The gradient of the firing rate is a window of width eps around 0 (jumprelu.py).

With `target_l0`, rho of kl-rates and kl-sigmoid is aim target_l0 / F, and a controller moves `aim`
until the code has that L0 (control.py): a larger weight would pull rare latents up as hard as
frequent ones down. Means of sigmoids say little about how many values are above 0: rho of kl is the
mean over latents of rho_hat_j, as a constant, which pulls them towards each other, and only the
biases are controlled. Without a target L0 its few active latents would take all rows
(docs/notes/log.md), so it always has one, unless that is set to 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Self

import torch
from saekit_kernels import sigmoid_means, sigmoid_reconstruction
from saekit_kernels.dense import kl_of_means

from saekit.errors import UsageError, opt
from saekit.models.codes import firing_counts
from saekit.models.sae import SAE
from saekit.models.sae.config import DecoderNorm, Revival
from saekit.models.sae.losses import loss_terms
from saekit.models.sae.preactivations import DensePre, Pre, SparsePre, above
from saekit.models.sparsity.jumprelu import Heaviside
from saekit.models.sparsity.penalised import Penalised, PenaltyConfig
from saekit.options import Doc
from saekit.types import ActivationBatch, LossTerms, Step

DEFAULT_L0 = 32  # of kl, as the k of topk; in a small dictionary a quarter of the latents


@dataclass(frozen=True)
class RateConfig(PenaltyConfig):
    target_rate: Annotated[
        float | None,
        Doc(
            "Mean activation that every latent is pulled to (default 0.01; with a target L0, that"
            " divided by the number of latents). kl: share of rows on which a latent is active,"
            " which is another way to give the target L0."
        ),
    ] = None

    default_rate = 0.01
    aimed_coef = 10.0
    """The default with target_l0: a rate that is steered must be held against the
    reconstruction."""
    steered = "aim"

    def resolved(self) -> Self:
        config = super().resolved()
        config = (
            replace(config, coef=self.aimed_coef)
            if self.coef is None and self.target_l0
            else config
        )
        default = self.target_l0 / config.n_latents if self.target_l0 else self.default_rate
        rate = default if self.target_rate is None else self.target_rate
        if not 0 < rate < 1:
            raise UsageError(f"{opt('target_rate', rate)} must be in (0, 1)")
        if self.target_l0 and not math.isclose(rate, default):
            raise UsageError(
                f"{opt('target_rate')} and {opt('target_l0')} both say how often latents are"
                " active",
                "drop one of them",
            )
        return replace(config, target_rate=rate)


def rate_of(sae: SAE) -> float:
    """rho of the coming step."""
    return min(sae.config.target_rate * sae.control.aim, 0.5)


@dataclass(frozen=True)
class KLSigmoidConfig(RateConfig):
    sparsity: str = "kl-sigmoid"
    decoder_norm: DecoderNorm = "free"
    revive: Revival = "none"

    default_coef = 0.5


class KLSigmoid(SAE):
    sparsity = "kl-sigmoid"
    config_class = KLSigmoidConfig
    line = "sigmoid codes, KL on their means"
    homogeneous = False  # codes stay in [0, 1] whatever the input's scale
    active_above = 0.5
    dense_start = True
    shift = 0.6  # every code moves with its bias, and batches vary

    def preactivations(self, x_BD: torch.Tensor, step: Step) -> Pre:
        return DensePre(torch.addmm(self.b_enc, x_BD, self.W_enc.T))

    def activate(self, pre: Pre) -> torch.Tensor:
        return pre.values.sigmoid()

    def penalties(
        self, pre: Pre, z: torch.Tensor, step: Step
    ) -> dict[str, tuple[torch.Tensor, float]]:
        return {"kl": (kl_of_means(z.mean(0), rate_of(self))[0], self.coef(step))}

    def code_of(self, x_BD: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.b_enc, x_BD, self.W_enc.T).sigmoid_()

    def loss_of(
        self, x_BD: torch.Tensor, target_BD: torch.Tensor, step: Step, batch: ActivationBatch
    ) -> LossTerms:
        if not self.is_autoencoder(x_BD, target_BD):
            terms = super().loss_of(x_BD, target_BD, step, batch)
            terms.fired = self.fired(x_BD.detach(), step)
            return terms
        coef, rate = self.coef(step), rate_of(self)
        result = sigmoid_reconstruction(
            x_BD, *self.weights, coef, rate, self.workspace, step.backend
        )
        terms = loss_terms(
            {"reconstruction": (result.reconstruction, 1.0), "kl": (result.penalty, coef)},
            result.fired_F,
            {},
        )
        terms.total = result.total  # it has the gradients
        return terms

    @torch.no_grad()
    def fired(self, x_BD: torch.Tensor, step: Step) -> torch.Tensor:
        return firing_counts(self.code_of(x_BD), 0.5)

    def start_from(self, sample_BD: torch.Tensor) -> None:
        self.start_near_rate()

    def make_parameters(self) -> None:
        with torch.no_grad():
            self.start_near_rate()

    def start_near_rate(self) -> None:
        """Codes start near the target rate, so that the penalty starts near its minimum."""
        self.b_enc.add_(math.log(self.config.target_rate / (1 - self.config.target_rate)))


@dataclass(frozen=True)
class SparseKLConfig(RateConfig):
    revive: Revival = "aux"

    default_coef = 10.0


@dataclass(frozen=True)
class KLConfig(SparseKLConfig):
    sparsity: str = "kl"

    steered = "biases"

    def resolved(self) -> Self:
        if self.target_l0 is not None:
            return super().resolved()
        latents = super().resolved().n_latents
        if self.target_rate is None:
            target = min(DEFAULT_L0, latents / 4)
        else:
            target = self.target_rate * latents
        return replace(self, target_l0=target).resolved()


class KL(Penalised):
    sparsity = "kl"
    config_class = KLConfig
    line = "ReLU codes, KL on the means of sigmoid(pre)"
    shift = 4.5  # the KL moves all biases too

    def preactivations(self, x_BD: torch.Tensor, step: Step) -> Pre:
        pre = above(self, x_BD, step)
        return WithMeans(pre, x_BD, self, step) if isinstance(pre, SparsePre) else pre

    def penalties(
        self, pre: Pre, z: torch.Tensor, step: Step
    ) -> dict[str, tuple[torch.Tensor, float]]:
        means = pre.means() if isinstance(pre, WithMeans) else pre.values.sigmoid().mean(0)
        rate = means.detach().mean() if self.config.target_l0 else rate_of(self)
        return {"kl": (kl_of_means(means, rate)[0], self.coef(step))}


class WithMeans(SparsePre):
    """The positive pre-activations; the others only contribute to the means."""

    def __init__(self, pre: SparsePre, x_BD: torch.Tensor, sae: SAE, step: Step) -> None:
        super().__init__(pre.codes, pre.values, pre.backend, pre.encoded)
        self.x_BD, self.sae, self.step = x_BD, sae, step

    def means(self) -> torch.Tensor:
        """(F,): mean_b sigmoid(pre), over all entries."""
        sae, plan = self.sae, self.step.encoder_plan
        return sigmoid_means(self.x_BD, sae.W_enc, sae.b_enc, sae.workspace, plan)


@dataclass(frozen=True)
class KLRatesConfig(SparseKLConfig):
    sparsity: str = "kl-rates"
    bandwidth: Annotated[
        float,
        Doc("Width of the window through which firing rates learn, in units of normalized input."),
    ] = 0.5


class KLRates(Penalised):
    sparsity = "kl-rates"
    config_class = KLRatesConfig
    line = "ReLU codes, KL on firing rates"

    def preactivations(self, x_BD: torch.Tensor, step: Step) -> Pre:
        return above(
            self, x_BD, step, torch.full_like(self.b_enc, -self.config.bandwidth * self.unit / 2)
        )

    def penalties(
        self, pre: Pre, z: torch.Tensor, step: Step
    ) -> dict[str, tuple[torch.Tensor, float]]:
        active = Heaviside.apply(
            pre.values, torch.zeros_like(pre.values), self.config.bandwidth * self.unit, True
        )
        rates = pre.sums(active) / pre.rows
        # A latent that does not fire in a batch has a rate below one row of it: it is pulled up
        # like one that fires in half a row.
        rates = rates + (rates.clamp_min(0.5 / pre.rows) - rates).detach()
        return {"kl": (kl_of_means(rates, rate_of(self))[0], self.coef(step))}
