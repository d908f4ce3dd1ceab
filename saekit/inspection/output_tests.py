"""Which output tokens of a latent are told: those that say more than a random direction's.

A side (raised, lowered) is judged twice: its ten tokens together, and each by itself against the
strongest of the whole vocabulary. A direction that raises one token only would be lost in ten.
"""

from __future__ import annotations

from collections.abc import Mapping

SIDES = ("raised", "lowered")


def told(test: Mapping[str, float] | None, side: str) -> int | None:
    """How many tokens of a side, the strongest first, stand out; None: all ten. `test` is a
    record's `logit_test`; without one (a page of before) all are told."""
    if test is None or test[side] > test[f"{side}_chance"]:
        return None
    return int(test.get(f"{side}_beyond") or 0)
