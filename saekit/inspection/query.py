"""Which latents a text or an image activates, or what one latent responds to: the verb `features`,
for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import nn

from saekit.display import html_table, pandas, plain_table
from saekit.errors import DataError, UsageError, check_choice, opt
from saekit.harvesting.anatomy import untouched
from saekit.harvesting.models import FromFolder
from saekit.harvesting.pictures import read_picture
from saekit.harvesting.sources import Document
from saekit.inspection.gather import scores_of
from saekit.inspection.inputs import input_models, input_rows, larger
from saekit.inspection.opening import InspectedModel, open_pair
from saekit.inspection.records import pick_rows
from saekit.inspection.scan import Scan
from saekit.inspection.score import Meaning, Scores
from saekit.inspection.show import token_texts
from saekit.models.codes import fires
from saekit.options import AnyStore, Doc
from saekit.store.opening import RowsLike
from saekit.store.reader import Store
from saekit.store.stack import StackedStore, stores_of
from saekit.training.checkpoints import ModelLike
from saekit.types import Progress

TOP_TOKENS = 5
SORTS = ("act", "score")
# of an automatic label: on " import", before " import" ...
KIND_WORDS = {"token": "on", "next": "before", "previous": "after", "label": "in"}


@dataclass(frozen=True)
class FeatureRow:
    """act is the value of largest size on the input, with its sign (for an index: on the store),
    max the largest size on the store; tokens are those on which the latent fires most in the store,
    for images the data's labels. score and label (automatic: `on " import"`) only where they were
    sorted by, see saekit.inspection.score."""

    index: int
    act: float
    max: float
    density: float | None
    label: str | None
    tokens: list[str]
    score: float | None = None


class FeatureRows(list[FeatureRow]):
    """What `features` returns: a list that shows itself as a table."""

    def figures(self) -> list[dict[str, Any]]:
        """One flat dict for each latent, its tokens joined by spaces."""
        return [{**asdict(row), "tokens": "  ".join(map(repr, row.tokens))} for row in self]

    def to_pandas(self) -> Any:
        """A DataFrame of `figures`, one row for each latent. Raises MissingError without
        pandas."""
        return pandas().DataFrame(self.figures())

    def __repr__(self) -> str:
        return plain_table(self._shown()) if self else "[]"

    def _repr_html_(self) -> str:
        return html_table(self._shown())

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
    index: Annotated[int | None, Doc("Describe this latent.", metavar="LATENT")] = None,
    text: Annotated[str | None, Doc("Rank the latents that this text activates.")] = None,
    image: Annotated[
        str | Path | None, Doc("Rank the latents that this image file activates.", metavar="FILE")
    ] = None,
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
    """The latents that an input activates, ranked by the size of act; or one latent; or those that
    are worth reading first.

    Parameters
        checkpoint: what `saekit.load` takes. Only a folder of saekit's own keeps the scan of the
            store for the next time.
        store: a path or an open Store; a crosscoder takes the stores of its training, in the same
            order, as a list. Rows in memory do not say which token or patch they come from.
        index, text, image: exactly one of these, or none with `sort="score"`. image: a file.
        top: rows to return, at most. What is returned is a list that prints as a table;
            `to_pandas()` is the DataFrame.
        sort: `score` is that of saekit.inspection.score; act is then the largest on the store where
            there is no input.
        any_store: also take a store of another model, hook or scope than that of a checkpoint's
            training.
        live: the model itself, for a store that was harvested from a model in memory. It stays on
            its device and in its mode.
        processor: its image processor; None: what lies where the model was loaded from. Texts are
            read with the store's own tokenizer.

    Raises UsageError, DataError, MissingError.
    """
    check_choice("sort", sort, SORTS)
    given = sum(value is not None for value in (index, text, image))
    if given > 1 or (given == 0 and sort != "score"):
        raise UsageError(
            f"give exactly one of {opt('index')}, {opt('text')}, {opt('image')}",
            f"{opt('sort', 'score')} needs none of them",
        )
    if top < 1:
        raise UsageError(f"{opt('top', top)} must be at least 1")
    inspected = open_pair(checkpoint, store, any_store)
    if index is not None:
        return FeatureRows([_of_index(inspected, index, progress, sort == "score")])
    if given == 0:
        scan = inspected.scan(progress)
        scores = _scores(inspected, scan)
        best = scores.order()[:top].tolist()
        return FeatureRows(_row(j, scan.largest(j), scan, inspected, scores) for j in best)
    modality = "text" if text is not None else "image"
    if modality != inspected.store.spec.modality:
        kinds = {"text": "texts", "image": "images"}
        trained_on = kinds.get(inspected.store.spec.modality, "raw data")
        raise DataError(
            f"{inspected.name} was trained on {trained_on}, not on {kinds[modality]}",
            f"give {opt(inspected.store.spec.modality)}",
        )
    scan = inspected.scan(progress)
    with nullcontext() if live is None else untouched(live, hooks=False):
        acts = _on_input(inspected, text, image, live, processor)
    scores = _scores(inspected, scan) if sort == "score" else None
    active = fires(acts, inspected.model.active_above or 0.0)
    if scores is not None:
        order = scores.order()
    else:
        order = torch.argsort(acts.abs(), descending=True, stable=True)
    chosen = order[active[order]][:top].tolist()
    return FeatureRows(_row(j, float(acts[j]), scan, inspected, scores) for j in chosen)


def _scores(inspected: InspectedModel, scan: Scan) -> Scores:
    """Raises DataError where no latent has one."""
    scores = scores_of(inspected.store, scan)
    if len(scores.order()) == 0:
        raise DataError(
            f"no latent of {inspected.name} has a score: that takes a sparse code, and text or"
            " labels",
            opt("sort", "act"),
        )
    return scores


def _of_index(
    inspected: InspectedModel, index: int, progress: Callable[[Progress], None], scored: bool
) -> FeatureRow:
    check_index(index, inspected.model.latents)
    scan = inspected.scan(progress)
    check_fired(index, scan)
    scores = _scores(inspected, scan) if scored else None
    return _row(index, scan.largest(index), scan, inspected, scores)


def _row(
    j: int, act: float, scan: Scan, inspected: InspectedModel, scores: Scores | None = None
) -> FeatureRow:
    density = None if inspected.model.active_above is None else float(scan.density[j])
    tokens = _typical(scan, inspected.store, j)
    row = FeatureRow(j, act, float(scan.max[j]), density, None, tokens)
    if scores is None:
        return row
    return replace(row, label=label_of(scores.meanings[j]), score=scores.of(j))


def check_index(index: int, latents: int) -> None:
    """Raise DataError for a latent that the model does not have."""
    if not 0 <= index < latents:
        raise DataError(f"feature {index}: this model has {latents:,} (0 to {latents - 1:,})")


def check_fired(index: int, scan: Scan) -> None:
    """Raise DataError for a latent that no row of the store activates."""
    if scan.active[index] == 0:
        raise DataError(
            f"feature {index} never fired in {scan.rows:,} rows",
            "saekit inspect lists those that fire",
        )


def label_of(meaning: Meaning | None) -> str | None:
    """An automatic label in one line: `on ' import'`."""
    return None if meaning is None else f"{KIND_WORDS[meaning.kind]} {meaning.text!r}"


def _typical(scan: Scan, store: Store | StackedStore, latent: int) -> list[str]:
    """The most common tokens (for images, labels) among the latent's strongest rows."""
    rows = [pick.row for pick in pick_rows(scan, store, latent, 20) if pick.interval is None]
    names: Counter[str] = Counter()
    texts = token_texts(store) if store.spec.modality == "text" and not store.spec.is_raw else None
    for row in rows:
        example, _ = store.origin.example_at(row)
        if texts is not None:
            at = int(store.origin.positions(row, 1)[0])
            tokens = example.tokens or ()
            names[texts(tokens)[at] or texts.alone(tokens[at])] += 1
        elif example.label is not None:
            names[example.label] += 1
    return [name for name, _ in names.most_common(TOP_TOKENS)]


@torch.no_grad()
def _on_input(
    inspected: InspectedModel,
    text: str | None,
    image: str | Path | None,
    live: nn.Module | None,
    processor: Any,
) -> torch.Tensor:
    """(F,): each latent's value of largest size over the input's tokens or patches (in the store's
    scope)."""
    stores = stores_of(inspected.store)
    for store in stores:
        if store.spec.is_raw:
            raise DataError(
                f"{store.path} holds raw data: there is no model to read an input with",
                f"{opt('index')} with the number of a latent",
            )
    remedy = "repair the file or give another"
    picture = None if image is None else read_picture(Path(image), remedy=remedy)
    document = Document(0, "input", text, picture)

    specs = [store.spec for store in stores]
    if inspected.store.spec.modality == "text":
        processor = FromFolder(str(Path(inspected.store.path) / "tokenizer"))
    models = input_models(specs, live, processor)

    # of every latent the value of largest size, with its sign
    largest_F = torch.zeros(inspected.model.latents)
    rows = 0
    for given in input_rows(document, specs, models):
        rows += len(given.x_BD)
        largest_F = larger(largest_F, inspected.model.encode(given.x_BD).to_dense())
    if rows == 0:
        raise no_rows()
    return largest_F


def no_rows() -> DataError:
    """The error for an input without a row in the scope."""
    return DataError(
        "the input holds no token in this store's scope", f"give a longer {opt('text')}"
    )
