"""What the box of the page asks beyond numbers and words of labels: which latents a text, a token,
a label, words or another latent lead to. Orders and figures are those of `saekit.features`; of a
text there are also those of `orders`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from saekit.errors import DataError, UsageError, opt
from saekit.harvesting.sources import Document
from saekit.inspection.described import Described
from saekit.inspection.inputs import InputRows, input_rows
from saekit.inspection.known import Known
from saekit.inspection.on_input import OnInput, of_input, over_rows
from saekit.inspection.questions import QUESTIONS, check_order
from saekit.inspection.questions.explained import of_explanation
from saekit.inspection.questions.label import of_label
from saekit.inspection.questions.near import near_latent
from saekit.inspection.questions.token import of_token
from saekit.inspection.search import Filters, Ranking, kept
from saekit.serving.latents import KnownLatents, Scanned
from saekit.serving.questions import SearchQuestion
from saekit.serving.reading import Reader
from saekit.serving.worker import Tell

NOT_DESCRIBED = (
    "this checkpoint has no names, notes or explanations, so words are looked for only in automatic"
    " labels and on the strongest rows"
)


class Searcher:
    """Answers one question at a time, with the models of the reader."""

    def __init__(self, reader: Reader, known: KnownLatents) -> None:
        self.reader, self.known = reader, known

    def answer(self, question: SearchQuestion, most: int, tell: Tell) -> dict[str, Any]:
        """{"asked", "by", "orders", "found", "of", "chance", "note", "source"}.

        found: at most `most` latents, best first: KnownLatents.brief with `act` (null: it has none
            of its own), `figures` by name, and `at`, the token of a text's largest value.
        note: what is missing for a better answer, or null.
        orders: what the question can be ordered by; of: how many latents answer it.
        chance: name -> what the best latent reaches by chance, where the question has one.
        Raises what `saekit.features` raises.
        """
        asked = question.asked
        others = self.known.orders.names if asked == "text" and question.versus is None else ()
        by = question.by
        if by is None or by not in others:
            by = check_order(asked, by)
        ranking, read = self._ranking(asked, question, by, tell)
        tell(None)
        order = ranking.order[self._passing(question)[ranking.order]]
        figures = {j: ranking.of(j) or {} for j in order[:most].tolist()}
        is_chance = lambda name: name.endswith("chance")
        scanned = self.known.scanned
        described = None
        if asked == "explained" and scanned is not None:
            described = scanned.known.described
        return {
            "asked": asked,
            "by": by,
            "orders": [*QUESTIONS[asked].orders, *others],
            "found": [
                self.known.brief(j)
                | {
                    "act": None if ranking.act is None else float(ranking.act[j]),
                    "figures": {n: v for n, v in of_j.items() if not is_chance(n)},
                    "at": None if read is None else read.at(j, self.reader.texts),
                }
                for j, of_j in figures.items()
            ],
            "of": len(order),
            "chance": {n: v for n, v in next(iter(figures.values()), {}).items() if is_chance(n)},
            "note": None if described is None or _is_described(described) else NOT_DESCRIBED,
            "source": None if scanned is None else scanned.known.source,
        }

    def _ranking(
        self, asked: str, question: SearchQuestion, by: str, tell: Tell
    ) -> tuple[Ranking, OnInput | None]:
        if asked == "text":
            assert question.text is not None
            read = self._read(question.text, tell)
            other = None if question.versus is None else self._read(question.versus, tell)
            above = self.reader.dictionary.active_above or 0.0
            if by not in self.known.orders.names:
                return of_input(read, other, by, above), read
            ranking = of_input(read, None, "max", above)
            figure_F = self.known.orders.figure(read.largest.numpy(), by)
            order = self.known.orders.ordered(ranking.order, read.largest.numpy(), by)
            return Ranking(order, ranking.act, {by: figure_F}), read
        inspected, known = self._scanned(asked).pair
        if question.token is not None:
            return of_token(inspected, known, question.token, by), None
        if question.label is not None:
            return of_label(known, question.label, by), None
        if question.explained is not None:
            return _by_words(known, question.explained), None
        assert question.near is not None
        self.known.check(question.near)
        if known.active[question.near] == 0:
            raise DataError(
                f"latent {question.near} never fired in the {known.rows:,} rows of the store",
                "choose one that fires",
            )
        return near_latent(inspected, known, question.near, by), None

    def _read(self, text: str, tell: Tell) -> OnInput:
        reader = self.reader

        def rows() -> Iterator[InputRows]:
            for each in input_rows(Document(0, "input", text), reader.specs, reader.models):
                tell(None)  # ends here where the client has gone
                yield each

        return over_rows(reader.dictionary, rows())

    def _passing(self, question: SearchQuestion) -> np.ndarray:
        """(F,) bool: the latents that pass the filters."""
        filters = Filters(question.min_density, question.max_density, question.not_bos)
        if filters == Filters():
            return np.ones(self.known.count, bool)
        return kept(self._scanned("not_bos").known, filters)

    def _scanned(self, what: str) -> Scanned:
        """Raises UsageError without a store."""
        scanned = self.known.scanned
        if scanned is None:
            raise UsageError(
                f"{opt(what)} is answered from a store, and none was given",
                f"start the server with {opt('store')}",
            )
        return scanned


def _by_words(known: Known, words: str) -> Ranking:
    """As `saekit.features` answers `explained`; what says nothing matches nothing."""
    try:
        return of_explanation(known, words)
    except DataError as error:
        if _is_described(known.described):
            raise
        raise DataError(error.cause, f"{NOT_DESCRIBED}; {error.remedy}") from None


def _is_described(described: Described) -> bool:
    """Whether anybody has said anything."""
    return bool(described.names or described.notes or described.explanations)
