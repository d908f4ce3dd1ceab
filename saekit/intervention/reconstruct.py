"""What a loaded SAE makes of rows inside a running model: a reconstruction with gradients, and what
that does to the model's output.

Its code is that of a trained model, in eval mode, so that a row's code does not depend on the other
rows. Which latents are active is constant; their values have gradients.
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
    """One batch, run as it is and with its rows reconstructed."""

    x_BD: torch.Tensor  # the rows that were replaced, in units of training
    x_hat_BD: torch.Tensor
    code: Code
    kl: torch.Tensor
    """mean over these rows of KL(p || p_spliced) at their positions, in nats."""


def run_spliced(
    live: LiveModel, sae: SAE, normalizer: Normalizer, batch: ContextBatch, store: Store
) -> Spliced | None:
    """Two forward passes; the second runs on with x_hat in place of the rows that `store` would
    hold of this batch.

    `sae` takes rows that `normalizer` has been applied to. The graph begins at the hook. None when
    there is no such row.
    """
    hook, limit = store.spec.hook, store.manifest.norm_limit
    with torch.no_grad(), capture(live, hook) as states:
        logits_BTV = live.forward(batch.inputs).logits
    mask_BT = within_norm(
        batch.rows_for_scope(store.spec.scope).to(live.device), states, {hook: limit}
    )
    if not mask_BT.any():
        return None
    log_p_NV = _log_probabilities(logits_BTV[mask_BT])
    del logits_BTV  # it is the largest tensor here, and the second pass makes another
    x_BD = normalizer.apply(states[hook][mask_BT].to(sae.W_enc.dtype))
    output = sae(x_BD)
    with splice(live, hook, lambda _: normalizer.invert(output.x_hat), mask_BT):
        spliced_BTV = live.forward(batch.inputs).logits
    return Spliced(
        x_BD,
        output.x_hat,
        output.code,
        divergence(log_p_NV, _log_probabilities(spliced_BTV[mask_BT])),
    )


def divergence(log_p_NV: torch.Tensor, log_q_NV: torch.Tensor) -> torch.Tensor:
    """mean over N of KL(p || q), in nats."""
    return nnF.kl_div(log_q_NV, log_p_NV, reduction="batchmean", log_target=True)


def _log_probabilities(logits_NV: torch.Tensor) -> torch.Tensor:
    # sums over V are too long for 16 bits
    return logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)).log_softmax(1)
