"""A latent as a row of `features`."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from saekit.display import TableList
from saekit.inspection.known import Known
from saekit.inspection.opening import InspectedModel
from saekit.inspection.questions.asked import Answer
from saekit.store.reader import Store
from saekit.store.stack import StackedStore

TOP_TOKENS = 5
TYPICAL_ROWS = 20


@dataclass(frozen=True)
class FeatureRow:
    """act is the value of largest size on the input, with its sign: on the text or image, on the
    rows of the token or label, else on the store. max is the largest size on the store; tokens are
    those on which the latent fires most in the store, for images the data's labels. score
    (saekit.inspection.score) and label (a reader's name or an explanation beside the checkpoint,
    else automatic: `on " import"`) only of `index`, `explained` and `sort="score"`. figures are
    those of the question (docs/index-search.md), or None. source is what the figures are read from:
    the index beside the checkpoint (index), or one that was made for this call (temporary). at is
    where in the input act is: the token, or row and column of the patch ("2,3"; "" for the class
    token); None where there is no input."""

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


class FeatureRows(TableList[FeatureRow]):
    """What `features` returns: a list that shows itself as a table."""

    def figures(self) -> list[dict[str, Any]]:
        """One flat dict for each latent: its tokens as one text, and the figures of the question by
        name."""
        rows = []
        for row in self:
            flat: dict[str, Any] = asdict(row) | {"tokens": "  ".join(map(repr, row.tokens))}
            flat.pop("values")  # a row of their own each
            rows.append(flat | (flat.pop("figures") or {}))
        return rows

    def _shown(self) -> list[dict[str, Any]]:
        """The number of a latent is a name, without separators."""
        return [row | {"index": str(row["index"])} for row in self.figures()]


def feature_row(
    latent: int, answer: Answer, inspected: InspectedModel, known: Known, scored: bool
) -> FeatureRow:
    """`scored`: with its label and score."""
    ranking, read = answer.ranking, answer.read
    act = known.largest(latent) if ranking.act is None else float(ranking.act[latent])
    followed = read is not None and read.followed is not None
    return FeatureRow(
        latent,
        act,
        float(known.max[latent]),
        None if inspected.model.active_above is None else float(known.density[latent]),
        known.label(latent) if scored else None,
        _typical(known, inspected.store, latent),
        known.scores.of(latent) if scored else None,
        ranking.of(latent),
        known.source,
        read.at(latent, known.texts) if read is not None and act else None,
        read.along(known.texts) if read is not None and followed else None,
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
