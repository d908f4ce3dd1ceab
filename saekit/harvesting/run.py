"""model + data -> store: `harvest`.

One forward pass per batch serves all hooks; every hook has its own store and the stores are
row-aligned. The pass stops after the last hooked block. A harvest that is killed at any moment
leaves whole shards, and `resume` continues after them. Raw data is harvested the same way without a
model (saekit.harvesting.raw).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Unpack

import torch
from torch import nn

from saekit.device import pick_device
from saekit.errors import DataError, UsageError, opt
from saekit.harvesting.anatomy import untouched
from saekit.harvesting.base import Harvest, Writer
from saekit.harvesting.config import (
    AUTO,
    HarvestConfig,
    HarvestPlan,
    HarvestResult,
    is_raw,
)
from saekit.harvesting.dictionaries import Dictionary, Request, requested
from saekit.harvesting.hook_names import names_of
from saekit.harvesting.hooks import capture, resolve_hook
from saekit.harvesting.inputs import (
    SORT_WINDOW,
    ContextBatch,
    PositionKind,
    batches,
    check_context,
    check_scope,
)
from saekit.harvesting.keywords import HarvestKeywords
from saekit.harvesting.memory_models import live_model, processor_digest, saved_files
from saekit.harvesting.models import LiveModel, load_model
from saekit.harvesting.raw import RawHarvest
from saekit.harvesting.selfcheck import SelfCheck, check_images, check_texts, pieces
from saekit.harvesting.sources import Data, Documents, open_data
from saekit.options import Doc, Overwrite, Resume, keywords
from saekit.store.shards import StoredExample
from saekit.store.writer import RowBlock
from saekit.types import ActivationSpec, Progress

CALIBRATION_ROWS = 4096  # rows whose median norm is the reference of max_norm
TOKENIZER = "tokenizer"  # folder of a text store, so that its tokens can be shown without the model


@keywords(HarvestConfig)
def harvest(
    model: str | LiveModel | nn.Module | None,
    data: Data,
    out: str | Path | None = None,
    *,
    dictionary: Dictionary = None,
    hook: Annotated[
        str | Sequence[str],
        Doc(
            "blocks.9, blocks.9.mlp, blocks.9.attn, blocks.9.attn.z, TransformerLens' names or a"
            " module path; suffix :in for its input. May be given again.",
            metavar="HOOK...",
        ),
    ] = (),
    tokenizer: Any = None,
    processor: Any = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    progress: Callable[[Progress], None] = lambda _: None,
    **options: Unpack[HarvestKeywords],
) -> HarvestResult:
    """Run a model on some data and keep its hidden states: in a store at `out`, or in memory with
    `out` None.

    dictionary: a checkpoint, or a published dictionary as `saekit.load` takes it, that says model,
        hook, context and scope, unless they are given here too; `model` then is where the weights
        are, or None. A transcoder has two hooks, a crosscoder several. What it does not say has the
        usual default, and a message says so.
    model: a hub id, a folder, a .gguf file, `embedded:NAME`, or a transformers module in memory,
        which stays on its device, in its mode and with its hooks (which are called). Also
        `raw:pixels`, `raw:array` or `raw:tfidf`: then the data itself is stored, and there is no
        hook (saekit.harvesting.raw).
    data: a hub dataset `name:split`, a file, a folder, `embedded:NAME`; or objects. Texts: an
        iterable of str or of (str, label). Images: an iterable of PIL images, or of arrays or
        tensors (H,W,3) or (3,H,W), uint8 or floats from 0 to 1; or of (image, label). Either: a
        datasets.Dataset or DataFrame, with texts or images in `column`. An iterable is read to its
        end once.
    out: one hook writes a store there, several hooks write `out/<hook>`. None: the rows stay in
        memory, in `result.x` (N,D) for one hook and `result.batches[canonical hook].x` for several,
        on the CPU; only with layout "flat".
    hook: `blocks.9` is the residual stream after block 9, counted from 0; also `blocks.9.mlp`,
        `blocks.9.attn`, `blocks.9.attn.q|k|v|z`, `:in` for an input, TransformerLens' names
        (`blocks.9.hook_resid_mid`), or a module path (docs/hooks.md).
    tokenizer, processor: for a text model, for an image model; None: the one that comes with the
        model, or is in the place that it was loaded from.
    resume: continue a harvest that was interrupted. The data must have the same content, a model in
        memory the same weights.
    overwrite: replace the result at `out`.
    options: the fields of HarvestConfig: rows (vectors to keep; None: all), ctx (tokens in a
        context), batch (contexts or images in a forward pass), scope, layout, dtype, seed and
        others.

    Raises UsageError, DataError (model, hook, data, `out`), MissingError (model, tokenizer, data),
    NumericsError (NaN, or overflow of the dtype).

        model = AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M")
        result = saekit.harvest(model, ["The cat sat.", "A dog ran far away."], hook="blocks.9")
        result.x.shape  # (rows, 576), float16
    """
    request = requested(model, hook, options, dictionary)
    model, config = request.model, request.config
    if out is None:
        _check_in_memory(config, resume or overwrite)
    if tokenizer is not None and processor is not None:
        raise UsageError(
            "tokenizer and processor are both given",
            "tokenizer for a text model, processor for an image model",
        )
    processor = processor if tokenizer is None else tokenizer
    if not isinstance(model, nn.Module):
        if processor is not None and (isinstance(model, LiveModel) or is_raw(model)):
            raise UsageError(
                "this model takes no other tokenizer or processor", "drop tokenizer and processor"
            )
        return _harvest_of(request, data, out, processor).execute(resume, overwrite, progress)
    with untouched(model, hooks=False):
        config.check_for(type(model).__name__)
        live = live_model(model, processor, trust_remote_code=config.trust_remote_code)
        if config.device != "auto" and torch.device(config.device) != live.device:
            raise UsageError(
                f"device {config.device}: the model is on {live.device}",
                "model.to(device) moves it",
            )
        request = dataclasses.replace(request, model=live)
        return _harvest_of(request, data, out, processor).execute(resume, overwrite, progress)


def plan_harvest(
    model: str | LiveModel | None,
    data: Data,
    out: str | Path,
    *,
    dictionary: str | Path | None = None,
    hook: str | Sequence[str] = (),
    **options: Unpack[HarvestKeywords],
) -> HarvestPlan:
    """What a harvest would write. Loads the model and writes nothing; arguments and errors are
    those of `harvest`."""
    return _harvest_of(requested(model, hook, options, dictionary), data, out).plan()


def _check_in_memory(config: HarvestConfig, needs_folder: bool) -> None:
    if needs_folder:
        raise UsageError("resume and overwrite need a folder", "give out=FOLDER")
    if config.layout != "flat":
        raise UsageError(
            f"layout {config.layout} is only for stores: rows in memory are flat",
            "give out=FOLDER, or layout flat",
        )


def _harvest_of(
    request: Request,
    data: Data,
    out: str | Path | None,
    processor: Any = None,
) -> Harvest:
    model, config = request.model, request.config
    assert not isinstance(model, nn.Module), "a module in memory is a LiveModel by now"
    config.check_for(model if isinstance(model, str) else model.name)
    folder = None if out is None else Path(out)
    if isinstance(model, str) and is_raw(model):
        return RawHarvest(model, data, folder, config)
    if isinstance(model, str):
        options = {"processor": processor, "trust_remote_code": config.trust_remote_code}
        device = pick_device(config.device)
        model = load_model(model, device, revision=request.revision, **options)
    harvest = ModelHarvest(model, data, folder, config, processor)
    if request.source is not None:
        request.source.check(harvest.widths, harvest.live, config)
        harvest.notes = (*request.source.messages(harvest.live, config), *harvest.notes)
        harvest.known_as = request.source.model
    return harvest


class ModelHarvest(Harvest):
    """Hidden states of a model."""

    dtype = "float16"
    known_as: str | None = None  # another name of the model
    # False: contexts of one length per batch, for a model whose rows depend on padding
    padded = True
    checked: SelfCheck | None = None
    # the batches that the self-check has read, and the rest of their stream
    _first: Sequence[ContextBatch] = ()
    _ahead: Iterator[ContextBatch] | None = None
    # the states of the first of them, if the self-check has run it
    _first_states: dict[str, torch.Tensor] | None = None

    def __init__(
        self,
        live: LiveModel,
        data: Data,
        out: Path | None,
        config: HarvestConfig,
        processor: Any = None,
    ) -> None:
        """`processor`: the tokenizer or image processor that was given instead of the model's
        own."""
        super().__init__(out, config)
        # The model.
        self._processor, self.live = processor, live
        self.notes = self.live.notes
        # Settings that it cannot take.
        if config.layout == "grid" and (self.live.modality != "image" or config.scope != "content"):
            raise DataError(
                f"{opt('layout', 'grid')} needs an image model and {opt('scope', 'content')}",
                opt("layout", "flat", "sequence"),
            )
        if config.pack and (self.live.modality == "image" or config.layout != "flat"):
            raise DataError(
                f"{opt('pack', True)} needs a text model and {opt('layout', 'flat')}",
                f"drop {opt('pack')}",
            )
        check_scope(self.live, config.scope)
        if self.live.modality == "text":
            check_context(self.live, config.ctx, config.pack)
        # Hooks and data.
        self.hooks = list(
            dict.fromkeys(
                resolve_hook(self.live.module, hook, self.live.name) for hook in config.hooks
            )
        )
        self.widths = self.live.probe(self.hooks)
        self.data: Documents = open_data(
            data,
            modality=self.live.modality,
            column=config.column,
            seed=config.seed,
            skip_broken=config.skip_broken,
        )
        self.notes = (*self.notes, *self.data.notes)
        if self.config.dtype == AUTO:
            self._choose_dtype(self._scope_rows())

    # -- what will be written ----------------------------------------------------------------------

    def spec(self, hook: str) -> ActivationSpec:
        c, text, tokens = self.config, self.live.modality == "text", self.live.image_tokens
        return ActivationSpec(
            model=self.live.name,
            revision=self.live.revision,
            hook=hook,
            modality=self.live.modality,
            d_in=self.widths[hook],
            dtype=self.stored_dtype,
            layout=c.layout,
            scope=c.scope,
            grid=None if tokens is None else tokens.grid,
            dataset=self.data.name,
            context=c.ctx if text else None,
            seed=c.seed,
            pack=c.pack,
            max_norm=c.max_norm,
            column=self.data.column,
        )

    def digest(self) -> str | None:
        return self.data.digest()

    def own_plan(self) -> dict[str, Any]:
        plan = {} if self.padded else {"padding": "none"}
        if self._processor is not None:
            plan["processor"] = processor_digest(self._processor)
        return plan

    def skipped(self) -> Sequence[str]:
        return self.data.skipped

    def _scope_rows(self) -> Iterator[torch.Tensor]:
        """Batches of the rows that would be stored, (R,D): those of all hooks side by side, since
        they share one dtype."""
        for batch, states in self.states():
            keep_BT = batch.rows_for_scope(self.config.scope)
            yield torch.cat([state[keep_BT].float() for state in states.values()], dim=1)

    def settings(self) -> dict[str, Any]:
        c = self.config
        names = ("rows", "scope", "layout", "ctx", "batch", "dtype", "shard_mb", "max_norm")
        return {
            "model": self.live.name,
            "data": self.data.name,
            "hook": list(self.hooks),
            **{name: getattr(c, name) for name in names},
            "column": self.data.column,
            "pack": c.pack,
            "seed": c.seed,
            **({"skip_broken": True} if c.skip_broken else {}),
        }

    def extras(self) -> dict[str, bytes]:
        if self.live.modality != "text":
            return {}
        return {
            f"{TOKENIZER}/{name}": content
            for name, content in saved_files(self.live.tokenizer).items()
        }

    # -- the run -----------------------------------------------------------------------------------

    def execute(
        self, resume: bool, overwrite: bool, progress: Callable[[Progress], None]
    ) -> HarvestResult:
        check = self.self_check(fresh=not resume)
        if check is None:
            return super().execute(resume, overwrite, progress)
        progress(Progress("harvest", 0, 0, message=check.line))
        result = super().execute(resume, overwrite, progress)
        return dataclasses.replace(result, self_check=check.stored)

    def self_check(self, fresh: bool) -> SelfCheck | None:
        """Check the first contexts; a fresh run then begins with them. None if there are none."""
        self._ahead = self._batches(0)
        # for text, a whole window is tokenized before its first batch
        most = 1 if self.live.modality == "image" else SORT_WINDOW
        self._first = list(islice(self._ahead, most))
        if not self._first:
            return None
        if self.live.modality == "image":
            self.checked = self._check_images(self._first[0], fresh)
            return self.checked
        rows = [ids for batch in self._first for ids in batch.token_ids]
        self.checked = check_texts(
            self.live, pieces(rows), self.hooks, self.config.hooks, self.config.batch, self._pad()
        )
        if not self.checked.padded:
            self.padded, self._ahead = False, None
        return self.checked

    def _check_images(self, batch: ContextBatch, fresh: bool) -> SelfCheck:
        """A fresh run keeps the states of its first batch; a resumed one does not need them and
        checks with only two images."""
        pixels_BChw = batch.inputs["pixel_values"]
        if not fresh:
            pixels_BChw = pixels_BChw[:2]
        states = self._forward({"pixel_values": pixels_BChw})
        if fresh:
            self._first_states = states
        return check_images(self.live, pixels_BChw, states, self.config.hooks)

    def _pad(self) -> int:
        """The token of padding in the first batches."""
        filled = (
            batch.inputs["input_ids"][batch.kind_BT == PositionKind.PADDING]
            for batch in self._first
            if "input_ids" in batch.inputs
        )
        return next((int(ids[0]) for ids in filled if len(ids)), 0)

    def fill(self, writers: Mapping[str, Writer], progress: Callable[[Progress], None]) -> None:
        """Run the model and append, until there are enough rows or the data ends.

        A writer that is ahead of another after a kill ignores the batches that it has.
        """
        c = self.config
        for writer in writers.values():
            writer.manifest.self_check = self.checked.stored if self.checked else None
            writer.manifest.names = self._names(writer.spec.hook)
        # Where to start.
        calibrate = c.max_norm is not None and any(
            w.manifest.norm_limit is None for w in writers.values()
        )
        start = 0 if calibrate else min(writer.batches_done for writer in writers.values())
        ahead = {hook: writer.batches_done for hook, writer in writers.items()}
        rows = 0 if start == 0 else self._rows_before(writers, start)
        if c.layout == "flat" and c.rows is not None and rows >= c.rows:
            return  # killed between the last shard and the report
        started, first_rows = time.monotonic(), rows
        stream = self.states(start)
        if calibrate:
            assert c.max_norm is not None
            stream = self._calibrated(stream, writers, c.max_norm)
        for number, (batch, states) in enumerate(stream, start):
            # Which rows to keep.
            keep_BT = batch.rows_for_scope(c.scope)
            fits_BT = within_norm(
                keep_BT,
                states,
                {hook: writer.manifest.norm_limit for hook, writer in writers.items()},
            )
            dropped = int(keep_BT.sum() - fits_BT.sum())
            keep_BT = self._within_rows(fits_BT, None if c.rows is None else c.rows - rows)
            if fits_BT.any() and not keep_BT.any():
                break  # no other whole example fits
            # Append them, and report.
            for hook, writer in writers.items():
                if number >= ahead[hook]:
                    writer.append(_block(batch, states[hook], keep_BT, dropped))
            rows += int(keep_BT.sum())
            rate = (rows - first_rows) / max(time.monotonic() - started, 1e-9)
            progress(Progress("harvest", rows, c.rows or 0, figures={"rows_per_s": rate}))
            if c.rows is not None and rows >= c.rows:
                break

    def _names(self, hook: str) -> dict[str, list[str]] | None:
        """Other names of model and hook, by which dictionaries know them."""
        names = {"hook": names_of(self.live.module, hook)}
        if self.known_as and self.known_as != self.live.name:
            names["model"] = [self.known_as]
        return {name: values for name, values in names.items() if values} or None

    def states(self, start: int = 0) -> Iterator[tuple[ContextBatch, dict[str, torch.Tensor]]]:
        """Batches of the data from number `start` on, with hook -> states (B,T,D) on the CPU."""
        stream = self._batches(start)
        if start == 0 and self._ahead is not None:
            stream, self._ahead, self._first = chain(self._first, self._ahead), None, []
            if self._first_states is not None:
                states, self._first_states = self._first_states, None
                yield next(stream), states
        for batch in stream:
            yield batch, self._forward(batch.inputs)

    def _forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Hook -> hidden states (B,T,D) on the CPU, in the order in which the hooks fired."""
        with torch.inference_mode(), capture(self.live, self.hooks, stop=True) as states:
            self.live.forward(inputs)
        return {hook: state.detach().cpu() for hook, state in states.items()}

    def _batches(self, start: int) -> Iterator[ContextBatch]:
        c = self.config
        options = {"ctx": c.ctx, "batch": c.batch, "pack": c.pack, "padded": self.padded}
        return batches(self.live, self.data, start_batch=start, **options)

    def _rows_before(self, writers: Mapping[str, Writer], start: int) -> int:
        """Rows in the shards up to batch `start`, which is the end of some writer's last shard."""
        return next(
            writer.manifest.rows for writer in writers.values() if writer.batches_done == start
        )

    # -- which rows to keep ------------------------------------------------------------------------

    def _calibrated(
        self,
        stream: Iterator[tuple[ContextBatch, dict[str, torch.Tensor]]],
        writers: Mapping[str, Writer],
        max_norm: float,
    ) -> Iterator[tuple[ContextBatch, dict[str, torch.Tensor]]]:
        """The stream, delayed until there are enough rows for the median norm of every hook, which
        sets the limit of its writer."""
        delayed, norms = [], {hook: [] for hook in writers}
        for batch, states in stream:
            delayed.append((batch, states))
            keep_BT = batch.rows_for_scope(self.config.scope)
            for hook in writers:
                norms[hook].append(states[hook][keep_BT].float().norm(dim=1))
            if sum(map(len, norms[self.hooks[0]])) >= CALIBRATION_ROWS:
                break
        for hook, writer in writers.items():
            if delayed and writer.manifest.norm_limit is None:
                writer.set_norm_limit(max_norm * float(torch.cat(norms[hook]).median()))
        yield from delayed
        yield from stream

    def _within_rows(self, keep_BT: torch.Tensor, room: int | None) -> torch.Tensor:
        """At most `room` rows: cut anywhere when flat, else after the last whole example."""
        if room is None or int(keep_BT.sum()) <= room:
            return keep_BT
        counted = keep_BT.flatten().cumsum(0).view_as(keep_BT)
        if self.config.layout == "flat":
            return keep_BT & (counted <= room)
        return keep_BT & (counted[:, -1:] <= room)


def within_norm(
    keep_BT: torch.Tensor, states: dict[str, torch.Tensor], limits: dict[str, float | None]
) -> torch.Tensor:
    """Drop a row from all stores when it is too long in any, so that the stores stay aligned. A
    limit of None drops nothing."""
    for hook, limit in limits.items():
        if limit is not None:
            keep_BT = keep_BT & (states[hook].float().norm(dim=2) <= limit)
    return keep_BT


def origins(batch: ContextBatch, keep_BT: torch.Tensor) -> dict[str, torch.Tensor]:
    """doc_id, example_id and position (R,) of the R rows that are kept."""
    return {
        "doc_id": batch.doc_id_BT[keep_BT],
        "example_id": batch.example_id[:, None].expand_as(keep_BT)[keep_BT],
        "position": batch.position_BT[keep_BT],
    }


def _block(
    batch: ContextBatch, state_BTD: torch.Tensor, keep_BT: torch.Tensor, dropped: int
) -> RowBlock:
    counts = keep_BT.sum(1).tolist()
    examples, first = [], 0
    for b, count in enumerate(counts):
        identity = int(batch.example_id[b]), int(batch.doc_id[b])
        examples.append(
            StoredExample(
                *identity, first, count, batch.token_ids[b] or None, batch.refs[b], batch.labels[b]
            )
        )
        first += count
    return RowBlock(
        x=state_BTD[keep_BT],
        **origins(batch, keep_BT),
        examples=[e for e in examples if e.rows],
        dropped=dropped,
    )
