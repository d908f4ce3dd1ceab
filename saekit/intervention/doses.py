"""Doses of a latent and the responses to them, beside controls of the same norm in its place. What
an effect is, texts and images say for themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from saekit.display import pandas
from saekit.errors import UsageError, opt
from saekit.interop.opening import open_checkpoint
from saekit.intervention.attach import attach
from saekit.intervention.controls import Controls
from saekit.intervention.live import Live
from saekit.intervention.positions import Positions
from saekit.models.sae.dictionary import Dictionary

Edit = Callable[[Live, Any], None]
"""Makes its edits at these positions."""


@dataclass(frozen=True)
class Response:
    """To one dose."""

    strength: float
    effect: float
    """In nats."""
    kl: float
    """KL(clean || steered), in nats."""
    random_directions: list[float]
    """The effects of random directions of the same norm."""
    random_latents: list[float]

    @property
    def largest_control(self) -> float:
        """Size of the largest effect of a control, in nats; 0 without controls."""
        return max(map(abs, self.random_directions + self.random_latents), default=0.0)

    @property
    def is_beyond_controls(self) -> bool:
        """Whether no control has as large an effect."""
        controls = self.random_directions + self.random_latents
        return all(abs(self.effect) > abs(control) for control in controls)


def dose_frame(doses: Sequence[Response]) -> Any:
    """A DataFrame, one row for each dose: its fields of one value, with the largest control. Raises
    MissingError without pandas."""
    rows = [
        {name: value for name, value in vars(dose).items() if not isinstance(value, list)}
        | {"largest_control": dose.largest_control}
        for dose in doses
    ]
    return pandas().DataFrame(rows)


def is_monotone(doses: Sequence[Response]) -> bool:
    """Whether a larger dose never has a smaller effect, that of dose 0, which is 0, included; False
    without doses."""
    effects = {dose.strength: dose.effect for dose in doses}
    in_order = [effect for _, effect in sorted(({0.0: 0.0} | effects).items())]
    return bool(effects) and all(a <= b for a, b in pairwise(in_order))


def verdict(doses: Sequence[Response]) -> str:
    """What the doses show, in a sentence; "" without doses."""
    ends = [min(doses, key=_strength), max(doses, key=_strength)] if doses else []
    ends = [dose for dose in ends if dose.strength]
    if not ends:
        return ""
    if not all(dose.is_beyond_controls for dose in ends):
        return "no effect of this latent: controls of the same norm have one as large"
    shape = "monotone in the dose" if is_monotone(doses) else "not monotone in the dose"
    return f"the effect is larger than that of every control, and {shape}"


def scope(targets: Sequence[str], are_named: bool) -> str:
    """What a verdict on the effect on `targets` tests and what it does not; "" without targets.
    `are_named`: by the caller, before anything was measured."""
    if not targets:
        return ""
    these, chosen = ("these targets", "them") if len(targets) > 1 else ("this target", "it")
    tests = (
        f"It tests whether this latent changes {these} more than the controls do, not what the"
        " latent means."
    )
    if are_named:
        return f"{tests} It may change others more."
    by_dose = f"The largest dose chose {chosen}: an effect that the meaning does not predict passes"
    return f"{tests} {by_dose}. To test a meaning, name a target that it predicts."


def control_rows(doses: Sequence[Response]) -> list[dict[str, Any]]:
    """[{"kind", "strength", "effects"}] of each dose and kind of control."""
    kinds = {"random direction": "random_directions", "random latent": "random_latents"}
    return [
        {"kind": kind, "strength": dose.strength, "effects": getattr(dose, name)}
        for dose in doses
        for kind, name in kinds.items()
    ]


@contextmanager
def control_added(
    module: Any, controls: Controls, kind: Dictionary, strength: float, where: Positions
) -> Iterator[int]:
    """Within the body each control of a kind is added in an example of its own; yields how many."""
    with attach(module, kind, controls.hook) as live:
        for row in range(kind.latents):
            live.add(row, strength, raw=True, positions=where, examples=row)
        yield kind.latents


def check_dose(dose: Sequence[float], latents: Mapping[int, float], ablate: Sequence[int]) -> None:
    """Raise UsageError where doses are not of one latent."""
    if dose and (len(latents) != 1 or ablate):
        raise UsageError(f"{opt('dose')} is of one latent", "give one, and ablate none")


def edit_of(strengths: Mapping[int, float], ablate: Sequence[int], raw: bool) -> Edit:
    """Adds to latents and ablates others."""

    def edit(live: Live, where: Positions) -> None:
        if strengths:
            live.add(list(strengths), list(strengths.values()), raw=raw, positions=where)
        if ablate:
            live.ablate(ablate, positions=where)

    return edit


def model_name_of(source: object) -> str:
    """The name of the model that a checkpoint was trained on. Raises UsageError where it does not
    say so."""
    name = open_checkpoint(source).config["spec"].get("model") if isinstance(source, str) else None
    if not name:
        raise UsageError("the checkpoint does not say which model it belongs to", opt("model"))
    return name


def _strength(dose: Response) -> float:
    return dose.strength
