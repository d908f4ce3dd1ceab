"""What a question of `features` is asked with, and what an answer says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from saekit.inspection.known import Known
from saekit.inspection.on_input import OnInput
from saekit.inspection.opening import InspectedModel
from saekit.inspection.search import Ranking


@dataclass(frozen=True)
class Asked:
    inspected: InspectedModel
    known: Known
    value: Any
    """What was given for the question's option: a token, a text, a number ..."""
    by: str
    """One of the question's orders; "" where it has none."""
    versus: str | None = None
    """Of a text: another text."""
    follow: int | None = None
    """Of an input: the one latent that is asked about."""
    live: nn.Module | None = None
    processor: Any = None


@dataclass(frozen=True)
class Answer:
    ranking: Ranking
    read: OnInput | None = None
    """What the latents do on the input, where there is one."""
    named: bool = False
    """Whether the latents were given by number: all are returned, without filters."""


@dataclass(frozen=True)
class Question:
    """answer: may raise DataError, MissingError, UsageError. orders: what the answer can be
    ordered by, the default first. nothing: what it means that no latent answers."""

    answer: Callable[[Asked], Answer]
    orders: tuple[str, ...] = ()
    nothing: str = "no latent answers"
