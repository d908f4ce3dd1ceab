"""What `attack` returns."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from saekit.attacks.balls import Norm
from saekit.attacks.perturb import Method
from saekit.attacks.scores import Direction
from saekit.display import brief


@dataclass(frozen=True)
class State:
    """What the model makes of one picture."""

    label: str | None
    """The most probable class; None for a model without a head."""
    probability: float | None
    """Of that class."""
    activation: float | None
    """Of the attacked latent, the largest over the positions; None for an attack on a class."""


@dataclass(frozen=True)
class LatentChange:
    """A latent of the dictionary: its largest activation over the positions."""

    index: int
    before: float
    after: float


@dataclass(frozen=True)
class AttackedImage:
    image: str
    label: str | None
    """The class that the picture is driven from; None for an attack on a latent."""
    target: str | None
    """The class that it is driven to; None without one."""
    before: State
    after: State
    rounded: State
    """After the changed picture is rounded to 8 bits, as a file holds it."""
    success: bool | None
    """Another class than `label`; the target; a latent silent everywhere, or above its largest
    activation on the indexed store and that before. None where the picture was so before the
    attack: of the other class, of the target, or without the latent."""
    linf: float
    """The largest change of a value, in units of the pixel range."""
    l2: float
    """The Euclidean norm of the change, in the same units."""
    latents: list[LatentChange]
    """Those of the dictionary that change most; [] without one."""


@dataclass(frozen=True)
class AttackResult:
    """An attack on pictures."""

    model: str
    objective: str
    """In words."""
    method: Method
    norm: Norm
    eps: float
    """The budget, in units of the pixel range."""
    steps: int
    restarts: int
    latent: int | None
    direction: Direction | None
    maximum: float | None
    """The largest activation of the latent on the scanned store."""
    images: list[AttackedImage]
    pixels: list[tuple[torch.Tensor, torch.Tensor]] = field(repr=False, compare=False)
    """(before, after) of each image, (C,h,w) in [0,1]."""
    report: str | None = None
    """The path of the page, where one was written."""

    def __repr__(self) -> str:
        budget = {"method": self.method, "norm": self.norm, "eps": self.eps, "steps": self.steps}
        return brief(
            self, {**budget, "result": self.summary, "report": self.report}, repr(self.objective)
        )

    @property
    def successes(self) -> int:
        """Images that were not so before and are now."""
        return sum(image.success is True for image in self.images)

    @property
    def already(self) -> int:
        """Images that were so before the attack, and count neither as successes nor failures."""
        return sum(image.success is None for image in self.images)

    @property
    def summary(self) -> str:
        """'1 of 2 succeeded, 1 already so'."""
        counted = len(self.images) - self.already
        already = f"{self.already} already so"
        if not counted:
            return already
        return f"{self.successes} of {counted} succeeded" + f", {already}" * (self.already > 0)


@dataclass(frozen=True)
class MadeImage:
    """A picture made from noise."""

    activation: float
    """Of the latent in its code, the largest over the positions."""
    preactivation: float
    """Before competition and threshold."""
    label: str | None
    """The class that the model sees in it; None for a model without a head."""
    probability: float | None


@dataclass(frozen=True)
class VisualizeResult:
    """Pictures made from noise for a latent, the best first."""

    model: str
    latent: int
    maximum: float | None
    """The largest activation of the latent on the scanned store."""
    images: list[MadeImage]
    steps: int
    curve: list[float]
    """The largest score up to each step: the pre-activation, less what it lacks to be in the
    code."""
    top: list[tuple[str, float]]
    """(name, activation) of the pictures of the store on which the latent is strongest."""
    pixels: list[torch.Tensor] = field(repr=False, compare=False)
    """(C,h,w) in [0,1], of each image."""
    top_pixels: list[torch.Tensor] = field(repr=False, compare=False)
    """The same of `top`, as the model sees them."""
    report: str | None = None

    def __repr__(self) -> str:
        figures = {"activation": self.images[0].activation, "maximum": self.maximum}
        shown = {"images": len(self.images), "steps": self.steps, "report": self.report}
        return brief(self, {"latent": self.latent, **figures, **shown}, repr(self.model))

    @property
    def share(self) -> float | None:
        """The activation of the best picture over `maximum`."""
        return self.images[0].activation / self.maximum if self.maximum else None
