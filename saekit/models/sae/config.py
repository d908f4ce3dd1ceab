"""The options of every SAE; a variant's own come with its subclass (saekit.models.sparsity)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from saekit.errors import UsageError, check_choice, opt
from saekit.models.noise import Noise

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
    """How dead latents come back: aux (they predict what is left), resample (they are pointed at
    badly reconstructed rows), none."""
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
            raise UsageError(
                f"{opt('latents', self.latents)} must be between 1 and {MAX_LATENTS:,}"
            )
        if not 0 < self.expansion * self.d_in < MAX_LATENTS:
            raise UsageError(f"{opt('expansion', self.expansion)} must be above 0")
        if self.skip and not self.d_out:
            raise UsageError(
                f"{opt('skip', True)} would pass the input itself on",
                f"give the module's output with {opt('target_store')}",
            )
        check_choice("decoder_norm", self.decoder_norm, ("unit", "free"))
        check_choice("revive", self.revive, REVIVALS)
        latents = self.latents or max(round(self.expansion * self.d_in), 1)
        return replace(self, latents=latents, expansion=latents / self.d_in)
