"""Index + windows -> FeatureRecords: the rows that show a latent, and all that the page says about
it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch

from saekit.errors import DataError, UsageError, opt
from saekit.indexing.histogram import BANDS
from saekit.indexing.reader import Index
from saekit.indexing.shown import KEPT_TOP
from saekit.inspection.beyond_top import (
    EACH,
    GROUPS,
    RANDOM,
    TokenCounts,
    fifths_of,
    sampled_rows,
    together,
)
from saekit.inspection.labels import LabelCounts
from saekit.inspection.relate import decoder_neighbours
from saekit.inspection.score import Scores
from saekit.inspection.show import Thumbnails, token_texts
from saekit.inspection.tokens import TokenTexts
from saekit.inspection.windows import Windows, read_windows
from saekit.inspection.written import WrittenTexts
from saekit.models.autoencoder import Autoencoder
from saekit.store.reader import Store
from saekit.store.shards import StoredExample
from saekit.store.stack import StackedStore
from saekit.types import Example, FeatureRecord, Progress

Read = Callable[[StoredExample], list[str]]
"""An example -> the text of each of its tokens."""

EXAMPLES_EACH_BAND = 5
TOKENS_EACH_SIDE = 12  # of a text example as it is listed; its whole context opens
# on a page, in a shard of 16 features: of SmolLM2, of digits
BYTES_EACH, BYTES_EACH_EXAMPLE, BYTES_EACH_TOKEN, BYTES_EACH_PICTURE = 400, 16, 3, 70
EXAMPLES_KEPT = 16384  # contexts, images: as they are shown
# windows of so many latents are in memory together, and hold so many values
LATENTS_AT_ONCE, VALUES_AT_ONCE = 1024, 4_000_000
BY_FIGURES = re.compile(r"(all)|(top|interesting):0*([1-9][0-9]{0,8})")


@dataclass(frozen=True)
class Pick:
    """A row chosen to show a latent."""

    row: int
    act: float
    interval: int | None  # None: one of the strongest
    group: Literal["top", "interval", "random", "quantile", "median"] = "top"


def check_features(spec: str, latents: int) -> list[int] | None:
    """The indices of `0-255,1024`; None where a part depends on the index (`interesting:1000`,
    `top:500`, `all`). Raises UsageError, DataError."""
    chosen: list[int] = []
    parts = spec.split(",")
    by_figures = [part for part in parts if BY_FIGURES.fullmatch(part.strip(" "))]
    for part in parts:
        if part in by_figures:
            continue
        # only ASCII digits: int() also takes those of other scripts and underscores, and a
        # superscript passes isdigit()
        match = re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", part.strip(" "))
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise UsageError(
                f"{opt('features', spec[:80])}: write 0-255,1024 or interesting:1000 or top:500 or"
                " all",
                opt("features", "interesting:1000"),
            )
        if last >= latents:
            cause = f"feature {last}: this model has {latents:,} (0 to {latents - 1:,})"
            raise DataError(cause, opt("features", "top:500"))
        chosen.extend(range(first, last + 1))
    return None if by_figures else list(dict.fromkeys(chosen))


def select_latents(spec: str, index: Index, scores: Scores | None = None) -> torch.Tensor:
    """SPEC -> indices: those named, `interesting:1000` the best scored latents, of each word
    the first before the second (Scores.varied), `top:500` the densest, `all` every latent that
    fires. `scores` is needed for the second; latents without a score come last, by size. Raises
    what check_features raises."""
    named = check_features(spec, len(index))
    if named is not None:
        return torch.tensor(named)
    chosen: list[int] = []
    for part in spec.split(","):
        match = BY_FIGURES.fullmatch(part.strip(" "))
        if match is None:
            chosen += check_features(part, len(index)) or []
        else:
            chosen += _by_figures(match[1] or match[2], int(match[3] or 0), index, scores).tolist()
    return torch.tensor(list(dict.fromkeys(chosen)), dtype=torch.int64)


def _by_figures(kind: str, count: int, index: Index, scores: Scores | None) -> torch.Tensor:
    alive = torch.from_numpy(index.active > 0)
    if kind == "all":
        return alive.nonzero()[:, 0]
    if kind == "interesting":
        assert scores is not None, "the caller has scored the latents"
        first = torch.nan_to_num(scores.varied().double(), -1.0)
        order = torch.from_numpy(np.lexsort((-index.max, -first.numpy())))
    else:
        order = torch.from_numpy(np.argsort(-index.active, kind="stable"))
    return order[alive[order]][:count]


def expected_bytes(
    store: Store | StackedStore, index: Index, latents: torch.Tensor, top: int
) -> float:
    """About so many bytes shards and contexts will take."""
    chosen, rows = latents.numpy(), index.shown
    kept_N = rows.top.counts(chosen) + rows.bottom.counts(chosen)
    sampled_N = np.minimum(rows.sample.counts(chosen), BANDS * EXAMPLES_EACH_BAND)
    if not index.dense:
        sampled_N += np.minimum(index.active[chosen], RANDOM + GROUPS * EACH + 1)
    shown = int((np.minimum(kept_N, top) + sampled_N).sum())
    if store.spec.modality == "text" and not store.spec.is_raw:
        contexts = min(shown, store.count(examples=True)) * (store.spec.context or 0)
        return len(latents) * BYTES_EACH + shown * BYTES_EACH_EXAMPLE + contexts * BYTES_EACH_TOKEN
    return len(latents) * BYTES_EACH + shown * BYTES_EACH_PICTURE


def pick_rows(index: Index, store: Store | StackedStore, latent: int, top: int) -> list[Pick]:
    """The strongest rows, as far as possible of different documents, then rows from each band of
    sizes. Of a dense code the strongest of either sign, half of each where there are enough."""
    chosen = strongest(index, store, latent, top)
    picks = [Pick(row, act, None) for row, act in chosen]
    shown = {row for row, _ in chosen}
    bands: list[list[Pick]] = [[] for _ in range(BANDS)]
    rows, sampled = index.shown.sample.of(latent)
    numbers = index.sizes(latent).bands_of(0, torch.tensor(sampled))
    for row, act, band in zip(rows, sampled, numbers):
        if row in shown:
            continue
        if len(bands[band]) < EXAMPLES_EACH_BAND:
            bands[band].append(Pick(row, act, band, "interval"))
    return picks + [
        pick for band in reversed(bands) for pick in sorted(band, key=lambda p: -abs(p.act))
    ]


def strongest(
    index: Index, store: Store | StackedStore, latent: int, top: int
) -> list[tuple[int, float]]:
    """(row, value) of the strongest rows of a latent, as far as possible of different documents."""
    above = thinned(store, *index.shown.top.of(latent))
    below = thinned(store, *index.shown.bottom.of(latent))
    from_below = min(len(below), max(top // 2, top - len(above)))
    return sorted(above[: top - from_below] + below[:from_below], key=lambda p: -abs(p[1]))


def thinned(
    store: Store | StackedStore, rows: list[int], values: list[float]
) -> list[tuple[int, float]]:
    """(row, value) in the order of the ranking, with the first of each document before others."""
    documents = store.origin.documents_of(rows)
    fresh = [documents.index(d) == i for i, d in enumerate(documents)]
    pairs = list(zip(rows, values))
    return [p for p, new in zip(pairs, fresh) if new] + [
        p for p, new in zip(pairs, fresh) if not new
    ]


def feature_records(
    model: Autoencoder,
    store: Store | StackedStore,
    index: Index,
    latents: torch.Tensor,
    top: int,
    thumbnails: Thumbnails | None,
    directions_FD: torch.Tensor | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    data: Any = None,
    contexts: dict[int, list[str]] | None = None,
    beyond_top: bool = True,
) -> Iterator[FeatureRecord]:
    """Records of `latents`, in that order, without logits, hook shares and score. Neighbors are
    those of `directions_FD` (None: a deep decoder, whose latents have no directions). `data`: the
    texts themselves, where the store's were in memory. The tokens of each whole context are put
    into `contexts` by the id of their example before a record with it. `beyond_top`: also samples
    of all rows, co-active latents and tokens, of a sparse code. Streams: windows of a part of the
    latents are read at a time."""
    beyond = index if beyond_top and not index.dense else None
    # how tokens become text
    texts = token_texts(store) if store.spec.modality == "text" else None
    written = None
    if isinstance(texts, TokenTexts) and texts.loses_text():
        written = WrittenTexts(store, texts, data)
    read = None if texts is None else written.of if written else _reader(texts)
    token_counts = None
    if beyond is not None and isinstance(texts, TokenTexts):
        token_counts = TokenCounts(beyond, texts)
    label_counts = None if beyond is None else LabelCounts(beyond)
    shown_at = lru_cache(EXAMPLES_KEPT)(lambda row: _shown(store, row, read, thumbnails))
    grid_rows = store.spec.grid[0] * store.spec.grid[1] if store.spec.grid else 1
    each = (KEPT_TOP + BANDS * EXAMPLES_EACH_BAND) * (store.spec.context or grid_rows)
    at_once = max(1, min(LATENTS_AT_ONCE, VALUES_AT_ONCE // each))

    # an index has every value that is not 0, unless it was rounded, or is of sigmoid latents
    whole = model.active_above == 0 and index.manifest.values == "float32"
    fault = ""
    alive = torch.from_numpy(index.active > 0)
    for chunk in latents.split(at_once):
        # the nearest decoder rows, and the rows that show each latent, with their windows
        neighbours = [[] for _ in chunk]
        if directions_FD is not None:
            neighbours = decoder_neighbours(directions_FD, chunk, alive)
        picks = [pick_rows(index, store, j, top) for j in chunk.tolist()]
        if beyond is not None:
            for j, of_latent in zip(chunk.tolist(), picks):
                sampled = sampled_rows(beyond, j)
                of_latent += [Pick(row, act, n, group) for row, act, group, n in sampled]
        rows = np.array([pick.row for of_latent in picks for pick in of_latent], dtype=np.int64)
        owner = np.repeat(chunk.numpy(), [len(of_latent) for of_latent in picks])
        windows = read_windows(model, store, rows, owner, index if whole else None)

        # the documents of these rows, where tokens do not keep the text
        if written is not None:
            written.gather(store.origin.documents_of(rows.tolist()))
            if written.fault and not fault:
                fault = written.fault
                message = (
                    "texts are put together from tokens, so spaces and capitals may differ from"
                    f" what was written: {fault}"
                )
                progress(Progress("page", 0, len(latents), "features", message=message))

        at = 0
        for j, of_latent, nearest in zip(chunk.tolist(), picks, neighbours):
            examples = [
                _example(store, pick, windows, at + i, shown_at(int(windows.start[at + i])))
                for i, pick in enumerate(of_latent)
            ]
            if contexts is not None and texts is not None:
                for row in windows.start[at : at + len(of_latent)].tolist():
                    shown = shown_at(row)
                    contexts[shown.example.id] = shown.tokens
            at += len(of_latent)
            near = {} if beyond is None else together(beyond, j)
            sizes = index.sizes(j)
            yield FeatureRecord(
                index=j,
                density=None if model.active_above is None else float(index.density[j]),
                active_rows=int(index.active[j]),
                max=float(index.max[j]),
                histogram=sizes.of(0),
                bands=sizes.bands(0),
                examples=[e for e in examples if e.group in ("top", "interval")],
                neighbours=nearest,
                samples=[e for e in examples if e.group not in ("top", "interval")],
                tokens=None if token_counts is None else token_counts(j),
                data_labels=None if label_counts is None else label_counts(j),
                fifths=None if beyond is None else fifths_of(beyond, j),
                coactivation=near.get("coactivation", []),
                following=near.get("following", []),
            )


def _reader(texts: TokenTexts) -> Read:
    return lambda example: texts(example.tokens or ())


@dataclass(frozen=True)
class _Shown:
    """An example of the store as it is shown: the positions of its rows (n,) int32, and its tokens,
    or the key of its thumbnail."""

    example: StoredExample
    positions: np.ndarray
    tokens: list[str]
    image: str | None


def _shown(
    store: Store | StackedStore, row: int, read: Read | None, thumbnails: Thumbnails | None
) -> _Shown:
    """The example whose first row is `row`. `read` is given for text, `thumbnails` for images."""
    example, first = store.origin.example_at(row)
    positions = store.origin.positions(first, example.rows)
    image = None if thumbnails is None else thumbnails.key(example.ref)
    return _Shown(example, positions, [] if read is None else read(example), image)


def _example(
    store: Store | StackedStore, pick: Pick, windows: Windows, i: int, shown: _Shown
) -> Example:
    """Window i."""
    example, positions = shown.example, shown.positions
    start = int(windows.start[i])
    values = windows.values[windows.ptr[i] : windows.ptr[i + 1]]
    at = pick.row - start
    position = int(positions[at])
    common = {
        "group": pick.group,
        "interval": pick.interval,
        "act": pick.act,
        "doc_id": example.doc_id,
        "example_id": example.id,
        "position": position,
        "source": example.ref,
        "label": example.label,
    }
    if shown.image is None:
        # positions index the context's tokens; tokens that were not stored (special ones) have no
        # activation
        near = slice(max(at - TOKENS_EACH_SIDE, 0), at + TOKENS_EACH_SIDE + 1)
        places = positions[near]
        lo, hi = int(places[0]), int(places[-1]) + 1
        window = np.zeros(hi - lo, np.float32)
        window[places - lo] = values[near]
        fires = np.flatnonzero(values)
        return Example(
            **common,
            values=window.tolist(),
            tokens=shown.tokens[lo:hi],
            centre=position - lo,
            context_values=list(map(list, zip(positions[fires].tolist(), values[fires].tolist()))),
        )
    grid = (1, 1) if store.spec.is_raw else store.spec.grid  # a raw image is one row
    assert grid is not None, "a store of images"
    window = np.zeros(grid[0] * grid[1], np.float32)
    patches = positions >= 0
    window[positions[patches]] = values[patches]
    return Example(**common, values=window.tolist(), grid=grid, image=shown.image)
