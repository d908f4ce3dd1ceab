"""The index that a page is made from: the one beside the checkpoint, or one that is made first."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from saekit.errors import DataError
from saekit.indexing.beside import has_other_index
from saekit.indexing.build import index_into
from saekit.indexing.manifest import index_folder
from saekit.indexing.reader import read_index
from saekit.inspection.opening import InspectedModel
from saekit.inspection.page import megabytes
from saekit.store.files import folder_bytes
from saekit.store.folder_kinds import INDEX
from saekit.store.run_folder import run_folder
from saekit.types import Progress


@contextmanager
def with_index(
    inspected: InspectedModel, device: torch.device, progress: Callable[[Progress], None]
) -> Iterator[None]:
    """While the body runs, `inspected` has an index of whole values, so that rows are encoded once.
    One that is made stays beside a checkpoint of saekit's, unless there is another or the folder
    cannot be written; else it is in a temporary folder. A dense code has none."""
    known = inspected.model.active_above is None or (
        inspected.index is not None and inspected.index.manifest.values == "float32"
    )
    if known or _kept(inspected, device, progress):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="saekit-index-") as temporary:
        inspected.use(index_into(Path(temporary), inspected, device, progress))
        yield


def _kept(
    inspected: InspectedModel, device: torch.device, progress: Callable[[Progress], None]
) -> bool:
    """Whether an index was made that stays."""
    checkpoint = inspected.checkpoint
    if checkpoint is None or not checkpoint.own or inspected.index is not None:
        return False
    if has_other_index(inspected):
        return False
    folder = index_folder(Path(checkpoint.path), inspected.contents())
    try:
        with run_folder(folder, INDEX, resume=False, overwrite=True) as out:
            index_into(out.path, inspected, device, progress)
    except DataError as error:  # it cannot be written, or another command writes there
        text = f"the index is not kept for the next time: {error.message}"
        progress(Progress("index", 0, 0, message=text))
        return False
    inspected.use(read_index(folder))
    text = (
        f"every activation is kept for the next time: {folder}, {megabytes(folder_bytes(folder))}"
    )
    progress(Progress("index", 0, 0, message=text))
    return True
