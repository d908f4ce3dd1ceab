"""Controls of a steered latent: random directions and random latents of the same norm, in its
place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from saekit.errors import UsageError, opt
from saekit.intervention.live import AttachedDictionary
from saekit.models.catalog import restore
from saekit.models.sae.dictionary import Dictionary

CONTROLS = 8  # of each kind


@dataclass(frozen=True)
class Controls:
    """Dictionaries whose decoder rows are the controls."""

    hook: str
    kinds: tuple[Dictionary, Dictionary]
    """Random directions, random latents."""


def controls_of(attached: AttachedDictionary, latent: int, raw: bool, seed: int) -> Controls:
    """CONTROLS of each kind; a strength of 1 has the norm that it has of the latent. Raises
    UsageError for a dictionary without decoder rows."""
    sae = attached.model
    if not isinstance(sae, Dictionary) or len(attached.hooks) != 1:
        raise UsageError(
            f"{opt('dose')}: controls are for dictionaries with one hook and decoder rows"
        )
    # the norm of the latent, and other latents that fire
    (unit,) = attached.units.amounts((latent,), 1.0, raw, "dose")
    device, maxima = sae.W_dec.device, attached.units.maxima
    one = torch.tensor([[unit]], device=device, dtype=sae.W_dec.dtype)
    row_D = sae.decoder_rows(torch.tensor([latent], device=device))[0]
    names = torch.tensor([latent], device=device)
    width = sae.decoder_norms()[names] if sae.config.rescale_by_decoder_norm else 1.0
    norm = (one[0] * row_D / width / sae.config.output_factor).norm()
    fires = torch.ones(sae.latents, dtype=torch.bool) if maxima is None else maxima > 0
    fires[latent] = False
    # the rows
    generator = torch.Generator().manual_seed(seed)
    others = fires.nonzero()[:, 0]
    others = others[torch.randperm(len(others), generator=generator)[:CONTROLS]].to(device)
    random_CD = torch.randn(CONTROLS, sae.d_out, generator=generator).to(row_D)
    kinds = [
        _dictionary_of(sae, normalize(rows_CD, dim=1) * norm)
        for rows_CD in (random_CD, sae.decoder_rows(others))
    ]
    return Controls(attached.hooks[0], (kinds[0], kinds[1]))


def _dictionary_of(sae: Dictionary, rows_CD: torch.Tensor) -> Dictionary:
    """An SAE with these decoder rows, in the units of x that `sae` decodes to."""
    norm = "none" if sae.transcodes else sae.config.input_norm
    config = {"d_in": sae.d_out, "latents": len(rows_CD), "sparsity": "l1", "input_norm": norm}
    tensors = {
        "W_enc": torch.zeros_like(rows_CD),
        "b_enc": torch.zeros_like(rows_CD[:, 0]),
        "W_dec": rows_CD,
        "b_dec": torch.zeros_like(rows_CD[0]),
    }
    made = restore("sae", config, {name: value.cpu() for name, value in tensors.items()})
    assert isinstance(made, Dictionary)
    return made
