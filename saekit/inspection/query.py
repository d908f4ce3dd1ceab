"""Which latents a text or an image activates, or what one latent responds to: the verb `features`,
for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch

from saekit.errors import DataError, UsageError, opt
from saekit.harvesting.hooks import capture
from saekit.harvesting.inputs import batches
from saekit.harvesting.memory_models import load_model_of
from saekit.harvesting.pictures import read_picture
from saekit.harvesting.sources import Document, Documents
from saekit.inspection.records import pick_rows
from saekit.inspection.run import open_pair
from saekit.inspection.scan import Scan, cached_scan
from saekit.inspection.show import token_texts
from saekit.models.autoencoder import Autoencoder
from saekit.models.codes import fires
from saekit.options import Doc
from saekit.store.opening import RowsLike
from saekit.store.reader import Store
from saekit.store.stack import StackedStore, stores_of
from saekit.types import ActivationSpec, Progress

TOP_TOKENS = 5


@dataclass(frozen=True)
class FeatureRow:
    """act is the value of largest size on the input, with its sign (for an index query: on the
    store), max the largest size on the store; tokens are what fires the latent most in the store,
    the data's labels for images."""

    index: int
    act: float
    max: float
    density: float | None
    label: str | None
    tokens: list[str]


def features(
    checkpoint: Annotated[str | Path, Doc("Checkpoint folder.", metavar="CKPT", positional=True)],
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
    progress: Callable[[Progress], None] = lambda _: None,
) -> list[FeatureRow]:
    """Exactly one of index, text, image. Ranked by the size of act. `store`: a path or an open
    Store. A crosscoder takes the stores of its training, in its order, as a list.

    Raises UsageError, DataError, MissingError.
    """
    if sum(value is not None for value in (index, text, image)) != 1:
        raise UsageError(f"give exactly one of {opt('index')}, {opt('text')}, {opt('image')}")
    if top < 1:
        raise UsageError(f"{opt('top', top)} must be at least 1")
    model, _, opened = open_pair(checkpoint, store)
    wanted = None if index is not None else ("text" if text is not None else "image")
    if wanted is not None and wanted != opened.spec.modality:
        raise DataError(
            f"{checkpoint} was trained on {opened.spec.modality}, not {wanted}",
            f"give {opt(opened.spec.modality)}",
        )
    if index is not None and not 0 <= index < model.latents:
        raise DataError(
            f"feature {index}: this model has {model.latents:,} (0 to {model.latents - 1:,})"
        )
    scan = cached_scan(model, Path(checkpoint), opened, progress)
    if index is not None:
        if scan.active[index] == 0:
            raise DataError(
                f"feature {index} never fired in {scan.rows:,} rows",
                "saekit inspect lists the living ones",
            )
        return [_row(index, scan.largest(index), scan, opened, model)]
    acts = _on_input(model, opened, text, image)
    best = torch.argsort(acts.abs(), descending=True, stable=True)[:top]
    best = best[fires(acts[best], model.active_above or 0.0)]
    return [_row(j, float(acts[j]), scan, opened, model) for j in best.tolist()]


def _row(
    j: int, act: float, scan: Scan, store: Store | StackedStore, model: Autoencoder
) -> FeatureRow:
    density = None if model.active_above is None else float(scan.density[j])
    return FeatureRow(j, act, float(scan.max[j]), density, None, _typical(scan, store, j))


def _typical(scan: Scan, store: Store | StackedStore, latent: int) -> list[str]:
    """The commonest tokens (labels, for images) among the latent's strongest rows."""
    rows = [pick.row for pick in pick_rows(scan, store, latent, 20) if pick.interval is None]
    found: Counter[str] = Counter()
    texts = token_texts(store) if store.spec.modality == "text" and not store.spec.is_raw else None
    for row in rows:
        example, _ = store.origin.example_at(row)
        if texts is not None:
            at = int(store.origin.positions(row, 1)[0])
            found[texts(example.tokens)[at] or texts.alone(example.tokens[at])] += 1
        elif example.label is not None:
            found[example.label] += 1
    return [name for name, _ in found.most_common(TOP_TOKENS)]


class _Typed(Documents):
    """The one document that the user typed in."""

    def __init__(self, modality: str, document: Document) -> None:
        self.name, self.modality, self._document = "input", modality, document

    def documents(self, start: int = 0):
        yield from [self._document][start:]

    def digest(self) -> None:
        return None

    def image(self, ref: str):
        return self._document.image


@torch.no_grad()
def _on_input(
    model: Autoencoder, source: Store | StackedStore, text: str | None, image: str | Path | None
) -> torch.Tensor:
    """(F,): each latent's value of largest size over the input's tokens or patches (in the store's
    scope)."""
    specs = [store.spec for store in stores_of(source)]
    for spec, store in zip(specs, stores_of(source)):
        if spec.is_raw:
            raise DataError(
                f"{store.path} holds raw data: there is no model to read an input with",
                f"{opt('index')} with the number of a latent",
            )
    document = Document(
        0,
        "input",
        text,
        read_picture(Path(image), remedy="repair the file or give another")
        if image is not None
        else None,
    )
    of_model: dict[str, list[ActivationSpec]] = {}
    for spec in specs:
        of_model.setdefault(spec.model, []).append(spec)
    best = torch.zeros(model.latents)
    rows = 0
    # One forward pass a context and model, whatever the number of its hooks.
    for states in zip(*(_hidden_states(same, document) for same in of_model.values())):
        by_model = dict(zip(of_model, states))
        x_BD = torch.cat([by_model[spec.model][spec.hook] for spec in specs], 1)
        rows += len(x_BD)
        code = model.encode(x_BD)
        dense = code.to_dense()
        for end in (dense.amax(0), dense.amin(0)) if len(dense) else ():
            best = torch.where(end.abs() > best.abs(), end, best)
    if rows == 0:
        raise DataError(
            "the input holds no token in this store's scope", f"give a longer {opt('text')}"
        )
    return best


def _hidden_states(
    specs: list[ActivationSpec], document: Document
) -> Iterator[dict[str, torch.Tensor]]:
    """Context after context of the document: the rows (B,D) of each hook of one model."""
    live, hooks = load_model_of(specs[0]), list(dict.fromkeys(spec.hook for spec in specs))
    for batch in batches(
        live, _Typed(specs[0].modality, document), ctx=specs[0].context or 128, batch=1
    ):
        with capture(live, hooks, stop=True) as states:
            live.forward(batch.inputs)
        chosen = batch.rows_for_scope(specs[0].scope)
        yield {hook: states[hook][chosen].float() for hook in hooks}
