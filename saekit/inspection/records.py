"""Scan + windows -> FeatureRecords: which rows are shown for a latent, and everything that is said about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from saekit.errors import DataError, UsageError
from saekit.inspection.relate import decoder_neighbours
from saekit.inspection.scan import Scan
from saekit.inspection.show import Thumbnails, token_texts
from saekit.inspection.windows import Windows, read_windows
from saekit.store.reader import Store
from saekit.store.stack import StackedStore
from saekit.types import Autoencoder, Example, FeatureRecord

INTERVALS = 5
EXAMPLES_EACH_INTERVAL = 5
LATENTS_AT_ONCE = 1024  # windows of so many latents are in memory together


@dataclass(frozen=True)
class Pick:
    """A row chosen to show a latent."""

    row: int
    act: float
    interval: int | None  # None: one of the strongest


def check_features(spec: str, latents: int) -> list[int] | None:
    """The indices of `0-255,1024`; None for `top:500` and `all`, which depend on the scan. Raises UsageError, DataError."""
    if spec == "all" or (spec.startswith("top:") and spec[4:].isdigit() and int(spec[4:]) > 0):
        return None
    chosen: list[int] = []
    for part in spec.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdigit() or not (last or first).isdigit() or int(last or first) < int(first):
            raise UsageError(f"--features {spec}: write 0-255,1024 or top:500 or all")
        if int(last or first) >= latents:
            cause = f"feature {last or first}: this model has {latents:,} (0 to {latents - 1:,})"
            raise DataError(cause, "--features top:500")
        chosen.extend(range(int(first), int(last or first) + 1))
    return list(dict.fromkeys(chosen))


def select_latents(spec: str, scan: Scan) -> torch.Tensor:
    """SPEC -> indices: those named, `top:500` the densest living latents, `all` every living one. Raises as check_features."""
    named = check_features(spec, len(scan.active))
    if named is not None:
        return torch.tensor(named)
    alive = scan.active > 0
    if spec == "all":
        return alive.nonzero()[:, 0]
    order = torch.argsort(scan.active, descending=True, stable=True)
    return order[alive[order]][: int(spec[4:])]


def pick_rows(scan: Scan, store: Store | StackedStore, latent: int, top: int) -> list[Pick]:
    """The strongest rows, one a document as far as documents go, then rows from five equal intervals of [0, max]."""
    strongest = [(int(r), float(v)) for r, v in zip(scan.top.row[latent], scan.top.value[latent]) if r >= 0]
    documents = store.documents_of([row for row, _ in strongest])
    fresh = [documents.index(d) == i for i, d in enumerate(documents)]
    ordered = [p for p, new in zip(strongest, fresh) if new] + [p for p, new in zip(strongest, fresh) if not new]
    chosen = sorted(ordered[:top], key=lambda p: -p[1])
    picks = [Pick(row, act, None) for row, act in chosen]
    shown = {row for row, _ in chosen}
    bands: list[list[Pick]] = [[] for _ in range(INTERVALS)]
    maximum = float(scan.max[latent])
    for row, act in zip(scan.sample.row[latent].tolist(), scan.sample.value[latent].tolist()):
        if row < 0 or row in shown:
            continue
        band = min(int(INTERVALS * act / maximum), INTERVALS - 1)
        if len(bands[band]) < EXAMPLES_EACH_INTERVAL:
            bands[band].append(Pick(row, act, band))
    return picks + [pick for band in reversed(bands) for pick in sorted(band, key=lambda p: -p.act)]


def feature_records(
    model: Autoencoder,
    store: Store | StackedStore,
    scan: Scan,
    latents: torch.Tensor,
    top: int,
    thumbnails: Thumbnails | None,
    directions_FD: torch.Tensor | None = None,
) -> Iterator[FeatureRecord]:
    """Records of `latents`, in that order, without logits and hook shares. Neighbours are those of `directions_FD`, by default of the
    model's decoder rows. Streams: windows are read for LATENTS_AT_ONCE latents at a time."""
    texts = token_texts(store) if store.spec.modality == "text" else None
    alive = scan.active > 0
    for some in latents.split(LATENTS_AT_ONCE):
        W_dec = model.W_dec if directions_FD is None else directions_FD  # None for a deep decoder, in which a latent has no direction
        neighbours = [[] for _ in some] if W_dec is None else decoder_neighbours(W_dec, some, alive)
        picks = [pick_rows(scan, store, j, top) for j in some.tolist()]
        rows = np.array([pick.row for of_one in picks for pick in of_one], dtype=np.int64)
        owner = np.repeat(some.numpy(), [len(of_one) for of_one in picks])
        windows = read_windows(model, store, rows, owner)
        at = 0
        for j, of_one, near in zip(some.tolist(), picks, neighbours):
            examples = [_example(store, pick, windows, at + i, texts, thumbnails) for i, pick in enumerate(of_one)]
            at += len(of_one)
            maximum = float(scan.max[j])
            yield FeatureRecord(
                index=j,
                density=None if model.active_above is None else float(scan.density[j]),
                active_rows=int(scan.active[j]),
                max=maximum,
                histogram=scan.histogram.of(j, maximum),
                examples=examples,
                neighbours=near,
            )


def _example(store: Store | StackedStore, pick: Pick, windows: Windows, i: int, texts, thumbnails: Thumbnails | None) -> Example:
    example, _ = store.example_at(pick.row)
    start, stop = int(windows.start[i]), int(windows.stop[i])
    values = windows.values[windows.ptr[i] : windows.ptr[i + 1]]
    positions = store.positions(start, stop - start)
    position = int(positions[pick.row - start])
    common = {
        "group": "top" if pick.interval is None else "interval",
        "interval": pick.interval,
        "act": pick.act,
        "doc_id": example.doc_id,
        "example_id": example.id,
        "position": position,
        "source": example.ref,
        "label": example.label,
    }
    if texts is not None:
        # Positions index the context's tokens; tokens of the window that were not stored (special ones) show no activation.
        lo, hi = int(positions[0]), int(positions[-1]) + 1
        shown = np.zeros(hi - lo, np.float32)
        shown[positions - lo] = values
        return Example(**common, values=shown.tolist(), tokens=texts(example.tokens[lo:hi]), centre=position - lo)
    grid = (1, 1) if store.spec.is_raw else store.spec.grid  # a raw image is one row
    shown = np.zeros(grid[0] * grid[1], np.float32)
    patches = positions >= 0
    shown[positions[patches]] = values[patches]
    return Example(**common, values=shown.tolist(), grid=grid, image=thumbnails.key(example.ref))
