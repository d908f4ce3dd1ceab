"""Another checkpoint of the same rows on a page: which of its latents are like each of the page's,
and which of the page's have no partner in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from saekit.errors import DataError, opt
from saekit.indexing.reader import Index
from saekit.inspection.beside_match import (
    PARTNER,
    Cosines,
    nearest_directions,
    summary,
)
from saekit.inspection.beside_page import Beside, Match
from saekit.inspection.beside_rows import RowMatches
from saekit.inspection.gather import Gathered, scores_of
from saekit.inspection.indexed import index_of
from saekit.inspection.opening import InspectedModel, open_pair
from saekit.inspection.page import PageMeta, megabytes
from saekit.inspection.records import expected_bytes, feature_records
from saekit.models.autoencoder import Autoencoder
from saekit.store.opening import RowsLike
from saekit.store.stack import StackedStore
from saekit.training.checkpoints import ModelLike, catalog_name, short_name
from saekit.types import FeatureRecord, Progress

EXAMPLES = 10  # of each of the other's latents

Report = Callable[[Progress], None]


def open_beside(
    other: ModelLike, store: RowsLike, inspected: InspectedModel, any_store: bool
) -> InspectedModel:
    """The other dictionary on the same store, known to fit. Raises DataError where its decoder
    rows cannot be compared with those of `inspected`, and what `open_pair` does."""
    try:
        opened = open_pair(other, store, any_store)
    except DataError as error:  # the store fits the inspected one
        hint = f"{opt('beside')} with a checkpoint of the same hook"
        raise DataError(error.cause, hint) from error
    widths = []
    for pair in (inspected, opened):
        directions_FD = _directions(pair)
        if directions_FD is None:
            raise DataError(f"{pair.name} has a deep decoder, whose latents have no directions")
        widths.append(directions_FD.shape[1])
    if widths[0] != widths[1]:
        raise DataError(
            f"{opened.name} writes {widths[1]:,} values per row, {inspected.name} {widths[0]:,}:"
            " their decoder rows cannot be compared",
            "give a checkpoint that reconstructs the same hook",
        )
    return opened


def beside_of(
    inspected: InspectedModel,
    other: InspectedModel,
    shown: Gathered,
    latents: Iterable[int],
    top: int,
    data: Any,
    device: torch.device,
    progress: Report,
) -> Beside:
    """Matches of `latents`, which are those of the page, and the records of the matches, each
    computed when it is read. Raises DataError where a dictionary has no latent that fires."""
    index = index_of(other, progress, device, exact=True)
    alive_F, alive_G = (torch.from_numpy(i.active > 0) for i in (shown.index, index))
    for pair, fires in ((inspected, alive_F), (other, alive_G)):
        if not fires.any():
            raise DataError(f"no latent of {pair.name} fires on {pair.store.path}")

    # cosines of all pairs, and the figures of both dictionaries as a whole
    W_FD, V_GD = (_known_directions(pair) for pair in (inspected, other))
    progress(Progress("beside", 0, 0, message=f"decoder rows are matched with {other.name}"))
    cosines = nearest_directions(W_FD, V_GD, alive_F, alive_G)
    facts = {
        "name": short_name(other.name),
        "checkpoint": other.name,
        "kind": kind_of(other.model),
        "latents": len(V_GD),
        "partner": PARTNER,
        "trained": [training_of(inspected), training_of(other)],
        **summary(W_FD, V_GD, alive_F, alive_G, cosines),
    }
    best_F = cosines.cosine_FK[:, 0]
    facts["without"] = (alive_F & (best_F < PARTNER)).nonzero()[:, 0].tolist()

    # activations on the same rows
    rows = None
    if not (shown.index.dense or index.dense):
        rows = RowMatches(shown.index, index)
        facts["correlation_chance"] = rows.by_chance()
    wanted = [j for j in dict.fromkeys(latents) if alive_F[j]]
    matches = matches_of(wanted, W_FD, V_GD, cosines, rows)

    beside = {match.index for of_one in matches.values() for match in of_one}
    found = torch.tensor(sorted(beside), dtype=torch.int64)
    _report_size(other, index, found, min(top, EXAMPLES), progress)
    return Beside(
        meta=_meta(other, index, shown.notes),
        facts=facts,
        matches=matches,
        records=_records(other, index, found, min(top, EXAMPLES), shown, data, progress),
    )


def training_of(pair: InspectedModel) -> dict[str, Any]:
    """What a checkpoint's config says of its training, None for what it does not say:

    "kind", "latents" and "width" of the model; "seed", and "order" that of the order of the rows;
    "rows" trained on; "content" of their (first) store, and "here": whether it is the pair's.
    """
    config = {} if pair.checkpoint is None else pair.checkpoint.config
    training, content = config.get("training") or {}, config.get("content")
    seed, order = training.get("seed"), training.get("order_seed")
    return {
        "kind": kind_of(pair.model),
        "latents": pair.model.latents,
        "width": pair.store.spec.d_in,
        "seed": seed,
        "order": seed if order is None else order,
        "rows": (config.get("result") or {}).get("rows"),
        "content": content,
        "here": None if content is None else content == pair.contents()[0],
    }


def kind_of(model: Autoencoder) -> str:
    """`topk k=32`, `jumprelu`, or the name in the catalog of a model without a sparsity."""
    sparsity = getattr(model.config, "sparsity", None)
    if sparsity == "topk":
        return f"topk k={model.config.k}"
    return sparsity or catalog_name(model)


def matches_of(
    latents: list[int],
    W_FD: torch.Tensor,
    V_GD: torch.Tensor,
    cosines: Cosines,
    rows: RowMatches | None,
) -> dict[int, list[Match]]:
    """Of each latent the other's nearest by cosine and, where there are `rows`, those with the
    largest correlation, each once with all figures, by cosine from the largest."""
    near = {j: [g for g in cosines.nearest_FK[j].tolist() if g >= 0] for j in latents}
    if rows is None:
        pairs = [(j, g) for j, found in near.items() for g in found]
        return _by_latent(latents, pairs, _cosines(W_FD, V_GD, pairs), None)
    matches: dict[int, list[Match]] = {}
    for a, b, together, products in rows.blocks():
        of_block = [j for j in latents if a <= j < b]
        if not of_block:
            continue
        alike = rows.best(a, together, products)
        pairs = [
            (j, g)
            for j in of_block
            for g in dict.fromkeys([*near[j], *alike.get(j, np.empty(0, int)).tolist()])
        ]
        first, other = np.array(pairs, np.int64).reshape(-1, 2).T
        figures = rows.of_pairs(a, together, products, first, other)
        columns = [
            figures.together.astype(int).tolist(),
            figures.jaccard.tolist(),
            figures.correlation.tolist(),
        ]
        found = list(zip(*columns, strict=True))
        matches |= _by_latent(of_block, pairs, _cosines(W_FD, V_GD, pairs), found)
    return matches


def _by_latent(
    latents: list[int],
    pairs: list[tuple[int, int]],
    cosines: list[float],
    figures: list[tuple[int, float, float]] | None,
) -> dict[int, list[Match]]:
    matches: dict[int, list[Match]] = {j: [] for j in latents}
    for at, ((j, g), cosine) in enumerate(zip(pairs, cosines)):
        on_rows = (None, None, None) if figures is None else figures[at]
        matches[j].append(Match(g, cosine, *on_rows))
    for found in matches.values():
        found.sort(key=lambda match: (-match.cosine, match.index))
    return matches


def _cosines(W_FD: torch.Tensor, V_GD: torch.Tensor, pairs: list[tuple[int, int]]) -> list[float]:
    """In fp64."""
    first, other = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    W_ND, V_ND = W_FD[first].double(), V_GD[other].double()
    return torch.nn.functional.cosine_similarity(W_ND, V_ND, dim=1).tolist()


def _directions(pair: InspectedModel) -> torch.Tensor | None:
    """As neighbors are taken: those of a crosscoder with every hook scaled to the same size."""
    if isinstance(pair.store, StackedStore):
        return pair.even_directions()
    return pair.directions()


def _known_directions(pair: InspectedModel) -> torch.Tensor:
    directions_FD = _directions(pair)
    assert directions_FD is not None, "checked when it was opened"
    return directions_FD.detach()


def _meta(other: InspectedModel, index: Index, notes: list[str]) -> PageMeta:
    """The other dictionary as a list shows it."""
    spec, scores = other.store.spec, scores_of(other.store, index)
    latents = len(index)
    return PageMeta(
        title=short_name(other.name),
        modality=spec.modality,
        model=spec.model,
        hook=spec.hook,
        dataset=spec.dataset,
        checkpoint=short_name(other.name),
        d_in=spec.d_in,
        latents=latents,
        rows=index.rows,
        density=[None] * latents if index.dense else index.density.tolist(),
        max=index.max.tolist(),
        notes=notes,
        score=[scores.of(j) for j in range(latents)],
        meanings=[None if m is None else asdict(m) for m in scores.meanings],
    )


def _records(
    other: InspectedModel,
    index: Index,
    latents: torch.Tensor,
    top: int,
    shown: Gathered,
    data: Any,
    progress: Report,
) -> Iterator[FeatureRecord]:
    """With the strongest examples only, in the contexts and images of the page."""
    records = feature_records(
        other.model,
        other.store,
        index,
        latents,
        top,
        shown.thumbnails,
        None,
        progress,
        data,
        shown.contexts,
        beyond_top=False,
    )
    for done, record in enumerate(records, 1):
        examples = [example for example in record.examples if example.group == "top"]
        yield replace(record, examples=examples)
        progress(Progress("beside", done, len(latents), "features"))


def _report_size(
    other: InspectedModel, index: Index, latents: torch.Tensor, top: int, progress: Report
) -> None:
    size = expected_bytes(other.store, index, latents, top) if len(latents) else 0
    message = f"{len(latents):,} latents of {other.name} beside them take up to {megabytes(size)}"
    progress(Progress("beside", 0, len(latents), "features", message=message))
