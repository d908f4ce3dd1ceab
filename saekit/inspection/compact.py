"""A FeatureRecord as a shard holds it: floats at 4 significant digits, and nothing that the page
can put together again from what it has.

The tokens of an example are a part of a context that is in `contexts/` once, for all features; its
shaded values are a part of `context_values`. The edges of a histogram are a sequence of equal
steps. Output tokens that stand out no more than those of a random direction are not shown, so they
are left out. `expand` in assets/expand.js is the inverse, `expanded` the same in Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from saekit.inspection.output_tests import told
from saekit.types import Example, FeatureRecord

# in place of the number of a band; quantiles are numbered down from the last
NUMBERS = {"top": -1, "random": -2, "median": -3}
QUANTILE = -10
PAIRS = ("index", "together", "jaccard", "pmi")
SIDES = {"top": "raised", "bottom": "lowered"}
TOKEN_FIGURES = ("tokens", "different", "position", "first")
LABEL_FIGURES = ("label", "examples", "strongest", "lift")
RANGE = ("low", "high", "rows")
WORD_FIGURES = ("count", "of", "lift")
TESTED = (
    *("raised", "lowered", "raised_chance", "lowered_chance"),
    *("raised_one", "lowered_one", "raised_one_chance", "lowered_one_chance"),
    *("raised_beyond", "lowered_beyond"),
)

Lookup = Callable[[int], "list[Any] | None"]
"""The id of an example -> [tokens, doc_id, source, label] of its context; None where the page has
none."""


def rounded(value: Any) -> Any:
    """The same structure with floats at 4 significant digits; whole numbers (counts) stay exact."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return value


def compact(record: FeatureRecord, context: Lookup) -> dict[str, Any]:
    """`context` has those contexts that are written already."""
    word = record.word
    return {
        "index": record.index,
        "density": rounded(record.density),
        "active_rows": record.active_rows,
        "max": rounded(record.max),
        "edges": _edges(record.histogram["edges"]),
        "counts": rounded(record.histogram["counts"]),
        "bands": _ranges(record.bands),
        "examples": [_example(example, context) for example in record.examples],
        "neighbours": _flat(record.neighbours, ("index", "cosine")),
        "coactivation": _flat(record.coactivation, PAIRS),
        "following": _flat(record.following, PAIRS),
        "logits": None if record.logits is None else _logits(record),
        "logit_test": record.logit_test and rounded([record.logit_test.get(n) for n in TESTED]),
        "samples": [_example(example, context) for example in record.samples],
        "tokens": record.tokens and _tokens(record.tokens),
        "data_labels": record.data_labels and _labels(record.data_labels),
        "logit_histogram": record.logit_histogram and _bins(record.logit_histogram),
        "label": record.label,
        "hook_shares": rounded(record.hook_shares),
        "fifths": record.fifths and _ranges(record.fifths),
        "word": word and rounded([word[name] for name in WORD_FIGURES]),
    }


def expanded(data: dict[str, Any], context: Lookup) -> FeatureRecord:
    """The record of which `compact` made this, with its floats rounded; without score and meaning,
    which are in the catalog."""
    fields = dict(data)
    edges, counts = fields.pop("edges"), fields.pop("counts")
    if len(edges) < len(counts) + 1:
        low, high = edges
        edges = [low + (high - low) * i / len(counts) for i in range(len(counts) + 1)]
    fields["histogram"] = {"edges": rounded(edges), "counts": counts}
    fields["bands"] = [dict(zip(RANGE, band)) for band in data["bands"]] or None
    fields["neighbours"] = _listed(data["neighbours"], ("index", "cosine"))
    for name in ("coactivation", "following"):
        fields[name] = _listed(data[name], PAIRS)
    if data["tokens"] is not None:
        flat, *counts = data["tokens"]
        commonest = _listed(flat, ("token", "rows", "lift"))
        fields["tokens"] = dict(zip(TOKEN_FIGURES, (commonest, *counts)))
    # pages of before lack these
    if data.get("data_labels") is not None:
        flat, *numbers = data["data_labels"]
        labels = _listed(flat, LABEL_FIGURES)
        names = ("examples", "strongest", "least")
        fields["data_labels"] = {"labels": labels, **dict(zip(names, numbers))}
    if data.get("fifths") is not None:
        fields["fifths"] = [dict(zip(RANGE, each)) for each in data["fifths"]]
    if data.get("word") is not None:
        fields["word"] = dict(zip(WORD_FIGURES, data["word"]))
    if data.get("logit_histogram") is not None:
        low, high, *per_bin = data["logit_histogram"]
        edges = [low + (high - low) * i / len(per_bin) for i in range(len(per_bin) + 1)]
        fields["logit_histogram"] = {"edges": rounded(edges), "counts": per_bin}
    if data["logits"] is not None:
        fields["logits"] = {
            side: [{"token": t, "value": v} for t, v in zip(entries[::2], entries[1::2])]
            for side, entries in data["logits"].items()
        }
    fields["logit_test"] = data["logit_test"] and dict(zip(TESTED, data["logit_test"]))
    for name in ("examples", "samples"):
        fields[name] = [_again(example, context) for example in data[name]]
    return FeatureRecord(**fields)


def _edges(edges: list[float]) -> list[float]:
    """The first and the last, where equal steps between them give the same figures; else all."""
    bins = len(edges) - 1
    steps = edges[0] + (edges[-1] - edges[0]) * np.arange(bins + 1) / bins
    # a number half way between two figures is rounded one way here, the other way in a browser
    scale = 10.0 ** (3 - np.floor(np.log10(np.maximum(np.abs(steps), 1e-300))))
    scaled = np.abs(steps) * scale
    halfway = np.abs(scaled - np.floor(scaled) - 0.5) < 1e-7
    figures = rounded(edges)
    if bins > 1 and not halfway.any() and rounded(steps.tolist()) == figures:
        return [edges[0], edges[-1]]
    return figures


def _flat(entries: list[dict[str, Any]], names: tuple[str, ...]) -> list[Any]:
    return [rounded(entry.get(name)) for entry in entries for name in names]


def _listed(flat: list[Any], names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The inverse; a value that there was not is left out."""
    rows = zip(*(flat[at :: len(names)] for at in range(len(names))))
    return [{n: value for n, value in zip(names, row) if value is not None} for row in rows]


def _tokens(tokens: dict[str, Any]) -> list[Any]:
    flat = _flat(tokens["tokens"], ("token", "rows", "lift"))
    return [flat, *(rounded(tokens[name]) for name in TOKEN_FIGURES[1:])]


def _labels(labels: dict[str, Any]) -> list[Any]:
    flat = _flat(labels["labels"], LABEL_FIGURES)
    return [flat, labels["examples"], labels["strongest"], labels.get("least", 0)]


def _ranges(ranges: list[dict[str, float]] | None) -> list[list[float]]:
    return [rounded([each[name] for name in RANGE]) for each in ranges or []]


def _bins(histogram: dict[str, list[float]]) -> list[float]:
    """Its ends, then its counts."""
    edges, counts = histogram["edges"], histogram["counts"]
    return rounded([edges[0], edges[-1], *counts])


def _group(example: Example) -> int:
    """The group and number of an example as one number."""
    if example.group in NUMBERS:
        return NUMBERS[example.group]
    assert example.interval is not None
    return example.interval if example.group == "interval" else QUANTILE - example.interval


def _group_of(number: int) -> tuple[Any, int | None]:
    for group, own in NUMBERS.items():
        if number == own:
            return group, None
    return ("interval", number) if number >= 0 else ("quantile", QUANTILE - number)


def _logits(record: FeatureRecord) -> dict[str, list[Any]]:
    assert record.logits is not None
    shown = {
        side: (record.logits.get(side) or [])[: told(record.logit_test, name)]
        for side, name in SIDES.items()
    }
    return {
        side: [
            part for entry in entries or () for part in (entry["token"], rounded(entry["value"]))
        ]
        for side, entries in shown.items()
    }


def _example(example: Example, context: Lookup) -> Any:
    """[group, example, position, centre, tokens shown, act, position, value, ...] where the
    page has the whole context, else all of it."""
    known = context(example.example_id)
    if known is None or not _is_part_of(example, known):
        return rounded(vars(example))
    tokens, values = example.tokens, example.context_values
    assert tokens is not None and values is not None
    head = [_group(example), example.example_id]
    place = [example.position, example.centre, len(tokens), rounded(example.act)]
    return [*head, *place, *(part for at, v in values for part in (int(at), rounded(v)))]


def _is_part_of(example: Example, known: list[Any]) -> bool:
    tokens, *names = known
    if example.tokens is None or example.centre is None or example.context_values is None:
        return False
    first = example.position - example.centre
    shown = len(example.tokens)
    inside = {int(at) - first: value for at, value in example.context_values}
    return (
        names == [example.doc_id, example.source, example.label]
        and (example.interval is None) == (example.group in NUMBERS)
        and first >= 0
        and len(example.values) == shown
        and tokens[first : first + shown] == example.tokens
        and all(inside.get(at, 0) == value for at, value in enumerate(example.values))
    )


def _again(data: Any, context: Lookup) -> Example:
    if isinstance(data, dict):
        return Example(**data)
    number, example_id, position, centre, shown, act, *flat = data
    group, interval = _group_of(number)
    known = context(example_id)
    if known is None:
        raise ValueError(f"the context of example {example_id} is missing")
    tokens, doc_id, source, label = known
    pairs = [[at, value] for at, value in zip(flat[::2], flat[1::2])]
    first, values = position - centre, [0.0] * shown
    for at, value in pairs:
        if first <= at < first + shown:
            values[at - first] = value
    return Example(
        group=group,
        act=act,
        doc_id=doc_id,
        example_id=example_id,
        position=position,
        values=values,
        source=source,
        interval=interval,
        tokens=tokens[first : first + shown],
        centre=centre,
        label=label,
        context_values=pairs,
    )
