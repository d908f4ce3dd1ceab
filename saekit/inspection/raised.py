"""The output token that each of some latents raises most."""

from __future__ import annotations

import torch
from torch import nn

from saekit.errors import DataError, opt
from saekit.inspection.opening import InspectedModel
from saekit.inspection.output_head import logit_test, output_head
from saekit.inspection.output_tests import told
from saekit.inspection.relate import output_tokens, standing_out_by_chance
from saekit.inspection.show import token_texts
from saekit.store.reader import Store


@torch.no_grad()
def raised_tokens(
    inspected: InspectedModel, latents: list[int], live: nn.Module | None = None
) -> dict[int, str]:
    """Latent -> the token whose logit its decoder row raises most on the direct path, for those
    whose largest logits stand out more than those of 99 % of random directions, together or by
    itself: the rule of the page.

    Loads the language model. Raises DataError where the output head does not read the decoder.
    """
    store, W_dec_FD = inspected.store, inspected.directions()
    if not isinstance(store, Store) or store.spec.modality != "text" or W_dec_FD is None:
        raise DataError(
            f"{inspected.name} raises no output tokens: that takes decoder rows at one hook of a"
            " language model",
            f"drop {opt('raises', True)}",
        )
    head, why = output_head(inspected, store, live)
    if head is None:
        raise DataError(f"no output tokens: {why}", f"drop {opt('raises', True)}")
    texts = token_texts(store)
    tokens, apart_N2K = output_tokens(
        W_dec_FD.detach().float().cpu(),
        torch.tensor(latents, dtype=torch.int64),
        head.W_U_ND,
        lambda row: texts.alone(head.ids[row]),
    )
    by_chance = standing_out_by_chance(head.W_U_ND)
    return {
        latent: ends["top"][0]["token"]
        for latent, ends, apart_2K in zip(latents, tokens, apart_N2K)
        if told(logit_test(apart_2K, by_chance), "raised") != 0
    }
