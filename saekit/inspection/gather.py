"""A model and a store -> the records of the features that were asked for, complete: what the page
and the feature files of other programs are written from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from saekit.device import CPU
from saekit.harvesting.sources import Data
from saekit.inspection.opening import InspectedModel
from saekit.inspection.output_head import output_head, with_logits
from saekit.inspection.records import feature_records, select_latents
from saekit.inspection.relate import hook_shares
from saekit.inspection.scan import Scan
from saekit.inspection.show import Thumbnails
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
    scan: Scan
    latents: torch.Tensor
    """The chosen ones, in the order of their records."""
    records: Iterable[FeatureRecord]
    """Each is computed when it is read."""
    notes: list[str]
    """Sentences about what was not computed."""
    thumbnails: Thumbnails | None
    """Of a store of images."""


def gather(
    inspected: InspectedModel,
    features: str,
    top: int,
    live: nn.Module | None,
    data: Data | None,
    progress: Callable[[Progress], None],
    device: torch.device = CPU,
) -> Gathered:
    """Scan the store once and choose the latents. Parameters as those of `inspect`."""
    model, store = inspected.model, inspected.store

    # one pass over the rows says which latents are shown
    scan = inspected.scan(progress, device)
    chosen = select_latents(features, scan)

    def message(text: str) -> None:
        progress(Progress("inspect", 0, len(chosen), "features", message=text))

    thumbnails = Thumbnails(store, data) if store.spec.modality == "image" else None
    if thumbnails is not None and thumbnails.note:
        message(thumbnails.note)

    # examples and nearest decoder rows, a chunk of latents at a time
    stacked = isinstance(store, StackedStore)
    directions_FD = inspected.even_directions() if stacked else inspected.directions()
    records: Iterable[FeatureRecord] = feature_records(
        model, store, scan, chosen, top, thumbnails, directions_FD, progress, data
    )

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
    notes = [note, "" if thumbnails is None else thumbnails.note]
    return Gathered(scan, chosen, records, [text for text in notes if text], thumbnails)


def _with_hook_shares(
    records: Iterable[FeatureRecord], directions_FD: torch.Tensor, stack: StackedStore
) -> Iterator[FeatureRecord]:
    shares_FP = hook_shares(directions_FD, stack.parts)
    for record in records:
        record.hook_shares = dict(zip(stack.names, shares_FP[record.index].tolist()))
        yield record
