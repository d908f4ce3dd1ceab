"""The options of every SAE; a variant's own come with its subclass (saekit.models.sparsity)."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Annotated, Literal, Self, get_args

from saekit.errors import UsageError, check_choice, opt
from saekit.models.noise import Noise
from saekit.models.sae.input_norm import InputNorm
from saekit.options import Doc, check

MAX_LATENTS = 2**31 - 1  # latent indices are int32
EXPANSION = 32  # where neither expansion nor latents is given
LOADED_ONLY = (
    "subtract_b_dec",
    "input_norm",
    "input_factor",
    "output_factor",
    "rescale_by_decoder_norm",
    "keep_negative",  # of topk
)
RESCALED = ("topk", "abs-topk", "jumprelu", "l1")
DecoderNorm = Literal["unit", "free"]
Revival = Literal["nudge", "aux", "resample", "none"]


@dataclass(frozen=True)
class SAEConfig:
    """The options of every SAE. Fields without a Doc come from the data."""

    d_in: int
    d_out: int = 0
    """Width of a target from another store; 0: the input itself is reconstructed."""
    parts: tuple[int, ...] = ()
    """Widths of several hooks side by side in a row (crosscoder); (): one hook."""
    subtract_b_dec: bool = False
    """b_dec is subtracted from x before the encoder, as published dictionaries do; saekit's own
    training has it in b_enc. Only for weights that are loaded, like the next four."""
    input_norm: InputNorm = "none"
    """What each row is normalized by before the encoder; undone on x_hat
    (saekit.models.sae.input_norm). A transcoder's x_hat is the target's: nothing is undone."""
    input_factor: float = 1.0
    """The normalized x is multiplied by it before the encoder."""
    output_factor: float = 1.0
    """x_hat is divided by it after the decoder, before the norm is undone."""
    rescale_by_decoder_norm: bool = False
    """Latents compete by pre_j ||w_j||, which is also the code; the decoder's rows then act as if
    they had norm 1. For the variants in RESCALED."""
    sparsity: Annotated[
        str,
        Doc("What makes the code sparse; `saekit models sae` lists the variants.", metavar="NAME"),
    ] = "topk"
    expansion: Annotated[
        float | None, Doc("Latents as a multiple of the width of the rows (default 32).")
    ] = None
    latents: Annotated[int | None, Doc("Number of latents, in place of the expansion.")] = None
    noise: Annotated[
        str | None,
        Doc(
            "Noise on the input: gaussian:SD, masking:SHARE or salt-pepper:SHARE.",
            metavar="KIND:LEVEL",
        ),
    ] = None
    decoder_norm: Annotated[
        DecoderNorm, Doc("Norm of the decoder vectors: held at 1, or learned.")
    ] = "unit"
    skip: Annotated[
        bool,
        Doc("With a target store: a linear skip connection past the code (skip transcoder)."),
    ] = False
    revive: Annotated[
        Revival,
        Doc(
            "How dead latents are brought back: nudge (their encoder moves toward the rows on which"
            " they nearly fire), aux (they predict the residual), resample (they are pointed at"
            " badly reconstructed rows), none (not at all). Where nudge is the default, none is so"
            " with fewer than three training rows per latent."
        ),
    ] = "nudge"
    aux_coef: Annotated[
        float, Doc("Weight of the auxiliary loss, in units of the target's variance.")
    ] = 1 / 32
    aux_k: Annotated[
        int | None,
        Doc("Dead latents that predict the residual of a row (default: half the width)."),
    ] = None
    aux_candidates: Annotated[
        int, Doc("Dead latents that compete to predict it, the longest idle first.")
    ] = 2048
    aux_rows: Annotated[int, Doc("Rows per batch that the auxiliary loss uses.")] = 512

    def resolved(self) -> Self:
        """The config with every default filled in. Raises UsageError on values that cannot be."""
        check(self)
        Noise.parse(self.noise)
        if self.latents is not None and not 1 <= self.latents <= MAX_LATENTS:
            raise UsageError(
                f"{opt('latents', self.latents)} must be between 1 and {MAX_LATENTS:,}"
            )
        expansion = EXPANSION if self.expansion is None else self.expansion
        if not 0 < expansion * self.d_in < MAX_LATENTS:
            raise UsageError(f"{opt('expansion', expansion)} must be above 0")
        self._check_loaded()
        if self.skip and not self.d_out:
            raise UsageError(
                f"{opt('skip', True)} would pass the input itself on",
                f"give the module's output with {opt('target_store')}",
            )
        latents = self.latents or max(round(expansion * self.d_in), 1)
        return replace(self, latents=latents, expansion=latents / self.d_in)

    def _check_loaded(self) -> None:
        """Raise UsageError on values of LOADED_ONLY that cannot be."""
        if self.subtract_b_dec and self.d_out:
            raise UsageError(
                "subtract_b_dec does not apply to a transcoder: b_dec belongs to the target"
            )
        check_choice("input_norm", self.input_norm, get_args(InputNorm))
        if not (0 < self.input_factor < math.inf and 0 < self.output_factor < math.inf):
            raise UsageError("input_factor and output_factor must be above 0")
        if self.rescale_by_decoder_norm and self.sparsity not in RESCALED:
            raise UsageError(f"rescale_by_decoder_norm does not apply to {self.sparsity}")

    @property
    def n_latents(self) -> int:
        """F of a resolved config."""
        assert self.latents is not None
        return self.latents

    @property
    def loaded_only(self) -> list[str]:
        """The fields that only loaded weights have and that are not at their defaults: training
        refuses them."""
        return [
            field.name
            for field in fields(self)
            if field.name in LOADED_ONLY and getattr(self, field.name) != field.default
        ]
