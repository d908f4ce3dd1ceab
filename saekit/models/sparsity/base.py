"""What every sparsity variant is: options, how a code is made, what is added to the reconstruction, how it is saved.

A variant is a subclass of `Variant`, stateless; what it trains lives on the SAE. `loss` below is the common course of a step, and most
variants override one or two of its parts: which pre-activations come into question, their activation, penalties.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch

from saekit.errors import UsageError, check_choice, opt
from saekit.models.fused import Adam
from saekit.models.noise import Noise
from saekit.models.sparsity.dead import aux_terms
from saekit.models.sparsity.preactivations import Pre
from saekit.models.sparsity.start import scale_encoder_to_fit
from saekit.types import ActivationBatch, LossTerms

if TYPE_CHECKING:
    from saekit.models.sae import SAE

MAX_LATENTS = 2**31 - 1  # latent indices are int32
REVIVALS = ("aux", "resample", "none")


@dataclass(frozen=True)
class SAEConfig:
    """The options of every SAE; a variant's own come with its subclass."""

    d_in: int
    d_out: int = 0
    """Width of a target from another store; 0: the input itself is reconstructed."""
    parts: tuple[int, ...] = ()
    """Widths of several hooks side by side in a row (crosscoder); (): one hook."""
    latents: int = 0
    """Number of latents F; 0: expansion * d_in."""
    expansion: float = 32
    """Latents as a multiple of the width."""
    sparsity: str = "topk"
    """What makes the code sparse: docs/variants.md has the formulas."""
    noise: str = ""
    """KIND:LEVEL on the input: gaussian | masking | salt-pepper (saekit.models.noise); '': none."""
    decoder_norm: str = "unit"
    """unit | free"""
    skip: bool = False
    """A linear path past the code, W_skip (D_out, D_in), zero at the start: a skip transcoder."""
    revive: str = "aux"
    """How dead latents come back: aux (they predict what is left), resample (they are pointed at badly reconstructed rows), none."""
    aux_coef: float = 1 / 32
    """Weight of the auxiliary loss, in units of the target's variance."""
    aux_k: int = 0
    """Dead latents that predict the residual of a row; 0: d_in / 2."""
    aux_candidates: int = 2048
    """Dead latents that compete, the longest idle first."""
    aux_rows: int = 512
    """Rows of a batch in the auxiliary loss."""

    def resolved(self) -> SAEConfig:
        """The config with every default filled in. Raises UsageError on values that cannot be."""
        Noise.parse(self.noise)
        if self.latents < 0 or self.latents > MAX_LATENTS:
            raise UsageError(f"{opt('latents', self.latents)} must be between 1 and {MAX_LATENTS:,}")
        if not 0 < self.expansion * self.d_in < MAX_LATENTS:
            raise UsageError(f"{opt('expansion', self.expansion)} must be above 0")
        if self.skip and not self.d_out:
            raise UsageError(f"{opt('skip', True)} would pass the input itself on", f"give the module's output with {opt('target_store')}")
        check_choice("decoder_norm", self.decoder_norm, ("unit", "free"))
        check_choice("revive", self.revive, REVIVALS)
        latents = self.latents or max(round(self.expansion * self.d_in), 1)
        return replace(self, latents=latents, expansion=latents / self.d_in)


class Variant:
    config: ClassVar[type[SAEConfig]] = SAEConfig
    line: ClassVar[str] = ""
    """What it is, for lists."""
    homogeneous: ClassVar[bool] = True
    """encode(c x) = c encode(x) for c > 0 (threshold scaled too), so that the input's scale folds into biases."""
    active_above: ClassVar[float] = 0.0
    thresholded: ClassVar[bool] = False
    """A trained model's code is pre where pre > threshold, saved with the weights."""
    dense_start: ClassVar[bool] = False
    """Every latent of a row moves at once: such a code bears a lower rate only."""
    shift: ClassVar[float] = 1.5
    """Of a bias, where a threshold would be multiplied by e (steer)."""
    needs_previous: ClassVar[bool] = False
    """The loss looks at the row before each row in its example."""

    # -- parts of a step ---------------------------------------------------------------------------------------------------

    def preactivations(self, sae: SAE, x_BD: torch.Tensor, step: int) -> Pre:
        """Those that may be active."""
        raise NotImplementedError

    def activate(self, sae: SAE, pre: Pre) -> torch.Tensor:
        """The code's values, in the shape of pre.values."""
        return pre.values.relu()

    def penalties(self, sae: SAE, pre: Pre, z: torch.Tensor, step: int) -> dict[str, tuple[torch.Tensor, float]]:
        """name -> (term before weighting, weight)."""
        return {}

    def reconstruct(self, sae: SAE, pre: Pre, z: torch.Tensor, target_BD: torch.Tensor, past_BD: torch.Tensor | None):
        """(x_hat (B,D_out), error): the error is mean_b sum_d (target - x_hat)^2 unless a variant says otherwise. `past`: what
        goes past the code."""
        x_hat = pre.decode(z, sae.W_dec, sae.b_dec)
        x_hat = x_hat if past_BD is None else x_hat + past_BD
        return x_hat, squared_error(target_BD, x_hat)

    def loss(self, sae: SAE, x_BD: torch.Tensor, target_BD: torch.Tensor, step: int, batch: ActivationBatch) -> LossTerms:
        """`x` is what is encoded (with noise, where there is some), `target` what is reconstructed."""
        pre = self.preactivations(sae, x_BD, step)
        z = self.activate(sae, pre)
        x_hat, error = self.reconstruct(sae, pre, z, target_BD, sae.past(x_BD))
        weighted = {"reconstruction": (error, 1.0), **self.penalties(sae, pre, z, step)}
        weighted |= aux_terms(sae, x_BD, (x_hat - target_BD).detach())
        return summed(weighted, pre.fired(z.detach()), pre.metrics() | own_error(target_BD, x_hat))

    def reconstructed(self, sae: SAE, x_BD: torch.Tensor) -> torch.Tensor:
        """(B,D_out): x_hat by the code that is trained."""
        return sae.forward(x_BD).x_hat

    def decoder_rows(self, sae: SAE, latents: torch.Tensor) -> torch.Tensor:
        """W_dec of the given latents, differentiable in what is trained of it."""
        return sae.W_dec[latents]

    def state(self, sae: SAE) -> dict[str, float]:
        """What a run has come to know besides tensors, as JSON."""
        return {}

    def restore(self, sae: SAE, state: dict[str, float]) -> None:
        """Take up again what `state` gave."""

    def fired(self, sae: SAE, x_BD: torch.Tensor, step: int) -> torch.Tensor:
        """(F,): in how many rows each latent is active, as `loss` counts it."""
        pre = self.preactivations(sae, x_BD, step)
        return pre.fired(self.activate(sae, pre))

    def fused_step(self, sae: SAE, x_BD: torch.Tensor, step: int, adam: Adam) -> LossTerms | None:
        """Loss, gradients and Adam in one pass, where there are kernels for it (saekit.models.fused)."""
        return None

    # -- before, after, without training -------------------------------------------------------------------------------------

    def encode(self, sae: SAE, x_BD: torch.Tensor):
        """The code of a trained model: (B,F), or SparseCodes."""
        pre = torch.addmm(sae.b_enc, x_BD, sae.W_enc.T)
        return torch.where(pre <= sae.threshold, 0.0, pre) if self.thresholded else pre.relu_()  # NaN stays NaN

    def initialise(self, sae: SAE, sample_BD: torch.Tensor) -> None:
        """Called once W_enc, b_enc, W_dec, b_dec have their first values; may attach parameters that only training has."""
        scale_encoder_to_fit(sae, sample_BD[:4096])

    def start_at(self, sae: SAE, target_BD: torch.Tensor, sample_BD: torch.Tensor) -> None:
        """For a transcoder, after `initialise`: rows of its target, besides those of its input."""

    def revive(self, sae: SAE, dead: torch.Tensor) -> None:
        """Reset what the variant trains besides weights and biases, for latents that were resampled."""

    def steer(self, sae: SAE, factor: float) -> None:
        """Raise what latents must pass to be active: trained thresholds, where there are some, by this factor, else all biases alike."""
        if factor != 1.0:
            with torch.no_grad():
                sae.b_enc -= self.shift * sae.unit * math.log(factor)

    def after_step(self, sae: SAE) -> None:
        """Bring parameters back to their constraints."""

    def effective(self, sae: SAE) -> dict[str, torch.Tensor]:
        """W_enc, b_enc, W_dec, b_dec (and threshold) by which `encode` and `decode` give the trained code."""
        own = {name: getattr(sae, name).detach() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        return own | ({"threshold": sae.threshold} if self.thresholded else {})


def own_error(target_BD: torch.Tensor, x_hat_BD: torch.Tensor) -> dict[str, torch.Tensor]:
    """{"squared_error": ...}: that of the model's own x_hat, where the loss's reconstruction has more parts or another weight."""
    return {"squared_error": squared_error(target_BD, x_hat_BD.detach())}


def squared_error(x_BD: torch.Tensor, x_hat_BD: torch.Tensor) -> torch.Tensor:
    """mean_b sum_d (x - x_hat)^2."""
    return (x_BD - x_hat_BD).square().sum(1).mean()


def summed(weighted: dict[str, tuple[torch.Tensor, float]], fired_F: torch.Tensor, metrics: dict[str, torch.Tensor]) -> LossTerms:
    terms = {name: term for name, (term, _) in weighted.items()}
    weights = {name: weight for name, (_, weight) in weighted.items()}
    return LossTerms(sum(weights[name] * term for name, term in terms.items()), terms, weights, fired_F, metrics)
