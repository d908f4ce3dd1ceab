"""A short training of a finished SAE on the model's own output: the verb `finetune`.

Karvonen 2025, "Revisiting End-To-End Sparse Autoencoder Training: A Short Finetune Is All You Need"
(arXiv 2503.17272): an SAE trained on squared errors, then on few rows with

    loss = (MSE + a KL) / 2,   a = MSE / KL of the same batch, a constant,

so that both terms have the same size and the gradient keeps the scale of the first training. KL is
the mean over the replaced positions of KL(p || p_spliced) of the next token; MSE is in units of the
rows' variance. A step takes two forward passes of the model, and a backward pass of the part after
the hook.

The penalty of a code (l1, jumprelu, kl ...) does not apply here: the number of active latents can
change, and the result has it before and after.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Unpack

import torch
from saekit_kernels import keep_freed_memory
from torch import nn

from saekit.errors import DataError, NumericsError, UsageError, opt
from saekit.harvesting.sources import Data
from saekit.interop.opening import is_name, recognized
from saekit.intervention.config import FinetuneConfig, FinetuneResult
from saekit.intervention.contexts import Contexts
from saekit.intervention.keywords import FinetuneKeywords
from saekit.intervention.objective import balanced, take_step
from saekit.intervention.reconstruct import Spliced, run_spliced
from saekit.intervention.subject import (
    borrowed,
    check_kind,
    model_of,
    open_store_of,
    other_revision,
    unknown_store,
)
from saekit.models.catalog import restore
from saekit.models.metrics import RowSums
from saekit.models.sae import SAE
from saekit.options import Doc, Overwrite, Resume, keywords
from saekit.store.checkpoint import (
    CONFIG,
    METRICS,
    MODEL,
    Checkpoint,
    damaged_state,
    read_checkpoint,
    read_train_state,
    write_checkpoint,
    write_train_state,
)
from saekit.store.files import read_json
from saekit.store.folder_kinds import RUN as RUN_KIND
from saekit.store.manifest import differences
from saekit.store.run_folder import run_folder
from saekit.training.checkpoints import Trained, name_of, path_or_model
from saekit.training.fit import holdout_figures
from saekit.training.inputs import store_normalizer
from saekit.training.logging import MetricsFile
from saekit.training.loop import deferred_interrupt
from saekit.training.optim import adam_tensors, restore_adam
from saekit.typed import MisfitError, as_type, build
from saekit.types import Progress
from saekit.versions import versions

RUN = RUN_KIND.marker
SHARE = 0.05  # of the rows that the checkpoint was trained on: "a few percent"
JUDGED_CONTEXTS = 128


@keywords(FinetuneConfig)
def finetune(
    checkpoint: Annotated[
        str | Path | Trained,
        Doc("Checkpoint folder of an SAE on text.", metavar="CKPT", positional=True),
    ],
    out: Annotated[
        str | Path, Doc("Folder for the new checkpoint.", metavar="OUT", positional=True)
    ],
    *,
    data: Annotated[
        Data | None,
        Doc(
            "Data to train on (default: the store's, without its held-out documents).",
            metavar="DATA",
        ),
    ] = None,
    live: nn.Module | None = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    progress: Callable[[Progress], None] = lambda _: None,
    **options: Unpack[FinetuneKeywords],
) -> FinetuneResult:
    """Fine-tune an SAE of a language model so that the model's predictions survive its
    reconstructions; write a checkpoint folder.

    >>> saekit.finetune("runs/topk", "runs/topk-kl", rows=20_000).after["kl"]

    Parameters
        checkpoint: a checkpoint folder, or what `saekit.train` returned with one.
        data: a place, as `saekit.harvest` takes it, or an iterable of texts or a datasets.Dataset.
            A store of texts that were in memory needs these same texts.
        live: the language model itself, a transformers module; None: it is loaded by the store's
            name for it. It stays on its device, and afterwards is in the mode that it was in.
        options: fields of FinetuneConfig: store, rows, lr, batch, seed, device, save_seconds.
        resume: continue a killed run bit for bit, with the same data.

    Raises UsageError (what cannot be fine-tuned), DataError (store, data, OUT), MissingError
    (store, model, data), NumericsError (divergence); KeyboardInterrupt after the state has been
    saved.
    """
    source = path_or_model(checkpoint)
    if not isinstance(source, str):
        raise UsageError(
            f"{name_of(source)} is in memory, without a record of what it was trained on",
            "give the folder of a checkpoint",
        )
    place = str(data) if isinstance(data, (str, Path)) else None
    config = FinetuneConfig(data=place, **options)
    if is_name(source) or recognized(Path(source)) is not None:
        raise unknown_store(source)
    described, objects = read_checkpoint(source), data if place is None else None
    with nullcontext() if live is None else borrowed(live):
        run = _Finetune(described, Path(out), config, live, objects)
        return run.execute(resume, overwrite, progress)


@dataclass
class _Done:
    """The progress of a run; with weights and moments, all that a resume needs."""

    before: dict[str, float | None]
    contexts: int
    rows: int = 0
    steps: int = 0
    drawn: int = 0  # batches, those without a row too
    seconds: float = 0.0


class _Finetune:
    def __init__(
        self,
        checkpoint: Checkpoint,
        out: Path,
        config: FinetuneConfig,
        live: nn.Module | None = None,
        objects: Data | None = None,
    ) -> None:
        """`objects`: the texts to train on, where they are not a place that the config names."""
        check_kind(checkpoint)
        if out.resolve() == checkpoint.path.resolve():
            raise UsageError(f"OUT is the checkpoint itself: {out}", "choose another OUT")
        self.checkpoint, self.out, self.folder = checkpoint, out, out
        # The store and the budget of rows.
        self.store = open_store_of(checkpoint, config.store)
        self.rows = config.rows or max(round(SHARE * checkpoint.config["result"]["rows"]), 1)
        self.config = dataclasses.replace(config, store=str(self.store.path), rows=self.rows)
        spec = self.store.spec
        # The language model, whose logits are the objective.
        self.live = model_of(self.store, self.config.device, live)
        device = self.live.device
        if self.live.kind != "causal_lm":
            raise UsageError(
                f"{spec.model} has no logits to train against",
                "fine-tune an SAE of a language model with a head",
            )
        if not self.live.has_head:
            raise DataError(
                f"the file of {spec.model} has no output head, so there are no logits to train on",
                "harvest and train on the model as it was saved with its head"
                " (AutoModelForCausalLM)",
            )
        # Texts, and the units of the rows.
        data = config.data if objects is None else objects
        self.contexts = Contexts(self.store, self.live, config.batch, data)
        self.normalizer = store_normalizer(self.store, device)
        # The SAE in the units of training, and its optimizer.
        settings = checkpoint.config["config"]
        raw = restore("sae", settings, checkpoint.tensors).to(device)
        assert isinstance(raw, SAE)
        sae = restore("sae", settings, raw.unfolded(self.normalizer)).to(device)
        assert isinstance(sae, SAE)
        self.sae: SAE = sae
        self.names = [name for name, _ in self.sae.named_parameters()]
        self.optimizer = torch.optim.Adam(
            self.sae.requires_grad_(True).parameters(), lr=self.config.lr, fused=True
        )

    def execute(
        self, resume: bool, overwrite: bool, progress: Callable[[Progress], None]
    ) -> FinetuneResult:
        # What a resume must agree with.
        settings = dataclasses.asdict(self.config)
        del settings["save_seconds"]
        identity = {
            "checkpoint": str(self.checkpoint.path),
            **settings,
            "content": self.store.manifest.content,
        }
        if self.contexts.digest is not None:
            identity |= {"data": self.contexts.data, "data_content": self.contexts.digest}

        def differs(_: int, path: Path) -> str:
            before = read_json(path / RUN, "a run").get("finetune")
            return "`saekit train` wrote it" if before is None else differences(before, identity)

        # The run, unless the folder holds it already.
        with run_folder(
            self.out, RUN_KIND, resume=resume, overwrite=overwrite, differs=differs
        ) as folder:
            self.folder = folder.path
            if (
                folder.resuming
                and (folder.path / MODEL).exists()
                and (folder.path / CONFIG).exists()
            ):
                return self._finished()
            if folder.notice:
                progress(Progress("finetune", 0, 0, message=folder.notice))
            folder.begin({"finetune": identity}, settings)
            return self._tune(progress)

    def _tune(self, progress: Callable[[Progress], None]) -> FinetuneResult:
        if note := other_revision(self.live, self.store):
            progress(Progress("finetune", 0, 0, message=note))
        keep_freed_memory()
        done = self._restored() or _Done(*self._judge(progress))
        if done.rows < self.rows:
            self._train(done, progress)
        rate = round(done.rows / max(done.seconds, 1e-9), 1)
        self.sae.requires_grad_(False)
        after, _ = self._judge(progress)
        result = FinetuneResult(
            str(self.out),
            done.rows,
            done.steps,
            self.config.lr,
            rate,
            done.contexts,
            done.before,
            after,
        )
        self._write(result)
        return result

    # -- state
    # ----------------------------------------------------------------------------------------------

    def _finished(self) -> FinetuneResult:
        recorded = read_checkpoint(self.folder).config.get("finetuned")
        names = {field.name for field in dataclasses.fields(FinetuneResult)} - {"path"}
        try:
            entries = as_type(recorded, dict[str, Any], "finetuned")
            result = {name: value for name, value in entries.items() if name in names}
            return build(FinetuneResult, {"path": str(self.out), **result}, "finetuned")
        except MisfitError as error:
            raise DataError(
                f"{self.folder / CONFIG} is damaged: {error}",
                f"{opt('overwrite', True)} to tune anew",
            ) from None

    def _save(self, done: _Done) -> None:
        tensors = {f"model.{name}": value.detach() for name, value in self.sae.state_dict().items()}
        write_train_state(
            self.folder,
            tensors | adam_tensors(self.optimizer, self.names),
            dataclasses.asdict(done),
        )

    def _restored(self) -> _Done | None:
        """The state that a killed run saved, if it saved one."""
        saved = read_train_state(self.folder)
        if saved is None:
            return None
        tensors, state = saved
        try:
            self.sae.load_state_dict(
                {name[6:]: value for name, value in tensors.items() if name.startswith("model.")}
            )
            restore_adam(self.optimizer, self.names, tensors)
            return build(_Done, state, "state")
        except (KeyError, RuntimeError, ValueError) as error:
            raise damaged_state(self.folder, error) from error

    # -- training
    # ----------------------------------------------------------------------------------------------

    def _train(self, done: _Done, progress: Callable[[Progress], None]) -> None:
        """To the end. On SIGINT or SIGTERM the state is saved and KeyboardInterrupt raised."""
        c, sae, optimizer, rows = self.config, self.sae, self.optimizer, self.rows

        def batches() -> Iterator:
            for batch in islice(self.contexts.train(c.seed), done.drawn, None):
                done.drawn += 1
                yield batch

        saved = time.monotonic()
        started = saved - done.seconds
        with (
            closing(MetricsFile(self.folder / METRICS, done.steps)) as metrics,
            deferred_interrupt() as interrupted,
        ):
            for spliced in self._runs(batches()):
                # one step; in units of training, E||x||^2 = D
                lr = optimizer.param_groups[0]["lr"] = c.lr * (1.0 - done.rows / rows)
                mse = (spliced.x_BD - spliced.x_hat_BD).square().sum(1).mean() / sae.d_in
                loss = balanced(mse, spliced.kl)
                optimizer.zero_grad()
                loss.backward()
                take_step(sae, optimizer)
                done.rows, done.steps = done.rows + len(spliced.x_BD), done.steps + 1

                # its metrics
                figures = {
                    "step": done.steps,
                    "rows": done.rows,
                    "loss": loss.item(),
                    "mse": mse.item(),
                    "kl": spliced.kl.item(),
                    "lr": lr,
                }
                if not math.isfinite(figures["loss"]):
                    raise NumericsError(
                        f"the loss diverged at step {done.steps}",
                        f"{opt('overwrite', True)} with a lower {opt('lr')}",
                    )
                metrics.write(figures)
                loss_figure = {"loss": figures["loss"]}
                progress(Progress("finetune", min(done.rows, rows), rows, figures=loss_figure))

                # the state, now and then and at the end
                ended, now = done.rows >= rows or interrupted(), time.monotonic()
                if ended or now - saved >= c.save_seconds:
                    done.seconds = now - started
                    self._save(done)
                    saved = now
                if ended:
                    break
        if interrupted():
            raise KeyboardInterrupt

    def _runs(self, batches: Iterator) -> Iterator[Spliced]:
        """Skips batches without a row in the store's scope; a hundred of them in succession are an
        error."""
        empty = 0
        for batch in batches:
            spliced = run_spliced(self.live, self.sae, self.normalizer, batch, self.store)
            empty = 0 if spliced else empty + 1
            if spliced:
                yield spliced
            elif empty == 100:
                raise DataError(
                    f"{self.contexts.data} holds no rows in the store's scope",
                    f"give other data with {opt('data')}",
                )

    # -- judging
    # ----------------------------------------------------------------------------------------------

    def _judge(self, progress: Callable[[Progress], None]) -> tuple[dict[str, float | None], int]:
        """(kl, fvu and l0 on held-out documents, how many contexts)."""
        sums, kl, contexts = RowSums(self.sae.active_above), 0.0, 0

        def counted() -> Iterator:
            nonlocal contexts
            for batch in self.contexts.holdout(JUDGED_CONTEXTS):
                contexts += len(batch)
                yield batch

        with torch.no_grad():
            for spliced in self._runs(counted()):
                sums.add(spliced.x_BD, spliced.x_hat_BD, spliced.code)
                kl += spliced.kl.item() * len(spliced.x_BD)
                progress(Progress("judge", contexts, 0, unit="contexts"))
        if not sums.rows:
            raise DataError(
                f"the held-out documents of {self.store.path} hold no rows", "harvest more rows"
            )
        figures = sums.figures()
        return {"kl": kl / sums.rows, "fvu": figures["fvu"], "l0": figures["l0"]}, contexts

    def _write(self, result: FinetuneResult) -> None:
        tensors = {name: value.cpu() for name, value in self.sae.folded(self.normalizer).items()}
        old = self.checkpoint.config
        final = restore("sae", old["config"], tensors)
        # no latent was followed here
        figures = holdout_figures(final, self.store, device=self.live.device)
        metrics, c = figures.scalars() | {"dead_train": None}, self.config
        about = {
            "from": str(self.checkpoint.path), "data": self.contexts.data, "rows": result.rows,
            "steps": result.steps, "lr": c.lr,
            "batch": c.batch, "seed": c.seed, "rows_per_s": result.rows_per_s,
            "contexts": result.contexts, "before": result.before,
            "after": result.after,
        }  # fmt: skip
        changed = {
            "result": old["result"] | {"metrics": metrics},
            "versions": versions(),
            "finetuned": about,
        }
        write_checkpoint(self.folder, old | changed, tensors)
