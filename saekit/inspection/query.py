"""Which latents a text, an image, a token, a label or another latent leads to, or what one latent
responds to: the verb `features`, for the terminal."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from torch import nn

from saekit.errors import DataError, UsageError, check_choice, opt
from saekit.inspection.feature_rows import FeatureRows, feature_row
from saekit.inspection.known import Known
from saekit.inspection.opening import InspectedModel, open_pair
from saekit.inspection.questions import QUESTIONS, check_order
from saekit.inspection.questions.asked import Answer, Asked
from saekit.inspection.score import Scores
from saekit.inspection.search import By, Filters, kept, why_none_passes
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
        str | Path | None,
        Doc(
            "Rank the latents that this image activates: a file, or embedded:NAME:IMAGE with its"
            " number or name.",
            metavar="IMAGE",
        ),
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
    raises: Annotated[
        bool | None,
        Doc(
            "Also the output token that each latent raises most, where it stands out. It takes the"
            " language model, so by default it is only of a text."
        ),
    ] = None,
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
            `sort="score"`. index: one latent, or several. image: a file or an embedded image
            (`embedded:openmoji:crab #0`). token and label are of
            sparse codes. index with text or image: `values` of the row are those of this latent all
            along the input.
        by: docs/index-search.md has the formulas. With `versus`, of the differences.
        not_bos: drop latents of which at least half of the active rows are the first of a context:
            the BOS where it was stored, else what takes its place. Of sparse codes.
        top: rows to return, at most. What is returned is a list that prints as a table;
            `to_pandas()` is the DataFrame.
        sort: `score` is that of saekit.inspection.score, and orders the latents that the question
            leads to. act is then the largest on the store where there is no question.
        raises: None is True where the question loads the language model (`text`), else False.
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
    scored = sort == "score"
    latents, note = _chosen(answer, inspected, known, filters, scored, top)
    raised = _raised(raises, inspected, latents, answer.read is not None, live)
    return FeatureRows(
        (feature_row(j, answer, inspected, known, raised.get(j)) for j in latents),
        "score" if scored else order or "act",
        "" if latents else note or QUESTIONS[question].nothing,
    )


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


def _chosen(
    answer: Answer,
    inspected: InspectedModel,
    known: Known,
    filters: Filters,
    scored: bool,
    top: int,
) -> tuple[list[int], str]:
    """(the latents to show, why the filters leave none). `scored`: in the order of the scores."""
    among = answer.ranking.order
    followed = answer.named and answer.read is not None
    if scored and not followed:
        among = _by_score(among, _scores(inspected, known), answer.named)
    if answer.named:
        return among.tolist(), ""
    chosen = among[kept(known, filters)[among]]
    note = why_none_passes(known, filters, among) if len(among) and not len(chosen) else ""
    return chosen[:top].tolist(), note


def _by_score(among: np.ndarray, scores: Scores, every: bool) -> np.ndarray:
    """Best first. `every`: those without a score come last; else they are left out."""
    if every:
        return np.array(sorted(among.tolist(), key=lambda j: -(scores.of(j) or 0.0)), np.int64)
    best = scores.order().numpy()
    return best[np.isin(best, among)]


def _raised(
    raises: bool | None,
    inspected: InspectedModel,
    latents: list[int],
    loaded: bool,
    live: nn.Module | None,
) -> dict[int, str]:
    """As `raised_tokens`. `raises` None: where the question has loaded the model, and its output
    head reads the decoder."""
    if not latents or not (loaded if raises is None else raises):
        return {}
    from saekit.inspection.raised import raised_tokens

    with suppress(DataError) if raises is None else nullcontext():
        return raised_tokens(inspected, latents, live)
    return {}


def _scores(inspected: InspectedModel, known: Known) -> Scores:
    """Raises DataError where no latent has one."""
    if len(known.scores.order()) == 0:
        raise DataError(
            f"no latent of {inspected.name} has a score: that takes a sparse code, and text or"
            " labels",
            opt("sort", "act"),
        )
    return known.scores
