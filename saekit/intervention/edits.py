"""Edits of a code, and what they change in the rows that the code stands for.

Edits act in the order in which they were made, each on the code z' that the former ones left, also
its condition. From z' only its difference to z is decoded, so that few latents cost few rows of the
decoder, and a row whose code an edit leaves as it is keeps its bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch

from saekit.intervention.positions import Examples, Positions
from saekit.models.autoencoder import Autoencoder
from saekit.models.sae.dictionary import Dictionary

Verb = Literal["add", "clamp", "scale", "keep_only", "swap"]


class Condition(NamedTuple):
    """z' of `latent` is above `above`, in the code's own units."""

    latent: int
    above: float


@dataclass(frozen=True, eq=False)
class Edit:
    """One change of the code, in the code's own units."""

    verb: Verb
    latents: tuple[int, ...] = ()
    amounts: tuple[float, ...] = ()
    """One per latent: what is added, the value, or the factor."""
    codes: torch.Tensor | None = None
    """(1 or B, 1 or T, F) of a swap."""
    positions: Positions = "all"
    examples: Examples | None = None
    conditions: tuple[Condition, ...] = ()
    label: str = ""
    """The call, for lists of edits."""

    @property
    def needs_code(self) -> bool:
        """Whether z' - z depends on z."""
        return self.verb != "add" or bool(self.conditions)

    @property
    def whole(self) -> bool:
        """Whether it touches all latents."""
        return self.verb in ("keep_only", "swap")

    def __str__(self) -> str:
        return self.label


class Placed(NamedTuple):
    """An edit with the rows (N,) of a pass that it applies to."""

    edit: Edit
    rows: torch.Tensor | None
    """bool; None: all."""
    codes_NF: torch.Tensor | None
    """Of a swap: the new code of each row."""


class Change(NamedTuple):
    """x' - x of N rows."""

    values: torch.Tensor
    """(N,D_out)."""
    changed: torch.Tensor
    """(N,1) bool: the code is another one."""


def code_change(model: Autoencoder, x_ND: torch.Tensor | None, edits: Sequence[Placed]) -> Change:
    """decode(z') - decode(z) for the codes z of rows x, undone what the model normalizes rows by.

    x may be None where `needs_rows` says so.
    """
    if not isinstance(model, Dictionary):
        assert x_ND is not None
        z, new = _whole_codes(model, x_ND, edits)
        return Change(model.decode(new) - model.decode(z), (new != z).any(1, keepdim=True))
    if any(placed.edit.whole for placed in edits):
        assert x_ND is not None
        z, new = _whole_codes(model, x_ND, edits)
        latents = (new != z).any(0).nonzero()[:, 0]
        delta_NL = (new - z)[:, latents]
    else:
        latents, delta_NL = _few_latents(model, x_ND, edits)
    return Change(
        model.decoded_change(delta_NL, latents, x_ND), (delta_NL != 0).any(1, keepdim=True)
    )


def needs_rows(model: Autoencoder, edits: Sequence[Edit]) -> bool:
    """Whether the change depends on x: adding to a linear decoder's code does not."""
    if not isinstance(model, Dictionary) or model.config.input_norm != "none":
        return True
    return any(edit.needs_code for edit in edits)


def _few_latents(
    model: Dictionary, x_ND: torch.Tensor | None, edits: Sequence[Placed]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(latents (L,), z' - z of them (N,L))."""
    # the latents that the edits name
    named: dict[int, int] = {}
    for placed in edits:
        for latent in (*placed.edit.latents, *(c.latent for c in placed.edit.conditions)):
            named.setdefault(latent, len(named))
    device, dtype = model.W_dec.device, model.W_dec.dtype
    latents = torch.tensor(list(named), device=device)

    # their values, if an edit depends on them
    reads = any(placed.edit.needs_code for placed in edits)
    if reads:
        assert x_ND is not None
        z_NL = model.values_of(x_ND, latents)
        delta_NL = torch.zeros_like(z_NL)
    else:
        rows = max(1 if placed.rows is None else len(placed.rows) for placed in edits)
        z_NL = delta_NL = torch.zeros(rows, len(named), device=device, dtype=dtype)

    # each edit on what the former left
    for edit, rows, _ in edits:
        columns = torch.tensor([named[latent] for latent in edit.latents], device=device)
        amounts = torch.tensor(edit.amounts, device=device, dtype=dtype)
        old, z = delta_NL[:, columns], z_NL[:, columns]
        if edit.verb == "add":
            new = old + amounts
        elif edit.verb == "clamp":
            new = amounts - z
        else:
            new = (z + old) * amounts - z
        for condition in edit.conditions:
            column = named[condition.latent]
            met = z_NL[:, column] + delta_NL[:, column] > condition.above
            rows = met if rows is None else rows & met
        new = new if rows is None else torch.where(rows[:, None], new, old)
        delta_NL = delta_NL.index_copy(1, columns, new)
    return latents, delta_NL


def _whole_codes(
    model: Autoencoder, x_ND: torch.Tensor, edits: Sequence[Placed]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(z, z'), each (N,F)."""
    z = model.encode(x_ND).to_dense()
    code = z
    for edit, rows, codes_NF in edits:
        latents = torch.tensor(edit.latents, device=z.device, dtype=torch.int64)
        amounts = torch.tensor(edit.amounts, device=z.device, dtype=z.dtype)
        # the new code of all rows
        if edit.verb == "keep_only":
            new = torch.zeros_like(code).index_copy(1, latents, code[:, latents])
        elif edit.verb == "swap":
            assert codes_NF is not None
            new = codes_NF.to(z).expand_as(z)
        else:
            old = code[:, latents]
            values = {"add": old + amounts, "clamp": amounts.expand_as(old), "scale": old * amounts}
            new = code.index_copy(1, latents, values[edit.verb])
        # of which some keep the old one
        for condition in edit.conditions:
            met = code[:, condition.latent] > condition.above
            rows = met if rows is None else rows & met
        code = new if rows is None else torch.where(rows[:, None], new, code)
    return z, code


def as_codes(codes: Any, latents: int) -> torch.Tensor | None:
    """A code (F,), (T,F) or (B,T,F) as (1 or B, 1 or T, F); None for another shape."""
    dense = codes.to_dense() if hasattr(codes, "to_dense") else codes
    if not isinstance(dense, torch.Tensor) or not 1 <= dense.ndim <= 3:
        return None
    if dense.shape[-1] != latents:
        return None
    return dense.view(*[1] * (3 - dense.ndim), *dense.shape)
