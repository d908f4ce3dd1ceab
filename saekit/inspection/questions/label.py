"""Latents that tell the images or contexts of a label from others."""

from __future__ import annotations

import difflib

import numpy as np

from saekit.errors import DataError, opt
from saekit.indexing.association import label_figures
from saekit.inspection.known import Known
from saekit.inspection.questions.asked import Answer, Asked, Question
from saekit.inspection.search import Ranking, descending

SHOWN, NEAREST = 10, 5  # labels in an error


def of_label(known: Known, label: str, by: str) -> Ranking:
    """Latents by what their largest size in an example tells about its label. Raises DataError for
    a label that the data do not have."""
    index = known.of_entries(opt("label", label))
    names = index.origin.labels
    if label not in names:
        if not names:
            raise DataError("the data of this store have no labels")
        shown = ", ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "")
        raise DataError(
            f"{opt('label', label)}: the data have no such label",
            f"{_nearest(label, names)}there are {shown}",
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


def _nearest(label: str, names: list[str]) -> str:
    """'did you mean cat-face, cattle? ': labels that contain the word or are spelled like it; ''
    where there are none."""
    word = label.strip().casefold()
    inside = [name for name in names if word and word in name.casefold()]
    by_folded = {name.casefold(): name for name in names}
    alike = difflib.get_close_matches(word, by_folded, NEAREST, cutoff=0.6)
    near = list(dict.fromkeys([*inside, *(by_folded[name] for name in alike)]))[:NEAREST]
    return f"did you mean {', '.join(near)}? " if near else ""


def _answer(asked: Asked) -> Answer:
    return Answer(of_label(asked.known, asked.value, asked.by))


LABEL = Question(
    _answer,
    ("information", "auroc", "share", "lift"),
    "no latent fires for the label more often than for others",
)
