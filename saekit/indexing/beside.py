"""The index beside a checkpoint: whether there is one of a store, and the command that makes it."""

from __future__ import annotations

import shlex
from pathlib import Path

from saekit.errors import MissingError
from saekit.indexing.manifest import IndexManifest, checked_manifest, index_folder
from saekit.indexing.opening import OpenedPair, opened_pair
from saekit.indexing.reader import Index
from saekit.store.opening import RowsLike
from saekit.store.stack import stores_of, with_stores
from saekit.training.checkpoints import ModelLike


def found_index(pair: OpenedPair) -> Index | None:
    """The index of these weights on these rows, where the checkpoint has one. Raises DataError for
    a damaged one."""
    folder, manifest = _beside(pair)
    if folder is None or manifest is None or manifest.weights != pair.weights_digest():
        return None
    return Index(folder, manifest)


def has_other_index(pair: OpenedPair) -> bool:
    """Whether the checkpoint has an index of these rows by other weights."""
    _, manifest = _beside(pair)
    return manifest is not None and manifest.weights != pair.weights_digest()


def _beside(pair: OpenedPair) -> tuple[Path | None, IndexManifest | None]:
    """Where the index of a pair is kept, and what it says, where it is whole."""
    if pair.checkpoint is None or not pair.checkpoint.own:
        return None, None
    folder = index_folder(Path(pair.checkpoint.path), pair.contents())
    return folder, checked_manifest(folder)


def index_command(pair: OpenedPair, again: bool = False) -> str:
    """The shell command that makes the index of a pair; `again`: in the place of another."""
    own = pair.checkpoint is not None and pair.checkpoint.own
    name = shlex.quote(pair.name) if own else "CKPT"
    paths = [shlex.quote(str(part.path)) for part in stores_of(pair.store)]
    command = f"saekit index {name} --overwrite" if again else f"saekit index {name}"
    return with_stores(command, paths)


def open_index(checkpoint: ModelLike, store: RowsLike, any_store: bool = False) -> Index:
    """The index that `saekit.index` wrote for a checkpoint and a store.

    Parameters
        checkpoint: a folder of saekit's own.
        store: a path or an open Store; a crosscoder takes its stores in order, as a list.
        any_store: also take a store of another model, hook or scope than that of a checkpoint's
            training.

    Raises MissingError where there is no whole index of these weights and rows, DataError for a
    damaged one or a store that does not fit.
    """
    pair = opened_pair(checkpoint, store, any_store)
    index = found_index(pair)
    if index is None:
        raise MissingError(
            f"{pair.name} has no index of {pair.store.path}, or one of other weights",
            index_command(pair),
        )
    return index
