"""Latents that fire on a token, in any context."""

from __future__ import annotations

import numpy as np

from saekit.errors import DataError, did_you_mean, opt
from saekit.indexing.association import token_figures
from saekit.inspection.known import Known
from saekit.inspection.opening import InspectedModel
from saekit.inspection.questions.asked import Answer, Asked, Question
from saekit.inspection.search import Ranking, descending
from saekit.inspection.tokens import TokenTexts


def of_token(inspected: InspectedModel, known: Known, token: str, by: str) -> Ranking:
    """Latents by what they tell about a token, whatever its context. Raises DataError for a store
    that is not text, or a token that it does not have."""
    if known.texts is None:
        path = inspected.store.path
        raise DataError(f"{path} holds no tokens", f"{opt('label')} or {opt('near')}")
    index = known.of_entries(opt("token", token))
    rows = _rows_of_token(index.origin.token, known.texts, token)
    figures = token_figures(index, rows)
    columns = {
        "mean": figures.mean,
        "share": figures.share,
        "lift": figures.lift,
        "information": figures.information,
    }
    return Ranking(
        descending(columns[by], (figures.both > 0) & (figures.lift > 1)),
        index.by_row.largest(rows),
        {**columns, "chance": figures.chance},
    )


def _rows_of_token(token_R: np.ndarray, texts: TokenTexts, token: str) -> np.ndarray:
    """Rows whose token is written so. Raises DataError, with near ones."""
    present = np.unique(token_R).tolist()
    written = {index: texts.alone(index) for index in present}
    ids = [index for index, text in written.items() if text == token]
    if ids:
        return np.flatnonzero(np.isin(token_R, ids))
    word = token.strip().casefold()
    alike = sorted({text for text in written.values() if text.strip().casefold() == word and word})
    if alike:
        hint = f"{opt('token', *alike[:3])}: spaces and capitals count"
    else:
        pieces = texts.tokenized(token)
        several = [texts.alone(index) for index in pieces[0]] if pieces else []
        hint = did_you_mean(token, written.values())
        if len(several) > 1:
            hint = f"it is several tokens: {', '.join(map(repr, several))}; give one of them"
    raise DataError(f"no row of the store is on the token {token!r}", hint)


def _answer(asked: Asked) -> Answer:
    return Answer(of_token(asked.inspected, asked.known, asked.value, asked.by))


TOKEN = Question(
    _answer,
    ("information", "mean", "share", "lift"),
    "no latent fires on the token more often than elsewhere",
)
