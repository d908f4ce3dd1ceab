"""Labels of rows: the data's own, one for each example of a store, and of rows in memory where they
were given. Models that read the class of a row get it as its number in the sorted labels."""

from __future__ import annotations

import dataclasses

import torch

from saekit.errors import DataError, opt
from saekit.rows import Adapter, Rows
from saekit.store.memory import ArraySource
from saekit.store.reader import Store
from saekit.types import ActivationBatch

MOST_CLASSES = 1000


def labels_of(source: Rows, examples: bool = False) -> list[str | None]:
    """The label of every row, or of every example, in the source's order; None where it has none,
    as rows in memory do not unless they were given."""
    if isinstance(source, Store):
        return source.labels("all", examples)
    if isinstance(source, Adapter):
        return labels_of(source.sources[0], examples)
    if isinstance(source, ArraySource) and source.labels is not None:
        return list(source.labels) if not examples else list(source.labels[:: source.size])
    return [None] * source.count("all", examples)


def classes_of(source: Rows) -> tuple[str, ...]:
    """The distinct labels, numbers in their order. Raises DataError where a row has none."""
    labels = labels_of(source)
    missing = sum(label is None for label in labels)
    if missing:
        many = "none" if missing == len(labels) else f"none for {missing:,} of {len(labels):,}"
        raise DataError(
            f"{source.path} has labels for its rows, and needs one for each: {many}"
            if missing < len(labels)
            else f"{source.path} has no labels, and the class of every row is needed",
            f"harvest data with labels, such as embedded:digits; {opt('model', 'gan')} needs none",
        )
    classes = {label for label in labels if label is not None}
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise DataError(
            f"the rows of {source.path} have {len(classes):,} different labels; 2 to"
            f" {MOST_CLASSES:,} can be classes"
        )
    return tuple(sorted(classes, key=lambda label: (len(label), label)))


class WithLabels(Adapter):
    """The rows of `source` with `label`, the number of their class, in their batches. Raises
    DataError for a row whose label is not one of `classes`."""

    def __init__(self, source: Rows, classes: tuple[str, ...]) -> None:
        super().__init__(source)
        number = {name: index for index, name in enumerate(classes)}
        labels = labels_of(source)
        if other := next((label for label in labels if label not in number), None):
            raise DataError(f"{source.path} has the label {other!r}, which is not a known class")
        self.labels = torch.tensor([number[label] for label in labels if label is not None])

    def combine(self, *batches: ActivationBatch) -> ActivationBatch:
        (batch,) = batches
        assert batch.rows is not None
        return dataclasses.replace(batch, label=self.labels[batch.rows])
