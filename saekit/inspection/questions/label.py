"""Latents that tell the images or contexts of a label from others."""

from __future__ import annotations

import numpy as np

from saekit.errors import DataError, did_you_mean, opt
from saekit.indexing.association import label_figures
from saekit.inspection.known import Known
from saekit.inspection.questions.asked import Answer, Asked, Question
from saekit.inspection.search import Ranking, descending


def of_label(known: Known, label: str, by: str) -> Ranking:
    """Latents by what their largest size in an example tells about its label. Raises DataError for
    a label that the data do not have."""
    index = known.of_entries(opt("label", label))
    names = index.origin.labels
    if label not in names:
        if not names:
            raise DataError("the data of this store have no labels")
        shown = ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")
        raise DataError(
            f"{opt('label', label)}: the data have no such label",
            f"{did_you_mean(label, names)}there are {shown}",
        )
    number = names.index(label)
    figures = label_figures(index, number)
    columns = {
        "information": figures.information,
        "auroc": figures.auroc,
        "share": figures.share,
        "lift": figures.lift,
    }
    origin = index.origin
    rows = np.flatnonzero((origin.example_label == number)[origin.example])
    chances = {"chance": figures.chance, "auroc_chance": figures.auroc_chance}
    return Ranking(
        descending(columns[by], (figures.both > 0) & (figures.lift > 1)),
        index.by_row.largest(rows),
        {**columns, **chances},
    )


def _answer(asked: Asked) -> Answer:
    return Answer(of_label(asked.known, asked.value, asked.by))


LABEL = Question(_answer, ("information", "auroc", "share", "lift"))
