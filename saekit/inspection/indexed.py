"""The index that everything is read from: the one beside the checkpoint, or one that is made
first."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

import torch

from saekit.device import CPU
from saekit.errors import DataError
from saekit.indexing.beside import has_other_index, index_command
from saekit.indexing.build import index_into
from saekit.indexing.entries import encoded_chunks
from saekit.indexing.manifest import index_folder
from saekit.indexing.reader import Index, read_index
from saekit.inspection.opening import InspectedModel
from saekit.inspection.page import megabytes
from saekit.store.files import folder_bytes
from saekit.store.folder_kinds import INDEX
from saekit.store.run_folder import run_folder
from saekit.types import Progress

SAMPLES, SAMPLE = 8, 64  # parts, rows of each
# bytes per entry, by latent and by row; per row, of where it comes from, and of a token; per
# latent, counts and bounds; per latent of a dense code, with its histogram
ENTRY, ORIGIN, TOKEN, OF_LATENT, OF_DENSE = 16, 4, 4, 60, 2800
SHOWN = 60  # rows that show a latent, as most have: of at most 88
Report = Callable[[Progress], None]


def index_of(
    inspected: InspectedModel, progress: Report, device: torch.device = CPU, exact: bool = False
) -> Index:
    """The index of a model on a store. One that is made stays beside a checkpoint of saekit's,
    unless there is another or the folder cannot be written; else it is in a temporary folder, and
    goes with the process. `exact`: of values that were not rounded. Raises NumericsError."""
    index = inspected.index
    if index is None or (exact and index.manifest.values != "float32"):
        index = _kept(inspected, device, progress) or _temporary(inspected, device, progress)
        inspected.use(index)
    return index


def is_kept(inspected: InspectedModel, index: Index) -> bool:
    """Whether an index lies beside the checkpoint."""
    checkpoint = inspected.checkpoint
    return checkpoint is not None and Path(checkpoint.path) in index.path.parents


def _kept(inspected: InspectedModel, device: torch.device, progress: Report) -> Index | None:
    """A new index beside the checkpoint; None where it cannot stay there."""
    checkpoint = inspected.checkpoint
    if checkpoint is None or not checkpoint.own or inspected.index is not None:
        return None
    if has_other_index(inspected):
        command = index_command(inspected, again=True)
        text = f"the index of this store is of other weights, and is not used: {command}"
        progress(Progress("index", 0, 0, message=text))
        return None
    folder = index_folder(Path(checkpoint.path), inspected.contents())
    _say_that_it_is_made(inspected, device, str(folder), progress)
    try:
        with run_folder(folder, INDEX, resume=False, overwrite=True) as out:
            index_into(out.path, inspected, device, progress)
    except DataError as error:  # it cannot be written, or another command writes there
        text = f"the index is not kept for the next time: {error.message}"
        progress(Progress("index", 0, 0, message=text))
        return None
    dense = inspected.model.active_above is None
    what = "what is shown of each latent" if dense else "every activation"
    text = f"{what} is kept for the next time: {folder}, {megabytes(folder_bytes(folder))}"
    progress(Progress("index", 0, 0, message=text))
    return read_index(folder)


def _temporary(inspected: InspectedModel, device: torch.device, progress: Report) -> Index:
    _say_that_it_is_made(inspected, device, "a temporary folder", progress)
    folder = Path(tempfile.mkdtemp(prefix="saekit-index-"))
    try:
        index = index_into(folder, inspected, device, progress)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(index, shutil.rmtree, folder, ignore_errors=True)  # also when Python ends
    return index


def _say_that_it_is_made(
    inspected: InspectedModel, device: torch.device, where: str, progress: Report
) -> None:
    size = megabytes(bytes_of_index(inspected, device))
    text = f"an index of the store is made first: about {size} in {where}"
    progress(Progress("index", 0, 0, message=text))


def bytes_of_index(inspected: InspectedModel, device: torch.device = CPU) -> int:
    """About how many bytes an index of float32 values will have. How many latents are active per
    row is that of SAMPLES parts of the store, which are encoded for it."""
    model, store = inspected.model, inspected.store
    rows, latents = store.count(), model.latents
    size = (ORIGIN + (TOKEN if store.spec.modality == "text" else 0)) * rows
    if model.active_above is None:
        return size + OF_DENSE * latents
    starts = range(0, rows, max(rows // SAMPLES // SAMPLE, 1) * SAMPLE)
    sampled = [next(encoded_chunks(model, store, device, SAMPLE, start)) for start in starts]
    active = sum(len(triples.row) for _, triples in sampled)
    entries = active / sum(len(batch.x) for batch, _ in sampled) * rows
    shown = min(SHOWN * latents, 2 * entries)
    return round(size + (ENTRY * entries + 8 * rows) + 8 * shown + OF_LATENT * latents)
