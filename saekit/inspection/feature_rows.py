"""A latent as a row of `features`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from saekit.display import TableList
from saekit.errors import spelled
from saekit.inspection.described import Source
from saekit.inspection.known import Known
from saekit.inspection.opening import InspectedModel
from saekit.inspection.questions.asked import Answer
from saekit.inspection.search import below_chance
from saekit.store.reader import Store
from saekit.store.stack import StackedStore

TOP_TOKENS = 5
TYPICAL_ROWS = 20


@dataclass(frozen=True)
class FeatureRow:
    """act is the value of largest size on the input, with its sign: on the text or image, on the
    rows of the token or label, else on the store. max is the largest size on the store; tokens are
    those on which the latent fires most in the store, for images the data's labels. label says what
    the latent is, and labeled_by who says so: a reader's name beside the checkpoint (name), else an
    explanation there (explanation), else what its rows have in common (automatic: `on " import"`).
    score is that of saekit.inspection.score. figures are those of the question
    (docs/index-search.md), or None, and below_chance names those that are no larger than what the
    best latent reaches by chance; None where chance is not known. raises is the output token that
    the decoder row raises most on the direct path, where it stands out from random directions; None
    also where it was not computed. source is what the figures are read from: the index beside the
    checkpoint (index), or one that was made for this call (temporary). at is where in the input act
    is: the token, or row and column of the patch ("2,3"; "" for the class token); None without an
    input."""

    index: int
    act: float
    max: float
    density: float | None
    label: str | None
    tokens: list[str]
    score: float | None = None
    figures: dict[str, float] | None = None
    source: str = "index"
    at: str | None = None
    values: list[Any] | None = None
    labeled_by: Source | None = None
    raises: str | None = None
    below_chance: list[str] | None = None


class FeatureRows(TableList[FeatureRow]):
    """What `features` returns: a list that shows itself as a table. by: what it is ordered by: act,
    score, or one of the question's orders. note: why it is empty, where it is."""

    def __init__(self, rows: Iterable[FeatureRow], by: str = "act", note: str = "") -> None:
        super().__init__(rows)
        self.by, self.raw_note = by, note

    @property
    def note(self) -> str:
        return spelled(self.raw_note)

    def figures(self) -> list[dict[str, Any]]:
        """One flat dict for each latent: its tokens as one text, and the figures of the question by
        name."""
        rows = []
        for row in self:
            flat: dict[str, Any] = asdict(row) | {"tokens": "  ".join(map(repr, row.tokens))}
            flat.pop("values")  # a row of their own each
            flat["below_chance"] = ", ".join(row.below_chance or [])
            rows.append(flat | (flat.pop("figures") or {}))
        return rows

    def __repr__(self) -> str:
        return super().__repr__() if self else self.note or "[]"

    def _shown(self) -> list[dict[str, Any]]:
        """The number of a latent is a name, without separators."""
        return [row | {"index": str(row["index"])} for row in self.figures()]


def feature_row(
    latent: int, answer: Answer, inspected: InspectedModel, known: Known, raises: str | None
) -> FeatureRow:
    ranking, read = answer.ranking, answer.read
    act = known.largest(latent) if ranking.act is None else float(ranking.act[latent])
    followed = read is not None and read.followed is not None
    label, figures = known.label(latent), ranking.of(latent)
    return FeatureRow(
        latent,
        act,
        float(known.max[latent]),
        None if inspected.model.active_above is None else float(known.density[latent]),
        None if label is None else label.text,
        _typical(known, inspected.store, latent),
        known.scores.of(latent),
        figures,
        known.source,
        read.at(latent, known.texts) if read is not None and act else None,
        read.along(known.texts) if read is not None and followed else None,
        None if label is None else label.source,
        raises,
        below_chance(figures),
    )


def _typical(known: Known, store: Store | StackedStore, latent: int) -> list[str]:
    """The most common tokens (for images, labels) among the latent's strongest rows."""
    names: Counter[str] = Counter()
    texts = known.texts
    for row, _ in known.strongest(latent, TYPICAL_ROWS):
        example, _ = store.origin.example_at(row)
        if texts is not None:
            at = int(store.origin.positions(row, 1)[0])
            tokens = example.tokens or ()
            names[texts(tokens)[at] or texts.alone(tokens[at])] += 1
        elif example.label is not None:
            names[example.label] += 1
    return [name for name, _ in names.most_common(TOP_TOKENS)]
