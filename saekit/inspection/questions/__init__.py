"""The questions of `features`, a module each. A new one is such a module, a line in QUESTIONS, and
its parameter in `saekit.inspection.query.features`."""

from __future__ import annotations

from saekit.errors import UsageError, opt
from saekit.inspection.questions.asked import Question
from saekit.inspection.questions.every import EVERY
from saekit.inspection.questions.explained import EXPLAINED
from saekit.inspection.questions.image import IMAGE
from saekit.inspection.questions.index import INDEX
from saekit.inspection.questions.label import LABEL
from saekit.inspection.questions.near import NEAR
from saekit.inspection.questions.text import TEXT
from saekit.inspection.questions.token import TOKEN

QUESTIONS: dict[str, Question] = {
    "index": INDEX,
    "text": TEXT,
    "image": IMAGE,
    "token": TOKEN,
    "label": LABEL,
    "near": NEAR,
    "explained": EXPLAINED,
    "": EVERY,
}
"""By the name of the option. "" is that of no option: all latents."""


def check_order(question: str, by: str | None) -> str:
    """What to order by. Raises UsageError where the question cannot be ordered so."""
    orders = QUESTIONS[question].orders
    if by is None:
        return orders[0] if orders else ""
    if by not in orders:
        choices = " or ".join(orders)
        raise UsageError(
            f"{opt('by', by)} does not go with {opt(question) if orders else 'this question'}",
            f"{opt('by')} {choices}" if orders else f"drop {opt('by')}",
        )
    return by
