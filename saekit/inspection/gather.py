"""A model and a store -> the records of the features that were asked for, complete: what the page
and the feature files of other programs are written from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import nn

from saekit.device import CPU
from saekit.embedded import credit
from saekit.harvesting.sources import Data
from saekit.indexing.reader import Index
from saekit.inspection.indexed import index_of
from saekit.inspection.meanings import Meanings
from saekit.inspection.opening import InspectedModel
from saekit.inspection.output_head import output_head, with_logits
from saekit.inspection.patches import PatchLatents
from saekit.inspection.records import feature_records, select_latents
from saekit.inspection.relate import hook_shares
from saekit.inspection.score import Scores, no_scores, score_latents
from saekit.inspection.show import Thumbnails, token_texts
from saekit.inspection.word_lift import word_lift
from saekit.store.reader import Store
from saekit.store.stack import StackedStore
from saekit.types import FeatureRecord, Progress

CROSSCODER_NOTE = (
    "A crosscoder. Shares of the decoder norm and neighbors are taken with every hook scaled to the"
    " same size, as in training; a decoder that writes to several hooks has no output tokens. The"
    " text or image of an example is the same for all hooks."
)
NO_DIRECTIONS_NOTE = (
    "the decoder is deep: latents have no directions, so there are no neighbors and no output"
    " tokens"
)


@dataclass(frozen=True)
class Gathered:
    index: Index
    latents: torch.Tensor
    """The chosen ones, in the order of their records."""
    records: Iterable[FeatureRecord]
    """Each is computed when it is read."""
    notes: list[str]
    """Sentences about what was not computed."""
    thumbnails: Thumbnails | None
    """Of a store of images."""
    scores: Scores
    contexts: dict[int, list[str]]
    """Tokens of the whole contexts of the records read so far, by the id of their example."""
    directions_FD: torch.Tensor | None
    patches: PatchLatents | None
    """Of images with patches, of a sparse code."""


def scores_of(store: Store | StackedStore, index: Index) -> Scores:
    """How much each latent is worth reading, from the words of the store's rows."""
    return no_scores(len(index)) if index.dense else score_latents(index, meanings_of(store))


def meanings_of(store: Store | StackedStore) -> Meanings:
    is_text = store.spec.modality == "text" and not store.spec.is_raw
    return Meanings(store, token_texts(store) if is_text else None)


def gather(
    inspected: InspectedModel,
    features: str,
    top: int,
    live: nn.Module | None,
    data: Data | None,
    progress: Callable[[Progress], None],
    device: torch.device = CPU,
    known: Collection[int] = (),
) -> Gathered:
    """Take or make the index, and choose the latents, without those that are `known` already.
    Parameters as those of `inspect`."""
    model, store = inspected.model, inspected.store

    # the index says which latents are shown
    index = index_of(inspected, progress, device, exact=True)
    scores = scores_of(store, index)
    chosen = select_latents(features, index, scores)
    if known:
        chosen = torch.tensor([j for j in chosen.tolist() if j not in known], dtype=torch.int64)

    def message(text: str) -> None:
        progress(Progress("inspect", 0, len(chosen), "features", message=text))

    thumbnails = Thumbnails(store, data) if store.spec.modality == "image" else None
    if thumbnails is not None and thumbnails.note:
        message(thumbnails.note)

    # examples and nearest decoder rows, a chunk of latents at a time
    stacked = isinstance(store, StackedStore)
    directions_FD = inspected.even_directions() if stacked else inspected.directions()
    contexts: dict[int, list[str]] = {}
    records: Iterable[FeatureRecord] = feature_records(
        model,
        store,
        index,
        chosen,
        top,
        thumbnails,
        directions_FD,
        progress,
        data,
        contexts,
    )
    records = _with_scores(records, scores, index)

    # what the decoder writes to
    if directions_FD is None:
        note = NO_DIRECTIONS_NOTE
    elif isinstance(store, StackedStore):
        records, note = _with_hook_shares(records, directions_FD, store), CROSSCODER_NOTE
    elif store.spec.modality == "text":
        head, note = output_head(inspected, store, live)
        if head is not None:
            records = with_logits(records, directions_FD, head, store)
        else:
            message(f"no output tokens: {note}")
    else:
        note = "the logit lens applies to the residual stream of language models"
    notes = [credit(store.spec.dataset), note, thumbnails.note if thumbnails else None]
    notes = [text for text in notes if text]
    patches = None
    if not index.dense and thumbnails is not None and store.spec.grid is not None:
        patches = PatchLatents(index, store)
    return Gathered(
        index, chosen, records, notes, thumbnails, scores, contexts, directions_FD, patches
    )


def _with_scores(
    records: Iterable[FeatureRecord], scores: Scores, index: Index
) -> Iterator[FeatureRecord]:
    for record in records:
        record.score = scores.of(record.index)
        meaning = scores.meanings[record.index]
        record.meaning = None if meaning is None else asdict(meaning)
        if meaning is not None and scores.words is not None:
            record.word = word_lift(index, scores.words, record.index, meaning)
        yield record


def _with_hook_shares(
    records: Iterable[FeatureRecord], directions_FD: torch.Tensor, stack: StackedStore
) -> Iterator[FeatureRecord]:
    shares_FP = hook_shares(directions_FD, stack.parts)
    for record in records:
        record.hook_shares = dict(zip(stack.names, shares_FP[record.index].tolist()))
        yield record
