"""The reconstruction of rows inside a running model, with gradients, and its effect on the model's
output.

The SAE is in eval mode, so that a row's code does not depend on the rest of the batch. Which
latents are active is constant; their values have gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as nnF

from saekit.harvesting.hooks import capture
from saekit.harvesting.inputs import ContextBatch
from saekit.harvesting.models import LiveModel
from saekit.harvesting.run import within_norm
from saekit.intervention.splice import splice
from saekit.models.codes import Code
from saekit.models.normalizer import Normalizer
from saekit.models.sae import SAE
from saekit.store.reader import Store


@dataclass(frozen=True)
class Spliced:
    """One batch, with its rows as they are and reconstructed."""

    x_BD: torch.Tensor  # the rows that were replaced, in units of training
    x_hat_BD: torch.Tensor
    code: Code
    kl: torch.Tensor
    """Mean over these rows of KL(p || p_spliced) at their positions, in nats."""


def run_spliced(
    live: LiveModel, sae: SAE, normalizer: Normalizer, batch: ContextBatch, store: Store
) -> Spliced | None:
    """Two forward passes; in the second, x_hat replaces the rows of this batch that would be in
    `store`.

    `sae` takes rows that `normalizer` has been applied to. The graph starts at the hook. None when
    there is no such row.
    """
    # the model as it is
    hook, limit = store.spec.hook, store.manifest.norm_limit
    with torch.no_grad(), capture(live, hook) as states:
        logits_BTV = live.forward(batch.inputs).logits

    # the rows in the store's scope, reconstructed
    mask_BT = within_norm(
        batch.rows_for_scope(store.spec.scope).to(live.device), states, {hook: limit}
    )
    if not mask_BT.any():
        return None
    log_p_NV = log_probabilities(logits_BTV[mask_BT])
    del logits_BTV  # it is the largest tensor here, and the second pass makes another
    x_BD = normalizer.apply(states[hook][mask_BT].to(sae.W_enc.dtype))
    output = sae(x_BD)

    # the model with these rows
    with splice(live, hook, lambda _: normalizer.invert(output.x_hat), mask_BT):
        spliced_BTV = live.forward(batch.inputs).logits
    kl = divergence(log_p_NV, log_probabilities(spliced_BTV[mask_BT]))
    return Spliced(x_BD, output.x_hat, output.code, kl)


def divergence(log_p_NV: torch.Tensor, log_q_NV: torch.Tensor) -> torch.Tensor:
    """Mean over N of KL(p || q), in nats."""
    return nnF.kl_div(log_q_NV, log_p_NV, reduction="batchmean", log_target=True)


def log_probabilities(logits_NV: torch.Tensor) -> torch.Tensor:
    # sums over V are too long for 16 bits
    return logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)).log_softmax(1)
