"""Which latents a text, an image, a token, a label or another latent leads to, or what one latent
responds to: the verb `features`, for the terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from torch import nn

from saekit.errors import DataError, UsageError, check_choice, opt
from saekit.inspection.feature_rows import FeatureRow as FeatureRow
from saekit.inspection.feature_rows import FeatureRows, feature_row
from saekit.inspection.known import Known
from saekit.inspection.opening import InspectedModel, open_pair
from saekit.inspection.questions import QUESTIONS, check_order
from saekit.inspection.questions.asked import Asked
from saekit.inspection.score import Scores
from saekit.inspection.search import By, Filters, kept
from saekit.options import AnyStore, Doc
from saekit.store.opening import RowsLike
from saekit.training.checkpoints import ModelLike
from saekit.types import Progress

SORTS = ("act", "score")


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
    given = {"index": index, "text": text, "image": image, "token": token, "label": label,
             "near": near, "explained": explained}  # fmt: skip
    question, follow = _one_question(given, sort)
    if top < 1:
        raise UsageError(f"{opt('top', top)} must be at least 1")
    filters = Filters(min_density, max_density, not_bos)
    _check_company(given, follow, versus, by, filters)
    order = check_order(question, by)

    # what is known of the latents, and the answer
    inspected = open_pair(checkpoint, store, any_store)
    known = Known(inspected, progress)
    asked = Asked(inspected, known, given.get(question), order, versus, follow, live, processor)
    answer = QUESTIONS[question].answer(asked)

    # filters, order, rows
    chosen = answer.ranking.order
    if not answer.named:
        chosen = _passing(chosen, known, filters, inspected if sort == "score" else None)[:top]
    elif sort == "score" and follow is None:
        scores = _scores(inspected, known)
        chosen = np.array(sorted(chosen.tolist(), key=lambda j: -(scores.of(j) or 0.0)))
    scored = sort == "score" or answer.described
    return FeatureRows(feature_row(j, answer, inspected, known, scored) for j in chosen.tolist())


def _one_question(given: dict[str, Any], sort: str) -> tuple[str, int | None]:
    """(the question, the one latent that is followed along an input). Raises UsageError."""
    names = [name for name, value in given.items() if value is not None]
    if names in (["index", "text"], ["index", "image"]):
        index = given["index"]
        numbers = (index,) if isinstance(index, int) else tuple(index)
        if len(numbers) == 1:
            return names[1], numbers[0]
    if len(names) > 1 or (not names and sort != "score"):
        raise UsageError(
            f"give exactly one of {', '.join(map(opt, given))}",
            f"{opt('sort', 'score')} needs none of them",
        )
    return (names[0] if names else ""), None


def _check_company(
    given: dict[str, Any], follow: int | None, versus: str | None, by: str | None, filters: Filters
) -> None:
    """Raise UsageError for an option that the question has no use for."""
    if versus is not None and given["text"] is None:
        raise UsageError(f"{opt('versus')} contrasts another text with {opt('text')}", opt("text"))
    one = given["index"] if follow is None else follow
    if one is not None and filters != Filters():
        raise UsageError(
            f"{opt('index', one)} names the latents, and there is nothing to filter",
            f"drop {opt('min_density')}, {opt('max_density')} and {opt('not_bos')}",
        )
    if follow is not None and (versus is not None or by is not None):
        raise UsageError(
            f"{opt('index', follow)} is one latent, and there is nothing to rank",
            f"drop {opt('versus' if versus is not None else 'by')}",
        )


def _passing(
    order: np.ndarray, known: Known, filters: Filters, scored: InspectedModel | None
) -> np.ndarray:
    """Of the latents in `order` those that pass, in this order, or in that of their scores."""
    passes = kept(known, filters)
    if scored is None:
        return order[passes[order]]
    among = np.zeros(len(passes), bool)
    among[order] = True
    best = _scores(scored, known).order().numpy()
    return best[among[best] & passes[best]]


def _scores(inspected: InspectedModel, known: Known) -> Scores:
    """Raises DataError where no latent has one."""
    if len(known.scores.order()) == 0:
        raise DataError(
            f"no latent of {inspected.name} has a score: that takes a sparse code, and text or"
            " labels",
            opt("sort", "act"),
        )
    return known.scores
