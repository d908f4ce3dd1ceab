"""How latents that have stopped firing return: by nudges, an auxiliary loss, or resampling.

Which latents these are is counted in saekit.training.dead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from saekit.models.base import unit_rows_
from saekit.types import ActivationBatch, Step

if TYPE_CHECKING:
    from saekit.models.sae.module import SAE

RESAMPLED_NORM = 0.2  # of the other encoder rows
# A nudge closes a share of the gap (`SAE.nudge_share`) on so many rows, those on which a latent is
# closest to firing. With only the closest row, latents learn single rows: more of them die again,
# and the held-out error is larger.
NEAREST = 8
# Bounds on the cost of a nudge: rows of the batch, and latents, the longest idle first.
NUDGE_ROWS, NUDGED = 512, 2048


def auxk_loss(
    sae: SAE, x_BD: torch.Tensor, residual_BD: torch.Tensor, dead: torch.Tensor
) -> torch.Tensor:
    """How badly the dead latents predict the residual, ||e_hat - e||^2 / ||e - mean e||^2, where e
    = x - x_hat is constant (Gao et al. 2024, arXiv 2406.04093, appendix A.2).

    e_hat uses the k_aux largest dead pre-activations *without* a ReLU: a dead latent is one whose
    pre-activation is negative everywhere, and a ReLU would give exactly those no gradient. To bound
    the cost, at most `aux_candidates` dead latents compete, those idle for longest, and the first
    `aux_rows` rows of the batch are used: rows are shuffled, so that is a fair sample.
    """
    x, e = x_BD[: sae.config.aux_rows], -residual_BD[: sae.config.aux_rows].detach()
    pre = torch.addmm(sae.b_enc[dead], x, sae.W_enc[dead].T)
    # keep the k largest
    k = min(sae.config.aux_k or max(sae.d_in // 2, 1), len(dead))
    if k < len(dead):
        idx = pre.detach().topk(k, dim=1, sorted=False).indices
        pre = torch.zeros_like(pre).scatter(1, idx, pre.gather(1, idx))
    variance = (e - e.mean(0)).square().sum(1).mean().clamp_min(1e-12)
    return (e - pre @ sae.decoder_rows(dead)).square().sum(1).mean() / variance


def aux_terms(
    sae: SAE, x_BD: torch.Tensor, residual_BD: torch.Tensor, step: Step
) -> dict[str, tuple[torch.Tensor, float]]:
    """{"aux": (term, weight)} if the SAE has an auxiliary loss and some latents are dead, else {}.
    `residual` is x_hat - target."""
    dead = step.longest_dead(sae.config.aux_candidates)
    if not _has_aux_loss(sae) or dead is None:
        return {}
    # The paper divides both losses by a variance; here the reconstruction is not divided, and is D
    # times as large when rows are centered and scaled.
    weight = sae.config.aux_coef * sae.d_out * sae.unit**2
    return {"aux": (auxk_loss(sae, x_BD, residual_BD, dead), weight)}


def has_aux_term(sae: SAE, step: Step) -> bool:
    """Whether the loss of this step has an auxiliary term."""
    return _has_aux_loss(sae) and step.longest_dead(1) is not None


def _has_aux_loss(sae: SAE) -> bool:
    return sae.config.revive == "aux" and sae.config.aux_coef > 0


def nudge(sae: SAE, dead: torch.Tensor, batch: ActivationBatch, step: Step) -> None:
    """Move the encoder rows and biases of dead latents toward firing; nothing here waits for the
    device.

    A latent's gap on a row is how far its pre-activation is below the level that makes it active.
    The smallest change of (w, b) that closes `nudge_share` of the mean gap on its NEAREST rows
    lies along (mean x, 1). It is made directly instead of through a loss: Adam would turn the
    smallest gradient of a latent that never fired into full steps, and the reconstruction's
    gradients stay what they are. Once the latent fires, the loss trains it.

    Where `turns_dead`, decoder rows turn by the same share toward what these rows lack, so that a
    latent whose first code is as large as its threshold does not return with a direction that no
    row ever trained.
    """
    sae.shadows.clear()
    dead, x = dead[:NUDGED], batch.x[:NUDGE_ROWS]
    pre = torch.addmm(sae.b_enc[dead], x, sae.W_enc[dead].T)
    gaps, rows = (sae.firing_level(x, dead, step) - pre).T.topk(min(NEAREST, len(x)), largest=False)
    # Since the last poll a latent may have come back.
    is_dead = gaps.amin(1) > 0
    x_mean = torch.nn.functional.embedding_bag(rows, x, mode="mean")
    change = sae.nudge_share * gaps.mean(1).where(is_dead, 0.0) / (x_mean.square().sum(1) + 1)
    if sae.turns_dead:
        target = batch.x if batch.target is None else batch.target
        lack = target[: len(x)] - sae.reconstructed(x, step)  # before the encoder moves
        lack = torch.nn.functional.embedding_bag(rows, lack, mode="mean")
        _turn(sae.W_dec, dead, lack, sae.nudge_share * is_dead)
    sae.W_enc.index_add_(0, dead, change[:, None] * x_mean)
    sae.b_enc.index_add_(0, dead, change)
    sae.biases_moved(dead, change)


def _turn(
    W_FD: torch.Tensor, rows: torch.Tensor, toward: torch.Tensor, share: torch.Tensor
) -> None:
    """Replace the directions of these rows of W by (1 - share) of themselves and share (n,) of
    `toward`; norms stay."""
    W = W_FD[rows]
    norm = W.norm(dim=1, keepdim=True)
    turned = torch.lerp(W, norm * unit_rows_(toward), share[:, None])
    W_FD[rows] = torch.where(share[:, None] > 0, norm * unit_rows_(turned), W)


def resample(
    sae: SAE, dead: torch.Tensor, batch: ActivationBatch, generator: torch.Generator, step: Step
) -> None:
    """Point dead latents, at most as many as there are rows, at badly reconstructed rows: one row
    each, drawn with probability ~ loss^2 (Bricken et al. 2023, "Towards monosemanticity"). The
    decoder lies along the row as seen from b_dec, the encoder likewise, with a fifth of the norm of
    the other latents.

    The paper's bias of 0 lets such a latent fire on every second row, and thousands of them at 32x
    undo the sparsity at once. Here it fires where a row's component along it exceeds half of that
    of its own row.
    """
    sae.shadows.clear()
    x, target = batch.x, batch.x if batch.target is None else batch.target
    # Draw rows by their loss, on the CPU, where the generator is, whatever the device.
    loss = (target - sae.reconstructed(x, step)).square().sum(1)
    weight = loss.square().cpu() + 1e-12
    rows = torch.multinomial(weight, len(dead), generator=generator).to(x.device)
    # Decoder and encoder point at them.
    origin = torch.zeros_like(x[0]) if sae.transcodes else sae.b_dec
    direction = unit_rows_(x[rows] - origin)
    alive = torch.ones(sae.latents, dtype=torch.bool, device=dead.device)
    alive[dead] = False
    norm = RESAMPLED_NORM * sae.W_enc[alive].norm(dim=1).mean() if alive.any() else RESAMPLED_NORM
    sae.W_dec[dead] = unit_rows_(target[rows] - sae.b_dec)
    sae.W_enc[dead] = norm * direction
    # The bias is passed at half of the row's own component.
    along = ((x[rows] - origin) * direction).sum(1)
    sae.b_enc[dead] = -norm * (direction @ origin + along / 2)
    sae.reset_latents(dead)
