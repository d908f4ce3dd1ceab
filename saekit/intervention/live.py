"""The edits of an attached model, as `saekit.attach` returns them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Self, TypedDict, Unpack

import torch

from saekit.errors import DataError, UsageError, opt
from saekit.intervention.edits import Condition, Edit, Verb, as_codes
from saekit.intervention.positions import Examples, Positions, checked
from saekit.intervention.sites import Site

Latents = int | Sequence[int]
Sizes = float | Sequence[float] | torch.Tensor
"""One number, or one per latent."""


class Where(TypedDict, total=False):
    """The positions that an edit applies to, keyword arguments of all verbs. Padding is never
    edited.

    Parameters
        positions: "all", "prompt", "generated" or "last" (the prompt's last token and all after
            it); a token index, counted without padding, or a slice of these (`slice(4, None)`: from
            token 4 on); a bool mask (B,T) over the columns of the input, of which later ones are
            not edited. On images "all", "cls", "patches" or a mask (H,W), (B,H,W) or (B,T). None:
            as `attach` says.
        examples: of the batch, before generation expands it: a number, several, a slice or a bool
            mask (B,). None: all.
    """

    positions: Positions | None
    examples: Examples | None


class Editor:
    """The verbs. Each returns what it is called on, so that calls can be chained; all raise
    UsageError for latents that the dictionary does not have, for sizes in units that are not known
    and for positions that this kind of model does not have."""

    @property
    def _site(self) -> AttachedDictionary:
        raise NotImplementedError

    _conditions: tuple[Condition, ...] = ()

    def add(
        self, latent: Latents, strength: Sizes, *, raw: bool = False, **where: Unpack[Where]
    ) -> Self:
        """z'_j = z_j + strength, also where the latent is not active: steering.

        strength: in multiples of the latent's largest activation, where an index or `maxima` says
            it; raw=True: in the code's own units. One value, or one per latent.
        """
        latents = self._site.latents(latent)
        amounts = self._site.units.amounts(latents, strength, raw, "add")
        label = f"add({latent}, {strength}{', raw=True' * raw}"
        return self._made("add", latents, amounts, label, where)

    def clamp(
        self, latent: Latents, value: Sizes, *, raw: bool = False, **where: Unpack[Where]
    ) -> Self:
        """z'_j = value, in the units of `add`; 0 needs none."""
        latents = self._site.latents(latent)
        amounts = self._site.units.amounts(latents, value, raw, "clamp")
        label = f"clamp({latent}, {value}{', raw=True' * raw}"
        return self._made("clamp", latents, amounts, label, where)

    def ablate(self, latents: Latents, **where: Unpack[Where]) -> Self:
        """z'_j = 0."""
        chosen = self._site.latents(latents)
        zeros = (0.0,) * len(chosen)
        return self._made("clamp", chosen, zeros, f"ablate({latents}", where)

    def scale(self, latent: Latents, factor: Sizes, **where: Unpack[Where]) -> Self:
        """z'_j = factor z_j."""
        latents = self._site.latents(latent)
        factors = _per_latent(factor, len(latents), "factor")
        return self._made("scale", latents, factors, f"scale({latent}, {factor}", where)

    def keep_only(self, latents: Latents, **where: Unpack[Where]) -> Self:
        """z'_j = 0 for all other latents; the error term and b_dec stay."""
        chosen = self._site.latents(latents)
        return self._made("keep_only", chosen, (), f"keep_only({latents}", where)

    def swap(self, codes: Any, **where: Unpack[Where]) -> Self:
        """z' = codes: a tensor or code (F,), the same at all positions; (T,F), by column of the
        input; or (B,T,F). Columns after the T-th, such as generated tokens, are left as they
        are."""
        site = self._site.site
        dense = as_codes(codes, site.model.latents)
        if dense is None:
            raise UsageError(
                f"{opt('codes')} has the shape {tuple(getattr(codes, 'shape', ()))}, not (F,),"
                f" (T,F) or (B,T,F) with F = {site.model.latents:,}"
            )
        label = f"swap(<codes {tuple(codes.shape)}>"
        return self._made("swap", (), (), label, where, dense.detach())

    def when(self, latent: int, above: float = 0.0, *, raw: bool = False) -> Conditional:
        """Edits of only those positions where z'_latent > above, as the edits before left it. Of
        several conditions in a row all must hold.

        above: in the units of `add`; 0, the default, needs none.
        """
        (chosen,) = self._site.latents(latent)
        (amount,) = self._site.units.amounts((chosen,), above, raw, "when")
        return Conditional(self._site, (*self._conditions, Condition(chosen, amount)))

    def _made(
        self,
        verb: Verb,
        latents: tuple[int, ...],
        amounts: tuple[float, ...],
        label: str,
        where: Where,
        codes: torch.Tensor | None = None,
    ) -> Self:
        site = self._site.site
        # how the call is listed
        for name, value in where.items():
            shown = f"mask {tuple(value.shape)}" if isinstance(value, torch.Tensor) else value
            label += f", {name}={shown!r}"
        for condition in reversed(self._conditions):
            label = f"when({condition.latent}, above={condition.above:g}, raw=True).{label}"
        # where it acts
        positions, examples = where.get("positions"), where.get("examples")
        positions = site.positions if positions is None else checked(positions, site.is_image)
        if isinstance(examples, int):
            examples = (examples,)
        edit = Edit(
            verb, latents, amounts, codes, positions, examples, self._conditions, label + ")"
        )
        site.edits.append(edit)
        return self


@dataclasses.dataclass(frozen=True)
class Units:
    """How large an activation of each latent is."""

    maxima: torch.Tensor | None
    """(F,), on the CPU."""

    def amounts(
        self, latents: Sequence[int], size: Sizes, raw: bool, verb: str
    ) -> tuple[float, ...]:
        """One size per latent, in the code's own units. Raises UsageError where they are not
        known."""
        sizes = _per_latent(size, len(latents), "strength" if verb == "add" else "value")
        if raw or not any(sizes):
            return sizes
        remedy = f"{opt('raw', True)} takes the code's own units"
        if self.maxima is None:
            raise UsageError(
                f"{verb}: the largest activation of each latent is not known",
                f"{remedy}; attach a checkpoint that has an index (`saekit index`), or give"
                f" {opt('maxima')} to attach",
            )
        largest = [float(self.maxima[latent]) for latent in latents]
        if silent := [latent for latent, value in zip(latents, largest) if not value > 0]:
            raise UsageError(
                f"{verb}: latent {silent[0]} was never active in the indexed rows", remedy
            )
        return tuple(value * unit for value, unit in zip(sizes, largest))


class AttachedDictionary(Editor):
    """One dictionary of an attached model."""

    def __init__(self, site: Site, maxima: torch.Tensor | None) -> None:
        self.site, self.units = site, Units(maxima)

    @property
    def _site(self) -> AttachedDictionary:
        return self

    @property
    def model(self) -> Any:
        """The dictionary as it runs here: in eval mode, on the model's device."""
        return self.site.model

    @property
    def hooks(self) -> tuple[str, ...]:
        """The hooks whose states its edits change."""
        return tuple(self.site.outputs)

    @property
    def edits(self) -> list[str]:
        """The calls that are in effect, in the order in which they act."""
        return [str(edit) for edit in self.site.edits]

    def clear(self) -> None:
        """Removes all edits."""
        self.site.edits.clear()

    def keep_error(self, keep: bool) -> None:
        """From the next pass on as with `error=keep` of `attach`."""
        self.site.error = keep

    def latents(self, latents: Latents) -> tuple[int, ...]:
        """One or several, each known and given once. Raises DataError for one
        that the dictionary does not have, UsageError for one that is given twice."""
        numbers = [latents] if isinstance(latents, int) else list(latents)
        numbers = [int(number) for number in numbers]
        if outside := [n for n in numbers if not 0 <= n < self.site.model.latents]:
            raise DataError(
                f"latent {outside[0]}: {self.site.name} has {self.site.model.latents:,} (0 to"
                f" {self.site.model.latents - 1:,})",
                "saekit features lists latents by what they respond to",
            )
        if len(set(numbers)) < len(numbers):
            raise UsageError(f"a latent occurs twice in {numbers}", "give each once")
        return tuple(numbers)

    def __repr__(self) -> str:
        where = " and ".join(self.site.outputs)
        return f"{self.site.name} at {where}: " + ("; ".join(self.edits) or "no edits")


class Conditional(Editor):
    """What `when` returns: its edits act where the conditions hold."""

    def __init__(self, dictionary: AttachedDictionary, conditions: tuple[Condition, ...]) -> None:
        self._dictionary, self._conditions = dictionary, conditions

    @property
    def _site(self) -> AttachedDictionary:
        return self._dictionary


class Live(Editor):
    """What `saekit.attach` returns. With one dictionary it has the verbs itself; with several,
    `live[0]` or `live["blocks.9"]`, by number, hook or key of the mapping, has them."""

    def __init__(self, dictionaries: dict[str, AttachedDictionary]) -> None:
        self._dictionaries = dictionaries

    def __getitem__(self, which: int | str) -> AttachedDictionary:
        if isinstance(which, int) and -len(self) <= which < len(self):
            return list(self._dictionaries.values())[which]
        if which in self._dictionaries:
            return self._dictionaries[str(which)]
        at_hook = [d for d in self._dictionaries.values() if which in d.hooks]
        if len(at_hook) != 1:
            raise DataError(
                f"{which!r} is not one of the attached dictionaries",
                f"these are {', '.join(self._dictionaries)}",
            )
        return at_hook[0]

    def __iter__(self) -> Iterator[AttachedDictionary]:
        return iter(self._dictionaries.values())

    def __len__(self) -> int:
        return len(self._dictionaries)

    def clear(self) -> None:
        """Removes all edits of all dictionaries."""
        for dictionary in self:
            dictionary.clear()

    @property
    def edits(self) -> list[str]:
        """The calls that are in effect, dictionary by dictionary."""
        return [edit for dictionary in self for edit in dictionary.edits]

    @property
    def _site(self) -> AttachedDictionary:
        if len(self) != 1:
            names = ", ".join(f"live[{name!r}]" for name in self._dictionaries)
            raise UsageError(f"{len(self)} dictionaries are attached", f"edit one: {names}")
        return self[0]

    def __repr__(self) -> str:
        return "\n".join(map(repr, self))


def _per_latent(sizes: Sizes, count: int, name: str) -> tuple[float, ...]:
    values = torch.as_tensor(sizes, dtype=torch.float64).flatten().tolist()
    if len(values) not in (1, count):
        raise UsageError(f"{opt(name)} has {len(values)} values for {count} latents")
    return tuple(values * count if len(values) == 1 else values)
