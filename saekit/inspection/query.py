"""Which latents a text, an image, a token, a label or another latent leads to, or what one latent
responds to: the verb `features`, for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from torch import nn

from saekit.display import TableList
from saekit.errors import DataError, UsageError, check_choice, opt
from saekit.harvesting.anatomy import untouched
from saekit.inspection.explained import of_explanation
from saekit.inspection.known import Known
from saekit.inspection.on_input import OnInput, of_input, on_input
from saekit.inspection.opening import InspectedModel, open_pair
from saekit.inspection.score import Meaning, Scores
from saekit.inspection.search import (
    By,
    Ranking,
    check_order,
    filters_of,
    kept,
    left_out,
    near_latent,
    of_label,
    of_token,
)
from saekit.options import AnyStore, Doc
from saekit.store.opening import RowsLike
from saekit.store.reader import Store
from saekit.store.stack import StackedStore
from saekit.training.checkpoints import ModelLike
from saekit.types import Progress

TOP_TOKENS = 5
TYPICAL_ROWS = 20
SORTS = ("act", "score")
# of an automatic label: on " import", before " import" ...
KIND_WORDS = {"token": "on", "next": "before", "previous": "after", "label": "in", "name": "in"}


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


def features(
    checkpoint: Annotated[
        ModelLike,
        Doc(
            "Checkpoint: a folder, or a published dictionary by its path or name.",
            metavar="CKPT",
            positional=True,
        ),
    ],
    store: Annotated[
        RowsLike,
        Doc(
            "Store folder. For a crosscoder, give the stores of its training, in the same order.",
            metavar="STORE...",
        ),
    ],
    *,
    index: Annotated[
        int | tuple[int, ...] | None,
        Doc(
            "Describe this latent, or several with commas. With a text or an image: its value on"
            " every token or patch."
        ),
    ] = None,
    text: Annotated[str | None, Doc("Rank the latents that this text activates.")] = None,
    versus: Annotated[
        str | None,
        Doc("Rank by how much more the text activates them than this one.", metavar="TEXT"),
    ] = None,
    image: Annotated[
        str | Path | None, Doc("Rank the latents that this image file activates.", metavar="FILE")
    ] = None,
    token: Annotated[
        str | None, Doc("Rank the latents that fire on this token, in any context.")
    ] = None,
    label: Annotated[
        str | None, Doc("Rank the latents that tell the images or texts of this label from others.")
    ] = None,
    near: Annotated[
        int | None, Doc("Rank the latents that are nearest to this one.", metavar="LATENT")
    ] = None,
    explained: Annotated[
        str | None,
        Doc(
            "Rank the latents that these words describe: in names and explanations beside the"
            " checkpoint, in automatic labels, in the tokens of their strongest rows.",
            metavar="WORDS",
        ),
    ] = None,
    by: Annotated[
        By | None,
        Doc(
            "Order. Of a text or image: max or mean. Of a token: information (of its rows), mean,"
            " share or lift. Of a label: information, auroc, share or lift. Near a latent: cosine"
            " of decoder, encoder or coactivation. Default: the first."
        ),
    ] = None,
    min_density: Annotated[
        float | None, Doc("Only latents that are active in at least this share of the rows.")
    ] = None,
    max_density: Annotated[
        float | None, Doc("Only latents that are active in at most this share of the rows.")
    ] = None,
    not_bos: Annotated[
        bool, Doc("Without latents that mostly fire on the first row of a context.")
    ] = False,
    top: Annotated[int, Doc("Latents to print.")] = 10,
    sort: Annotated[
        Literal["act", "score"],
        Doc(
            "act: by size on the input. score: by how much they are worth reading, of those that"
            " the input activates, or without an input of all."
        ),
    ] = "act",
    any_store: AnyStore = False,
    live: nn.Module | None = None,
    processor: Any = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> FeatureRows:
    """The latents that a question leads to, best first; or one latent; or those that are worth
    reading first.

    Parameters
        checkpoint: what `saekit.load` takes. Only a folder of saekit's own keeps the index of
            the store for the next time.
        store: a path or an open Store; a crosscoder takes the stores of its training, in the same
            order, as a list. Rows in memory do not say which token or patch they come from.
        index, text, image, token, label, near, explained: exactly one of these, or none with
            `sort="score"`. index: one latent, or several. image: a file. token and label are of
            sparse codes. index with text or image: `values` of the row are those of this latent all
            along the input.
        by: docs/index-search.md has the formulas. With `versus`, of the differences.
        not_bos: drop latents of which at least half of the active rows are the first of a context:
            the BOS where it was stored, else what takes its place. Of sparse codes.
        top: rows to return, at most. What is returned is a list that prints as a table;
            `to_pandas()` is the DataFrame.
        sort: `score` is that of saekit.inspection.score, and orders the latents that the question
            leads to. act is then the largest on the store where there is no question.
        any_store: also take a store of another model, hook or scope than that of a checkpoint's
            training.
        live: the model itself, for a store that was harvested from a model in memory. It stays on
            its device and in its mode.
        processor: its image processor; None: what lies where the model was loaded from. Texts are
            read with the store's own tokenizer.

    Raises UsageError, DataError, MissingError.
    """
    # one question
    check_choice("sort", sort, SORTS)
    asked = {"index": index, "text": text, "image": image, "token": token, "label": label,
             "near": near, "explained": explained}  # fmt: skip
    given = [name for name, value in asked.items() if value is not None]
    numbers = () if index is None else (index,) if isinstance(index, int) else tuple(index)
    follow = None
    if given in (["index", "text"], ["index", "image"]) and len(numbers) == 1:
        follow = numbers[0]
        given, index = given[1:], None
    if len(given) > 1 or (not given and sort != "score"):
        raise UsageError(
            f"give exactly one of {', '.join(map(opt, asked))}",
            f"{opt('sort', 'score')} needs none of them",
        )
    if top < 1:
        raise UsageError(f"{opt('top', top)} must be at least 1")
    if versus is not None and text is None:
        raise UsageError(f"{opt('versus')} contrasts another text with {opt('text')}", opt("text"))
    one = index if follow is None else follow
    if one is not None and (not_bos or (min_density, max_density) != (None, None)):
        raise UsageError(
            f"{opt('index', one)} names the latents, and there is nothing to filter",
            f"drop {opt('min_density')}, {opt('max_density')} and {opt('not_bos')}",
        )
    if follow is not None and (versus is not None or by is not None):
        raise UsageError(
            f"{opt('index', follow)} is one latent, and there is nothing to rank",
            f"drop {opt('versus' if versus is not None else 'by')}",
        )
    question, first = given[0] if given else "", None
    order = check_order(question, by)

    # what is known of the latents, and the answer
    inspected = open_pair(checkpoint, store, any_store)
    known = Known(inspected, progress)
    if index is not None:
        chosen = (index,) if isinstance(index, int) else tuple(index)
        for j in chosen:
            _check_latent(inspected, known, j)
        if sort == "score":
            scores = _scores(inspected, known)
            chosen = sorted(chosen, key=lambda j: -(scores.of(j) or 0.0))
        return FeatureRows(_row(j, known.largest(j), inspected, known, True) for j in chosen)
    if question in ("text", "image"):
        modality = "text" if text is not None else "image"
        _check_modality(inspected, modality)
        if follow is not None:
            check_number(follow, inspected.model.latents)
        with nullcontext() if live is None else untouched(live, hooks=False):
            first = on_input(inspected, text, image, live, processor, follow)
            second = None if versus is None else on_input(inspected, versus, None, live, processor)
        if follow is not None:
            return FeatureRows([_followed(follow, first, inspected, known, sort == "score")])
        ranking = of_input(first, second, order, inspected.model.active_above or 0.0)
    elif token is not None:
        ranking = of_token(inspected, known, token, order)
    elif label is not None:
        ranking = of_label(known, label, order)
    elif near is not None:
        _check_latent(inspected, known, near)
        ranking = near_latent(inspected, known, near, order)
    elif explained is not None:
        ranking = of_explanation(known, explained)
    else:
        ranking = Ranking(np.arange(inspected.model.latents))

    # filters, order, rows
    passes = kept(known, min_density, max_density, not_bos)
    if sort == "score":
        among = np.zeros(len(passes), bool)
        among[ranking.order] = True
        scored = _scores(inspected, known).order().numpy()
        chosen = scored[among[scored] & passes[scored]]
    else:
        chosen = ranking.order[passes[ranking.order]]
    if not len(chosen):
        filters = filters_of(known, min_density, max_density, not_bos)
        progress(Progress("features", 0, 0, message=left_out(filters, ranking.order)))
    act_F, texts = ranking.act, known.texts
    scored = sort == "score" or explained is not None
    at = lambda j: None if first is None else first.at(j, texts)
    act = known.largest if act_F is None else lambda j: float(act_F[j])
    return FeatureRows(
        replace(_row(j, act(j), inspected, known, scored, ranking.of(j)), at=at(j))
        for j in chosen[:top].tolist()
    )


def _check_modality(inspected: InspectedModel, modality: str) -> None:
    if modality != inspected.store.spec.modality:
        kinds = {"text": "texts", "image": "images"}
        trained_on = kinds.get(inspected.store.spec.modality, "raw data")
        raise DataError(
            f"{inspected.name} was trained on {trained_on}, not on {kinds[modality]}",
            f"give {opt(inspected.store.spec.modality)}",
        )


def _check_latent(inspected: InspectedModel, known: Known, latent: int) -> None:
    check_number(latent, inspected.model.latents)
    check_fired(latent, int(known.active[latent]), known.rows)


def check_number(latent: int, latents: int) -> None:
    """Raise DataError for a latent that the model does not have."""
    if not 0 <= latent < latents:
        cause = f"feature {latent}: this model has {latents:,} (0 to {latents - 1:,})"
        raise DataError(
            cause, f"saekit features with {opt('sort', 'score')} lists those worth reading"
        )


def check_fired(latent: int, active: int, rows: int) -> None:
    """Raise DataError for a latent that no row of the store activates."""
    if active == 0:
        raise DataError(
            f"feature {latent} never fired in {rows:,} rows", "saekit inspect lists those that fire"
        )


def label_of(meaning: Meaning | None) -> str | None:
    """An automatic label in one line: `on ' import'`."""
    return None if meaning is None else f"{KIND_WORDS[meaning.kind]} {meaning.text!r}"


def _scores(inspected: InspectedModel, known: Known) -> Scores:
    """Raises DataError where no latent has one."""
    if len(known.scores.order()) == 0:
        raise DataError(
            f"no latent of {inspected.name} has a score: that takes a sparse code, and text or"
            " labels",
            opt("sort", "act"),
        )
    return known.scores


def _row(
    j: int,
    act: float,
    inspected: InspectedModel,
    known: Known,
    scored: bool,
    figures: dict[str, float] | None = None,
) -> FeatureRow:
    density = None if inspected.model.active_above is None else float(known.density[j])
    tokens = _typical(known, inspected.store, j)
    row = FeatureRow(
        j, act, float(known.max[j]), density, None, tokens, None, figures, known.source
    )
    if not scored:
        return row
    label = known.described.label(j) or label_of(known.scores.meanings[j])
    return replace(row, label=label, score=known.scores.of(j))


def _followed(
    j: int, found: OnInput, inspected: InspectedModel, known: Known, scored: bool
) -> FeatureRow:
    """One latent on an input, with its value on each of its rows."""
    act = float(found.largest[j])
    row = _row(j, act, inspected, known, scored)
    at = found.at(j, known.texts) if act else None
    return replace(row, at=at, values=found.along(known.texts))


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
