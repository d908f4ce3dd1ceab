"""What makes an SAE's code sparse: each variant is an activation, its loss and its starting point.

Shapes: B rows, D d_in, F latents. x is the normalised training input, E||x||^2 = D; the reconstruction term is the mean over rows of
the sum over D of (x - x_hat)^2. A variant is one class here and one line in VARIANTS.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from saekit_kernels import SparseCodes, encode_topk, relu_reconstruction, sigmoid_reconstruction, topk_reconstruction
from saekit_kernels.operations import OPERATIONS, Encoded
from saekit_kernels.reference import encode_topk_dense

from saekit.models import penalties
from saekit.models.fused import Adam, encoder_metrics, fused_sparse_step
from saekit.models.noise import step_generator
from saekit.types import LossTerms

if TYPE_CHECKING:
    from saekit.models.sae import SAE


def squared_error(x_BD: torch.Tensor, x_hat_BD: torch.Tensor) -> torch.Tensor:
    """mean_b sum_d (x - x_hat)^2."""
    return (x_BD - x_hat_BD).square().sum(1).mean()


def auxk_loss(sae: SAE, x_BD: torch.Tensor, residual_BD: torch.Tensor, dead: torch.Tensor) -> torch.Tensor:
    """How badly the dead latents predict what is left, ||e_hat - e||^2 / ||e - mean e||^2 with e = x - x_hat taken as constant
    (Gao et al. 2024, arXiv 2406.04093, appendix A.2).

    e_hat uses the k_aux largest dead pre-activations *without* a ReLU: a dead latent is one whose pre-activation is negative
    everywhere, and a ReLU would give exactly those no gradient. To bound the cost, at most `aux_candidates` dead latents (the
    longest idle ones) compete and the first `aux_rows` rows of the batch are used: the rows are shuffled, so that is a fair sample.
    """
    x, e = x_BD[: sae.config.aux_rows], -residual_BD[: sae.config.aux_rows].detach()
    pre = torch.addmm(sae.b_enc[dead], x, sae.W_enc[dead].T)
    k = min(sae.config.aux_k or max(sae.d_in // 2, 1), len(dead))
    if k < len(dead):
        idx = pre.detach().topk(k, dim=1, sorted=False).indices
        pre = torch.zeros_like(pre).scatter(1, idx, pre.gather(1, idx))
    variance = (e - e.mean(0)).square().sum(1).mean().clamp_min(1e-12)
    return squared_error(e, pre @ sae.W_dec[dead]) / variance


class TopK:
    """The k largest ReLU(pre) of each row (Makhzani and Frey 2013, arXiv 1312.5663; Gao et al. 2024, arXiv 2406.04093)."""

    options = frozenset({"k", "aux_coef", "aux_k", "aux_candidates", "aux_rows"})  # of SAEConfig, which no other variant takes
    homogeneous = True  # encode(c x) = c encode(x) for c > 0, so that the input scale folds into biases
    active_above = 0.0
    resamples = False

    def encode(self, sae: SAE, x_BD: torch.Tensor) -> SparseCodes:
        return encode_topk(x_BD, sae.W_enc, sae.b_enc, sae.config.k, sae.workspace)

    def dense_code(self, sae: SAE, x_BD: torch.Tensor) -> torch.Tensor:
        return encode_topk_dense(x_BD, sae.W_enc, sae.b_enc, sae.config.k)

    def loss(self, sae: SAE, x_BD: torch.Tensor, step: int) -> LossTerms:
        made = topk_reconstruction(
            x_BD, *sae.weights, sae.config.k, sae.workspace, "sparse" if sae.backend == "triton" else "auto", sae.encoder_plan, sae.backend
        )
        terms, weights, total = {"reconstruction": made.reconstruction}, {"reconstruction": 1.0}, made.total
        dead = sae.longest_dead(sae.config.aux_candidates)
        if sae.config.aux_coef > 0 and dead is not None:
            terms["aux"] = auxk_loss(sae, x_BD, made.residual_BD, dead)
            # The paper normalises both losses by a variance; here the reconstruction is D times that.
            weights["aux"] = sae.config.aux_coef * sae.d_in
            total = total + weights["aux"] * terms["aux"]
        return LossTerms(total, terms, weights, made.fired_F, encoder_metrics(made.redone, made.lost))

    def fused_step(self, sae: SAE, x_BD: torch.Tensor, step: int, adam: Adam) -> LossTerms | None:
        if sae.config.aux_coef > 0 and sae.longest_dead(1) is not None:
            return None
        return fused_sparse_step(sae, x_BD, encode_for_fusion(sae, x_BD, sae.config.k), 0.0, adam)

    def initialise(self, sae: SAE, sample_BD: torch.Tensor) -> None:
        scale_encoder_to_fit(sae, sample_BD)


def encode_for_fusion(sae: SAE, x_BD: torch.Tensor, k: int | None) -> Encoded:
    """The k largest, or all positive pre-activations for None, by the Triton path from the encoder's bf16 copy where there is one."""
    W_low = sae.shadows.of("W_enc", sae.W_enc)
    W = sae.W_enc if W_low is None else W_low
    if k is None:
        return OPERATIONS["triton"].encode_relu(x_BD, W, sae.b_enc, sae.workspace, "auto", None)
    return OPERATIONS["triton"].encode_topk(x_BD, W, sae.b_enc, k, sae.workspace, "auto")


class L1:
    """ReLU codes with the L1 penalty mean_b sum_j z_bj ||w_j||, its coefficient warmed up linearly: weighted by the decoder norm, so
    that it cannot be lowered by shifting scale into the decoder (Anthropic, "Circuits Updates - April 2024")."""

    options = frozenset({"coef", "coef_warmup"})
    homogeneous = True
    active_above = 0.0
    resamples = True

    def encode(self, sae: SAE, x_BD: torch.Tensor) -> torch.Tensor:
        return torch.addmm(sae.b_enc, x_BD, sae.W_enc.T).relu_()

    dense_code = encode

    def loss(self, sae: SAE, x_BD: torch.Tensor, step: int) -> LossTerms:
        coef, unit = sae.warmed_coef(step), sae.config.decoder_norm == "unit"
        arm = sae.arm if sae.backend == "triton" else "auto"
        made = relu_reconstruction(x_BD, *sae.weights, coef, unit, sae.workspace, arm, sae.encoder_plan, sae.backend)
        terms = {"reconstruction": made.reconstruction, "l1": made.penalty}
        return LossTerms(made.total, terms, {"reconstruction": 1.0, "l1": coef}, made.fired_F, encoder_metrics(made.redone, made.lost))

    def fused_step(self, sae: SAE, x_BD: torch.Tensor, step: int, adam: Adam) -> LossTerms | None:
        if sae.arm == "dense":
            return None
        return fused_sparse_step(sae, x_BD, encode_for_fusion(sae, x_BD, None), sae.warmed_coef(step), adam)

    def initialise(self, sae: SAE, sample_BD: torch.Tensor) -> None:
        scale_encoder_to_fit(sae, sample_BD)


class KL:
    """Sigmoid codes whose mean activation is pulled to `target_rate` by sum_j KL(rho || mean_b f_bj) (Ng, CS294A notes)."""

    options = frozenset({"coef", "coef_warmup", "target_rate"})
    homogeneous = False  # codes stay in [0, 1] whatever the input's scale
    active_above = 0.5
    resamples = False

    def encode(self, sae: SAE, x_BD: torch.Tensor) -> torch.Tensor:
        return torch.addmm(sae.b_enc, x_BD, sae.W_enc.T).sigmoid_()

    dense_code = encode

    def loss(self, sae: SAE, x_BD: torch.Tensor, step: int) -> LossTerms:
        coef, rate = sae.warmed_coef(step), sae.config.target_rate
        made = sigmoid_reconstruction(x_BD, *sae.weights, coef, rate, sae.workspace, sae.backend)
        terms = {"reconstruction": made.reconstruction, "kl": made.penalty}
        return LossTerms(made.total, terms, {"reconstruction": 1.0, "kl": coef}, made.fired_F)

    def fused_step(self, sae: SAE, x_BD: torch.Tensor, step: int, adam: Adam) -> None:
        return None  # the gradient is dense

    def initialise(self, sae: SAE, sample_BD: torch.Tensor) -> None:
        """Codes start near the target rate, so that the penalty starts near its minimum."""
        sae.b_enc += math.log(sae.config.target_rate / (1 - sae.config.target_rate))


def denoising_loss(sae: SAE, x_BD: torch.Tensor, step: int) -> LossTerms:
    """The variant's loss with noise on the encoder's input and the clean rows as the aim. The kernels take one x for both, so this is the
    dense specification by autograd; dead latents are left to the noise (no auxiliary loss)."""
    noisy = sae.noise(x_BD, step_generator(sae.seed, step, x_BD.device))
    z_BF = sae.variant.dense_code(sae, noisy)
    terms = {"reconstruction": squared_error(x_BD, torch.addmm(sae.b_dec, z_BF, sae.W_dec))}
    weights = {"reconstruction": 1.0}
    if sae.config.sparsity == "l1":
        terms["l1"], weights["l1"] = penalties.l1(z_BF, sae.W_dec.norm(dim=1)), sae.warmed_coef(step)
    if sae.config.sparsity == "kl":
        terms["kl"], weights["kl"] = penalties.kl(z_BF, sae.config.target_rate), sae.warmed_coef(step)
    total = sum(weights[name] * term for name, term in terms.items())
    return LossTerms(total, terms, weights, (z_BF.detach() > sae.active_above).sum(0))


def scale_encoder_to_fit(sae: SAE, sample_BD: torch.Tensor) -> None:
    """Multiply the encoder by the one factor that minimises the first reconstruction error on the sample.

    The codes are homogeneous in the encoder, so the best factor is <x - b, x_hat - b> / ||x_hat - b||^2. It replaces a magic
    initial norm, on which half of what separates SAE libraries at equal rates depends (docs/log.md).
    """
    shape = sae.decode(sae.encode(sample_BD)) - sae.b_dec
    factor = ((sample_BD - sae.b_dec) * shape).sum() / shape.square().sum().clamp_min(1e-12)
    sae.W_enc *= factor
    sae.b_enc *= factor


VARIANTS: dict[str, TopK | L1 | KL] = {"topk": TopK(), "l1": L1(), "kl": KL()}
