"""Loss recovered: how much worse a model predicts when the rows at a hook are replaced by their
reconstructions (docs/evaluation.md).

Each context is run once as it is, once with zeros and once with the store's mean row in place of
the rows, and once for each dictionary. Positions outside the store's scope, and rows that the store
dropped for their norm, keep their bits. What the dictionary misses is not added back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from saekit_kernels import keep_freed_memory
from torch import nn

from saekit.errors import DataError, opt
from saekit.evaluation.intervals import bootstrap
from saekit.evaluation.losses import Predictions, changes, classes, logits_of, next_tokens
from saekit.evaluation.models import EvaluatedModel
from saekit.evaluation.sites import Site, on_module, site_of
from saekit.evaluation.table import Recovery
from saekit.harvesting.anatomy import untouched
from saekit.harvesting.classifiers import class_numbers, no_head
from saekit.harvesting.hooks import capture
from saekit.harvesting.inputs import ContextBatch
from saekit.harvesting.models import LiveModel
from saekit.harvesting.run import within_norm
from saekit.harvesting.sources import Data, Documents
from saekit.intervention.contexts import Chosen, document_ids, judged, own_data
from saekit.intervention.splice import splice
from saekit.intervention.subject import model_of, other_revision
from saekit.models.autoencoder import Autoencoder
from saekit.models.metrics import LOSS_METRICS
from saekit.training.fit import on_device
from saekit.types import Progress, Split

LOGITS = 2**26  # of one pass: 256 MB in fp32; two passes are compared
CODE_NUMBERS = 2**25  # of a dense code at once: 128 MB
# Sums of a context. The first five do not depend on the dictionary.
COUNT, CLEAN, ZERO, MEAN, KL_ZERO, SAE, KL_SAE, AGREES = range(8)


@dataclass(frozen=True)
class Source:
    """The running model and its data, as the caller gave them; None: as the store names them."""

    live: nn.Module | None = None
    processor: Any = None
    data: Data | None = None
    device: str = "auto"


def losses_recovered(
    runs: Sequence[EvaluatedModel],
    splits: Sequence[Split],
    contexts: int,
    source: Source,
    progress: Callable[[Progress], None],
) -> list[tuple[dict[str, dict[str, float | None]], Recovery]]:
    """({metric: {value, low, high}}, Recovery) of each run on at most `contexts` contexts of its
    split's documents.

    Raises UsageError, DataError (rows, models and sites without a loss), MissingError.
    """
    sites = [site_of(run) for run in runs]
    store = sites[0].store  # of all runs
    keep_freed_memory()
    with nullcontext() if source.live is None else untouched(source.live, hooks=False):
        live = model_of(store, source.device, source.live, source.processor)
        _check_logits(live)
        data = own_data(store, source.data)
        if note := other_revision(live, store):
            progress(Progress("recover", 0, 0, message=note))
        # runs that read the same documents and replace the same hooks share their passes
        groups: dict[tuple, list[int]] = {}
        for number, (site, split) in enumerate(zip(sites, splits)):
            groups.setdefault((split, *(s.path for s in site.writes)), []).append(number)
        results: dict[int, Any] = {}
        for numbers in groups.values():
            models = [on_device(runs[number].model, live.device) for number in numbers]
            site, split = sites[numbers[0]], splits[numbers[0]]
            passes = _Passes(live, data, site, split, models)
            results |= zip(numbers, passes.execute(contexts, progress))
    return [results[number] for number in range(len(runs))]


def _check_logits(live: LiveModel) -> None:
    """Raise DataError for a model that does not predict."""
    if live.modality == "image":
        output = getattr(live.module.config, "num_labels", 0)
        if not (output and "ForImageClassification" in type(live.module).__name__):
            raise no_head(live.name)
    elif live.kind != "causal_lm":
        raise DataError(
            f"{live.name} is a text encoder, which does not predict the next token",
            f"drop {opt('loss_recovered', True)}",
        )
    elif not live.has_head:
        raise DataError(
            f"the file of {live.name} has no output head, so there are no logits to compare",
            "harvest the model as it was saved with its head (AutoModelForCausalLM)",
        )


class _Passes:
    """The passes for dictionaries that replace the same hooks, on the documents of one split."""

    def __init__(
        self,
        live: LiveModel,
        data: Documents,
        site: Site,
        split: Split,
        models: list[Autoencoder],
    ) -> None:
        self.live, self.site, self.models = live, site, models
        self.split: Split = split
        self.names = {hook: on_module(live, hook) for hook in site.hooks}
        self.data = Chosen(data, document_ids(site.store, split), inside=True)
        self.labels: dict[str, int] | None = None
        self.targets = "next tokens"
        if live.modality == "image":
            known = set(site.store.labels(split, examples=True))
            self.labels = class_numbers(live, known)
            self.targets = "clean predictions" if self.labels is None else "labels"
        self.rows = 0

    def execute(
        self, most: int, progress: Callable[[Progress], None]
    ) -> list[tuple[dict[str, dict[str, float | None]], Recovery]]:
        """The figures of each dictionary."""
        store = self.site.store
        total = min(most, store.count(self.split, examples=True))
        units, sums = [], []
        # the passes: sums (B,8) of every context, for each dictionary
        for batch in self._batches(most):
            ids = batch.example_id if store.spec.pack else batch.doc_id
            units += ids.tolist()
            sums.append(self._sums(batch))
            progress(Progress("recover", len(units), max(total, len(units)), "contexts"))
        if not sums:
            raise DataError(f"the documents of {store.path} hold no context", "harvest more rows")
        # pooled by document
        sums_MC8 = torch.cat(sums, dim=1).numpy()
        documents, which = np.unique(units, return_inverse=True)
        results = []
        for sums_C8 in sums_MC8:
            sums_G8 = np.zeros((len(documents), sums_C8.shape[1]))
            np.add.at(sums_G8, which, sums_C8)
            predictions = int(sums_G8[:, COUNT].sum())
            recovery = Recovery(len(units), len(documents), self.rows, predictions, self.targets)
            results.append((_figures(sums_G8), recovery))
        return results

    def _batches(self, most: int) -> Iterator[ContextBatch]:
        """At most `most` contexts, so many at a time that the logits of a pass fit."""
        for batch in judged(self.site.store, self.live, self.data):
            batch = _part(batch, slice(0, most))
            most -= len(batch)
            size = max(LOGITS // (batch.kind_BT.shape[1] * self._outputs()), 1)
            for first in range(0, len(batch), size):
                yield _part(batch, slice(first, first + size))
            if most == 0:
                return

    def _outputs(self) -> int:
        """V: tokens or classes."""
        config: Any = self.live.module.config
        image = self.live.modality == "image"
        return config.num_labels if image else config.get_text_config().vocab_size

    @torch.no_grad()
    def _sums(self, batch: ContextBatch) -> torch.Tensor:
        """(M,B,8) fp64: the sums of each context, for each of M dictionaries."""
        live, site, hooks = self.live, self.site, self.names
        # the model as it is, and its rows; `captured` is in the order in which the hooks ran
        with capture(live, list(hooks.values())) as captured:
            clean_BTV = logits_of(live.forward(batch.inputs))
        fired = {name: hook for hook, name in hooks.items()}
        states = {fired[name]: state for name, state in captured.items()}
        site.check_order(list(states))
        scope = batch.rows_for_scope(site.store.spec.scope).to(live.device)
        mask_BT = within_norm(scope, states, site.norm_limits)
        x_ND = torch.cat([states[s.spec.hook][mask_BT] for s in site.reads], dim=1)
        x_ND = x_ND.to(torch.promote_types(x_ND.dtype, torch.float32))
        self.rows += len(x_ND)
        predictions = self._predictions(batch, clean_BTV)

        def replaced(rows_ND: torch.Tensor) -> torch.Tensor:
            parts = site.cut(rows_ND)
            constant = {hooks[hook]: lambda _, rows=rows: rows for hook, rows in parts.items()}
            with splice(live, constant, mask_BT=mask_BT):
                other_BTV = logits_of(live.forward(batch.inputs))
            return changes(clean_BTV, other_BTV, predictions)

        # with other rows
        mean_D = site.mean().to(x_ND.device, x_ND.dtype)
        clean = changes(clean_BTV, clean_BTV, predictions)
        mean = replaced(mean_D.expand(len(x_ND), -1))
        zero = replaced(torch.zeros_like(mean_D).expand(len(x_ND), -1))
        shared = [torch.ones_like(clean[0]), clean[0], zero[0], mean[0], zero[1]]
        sums = torch.zeros(len(self.models), len(batch), 8, dtype=torch.float64)
        for number, model in enumerate(self.models):
            values = torch.stack([*shared, *replaced(_reconstructed(model, x_ND))], dim=1)
            sums[number].index_add_(0, predictions.example_M, values)
        return sums

    def _predictions(self, batch: ContextBatch, clean_BTV: torch.Tensor) -> Predictions:
        if self.live.modality == "text":
            return next_tokens(batch, self.site.store.spec.scope)
        if self.labels is None:
            return classes(clean_BTV[:, 0].argmax(1))
        numbers = [self.labels[label] for label in batch.labels if label is not None]
        return classes(torch.tensor(numbers))


def _reconstructed(model: Autoencoder, x_ND: torch.Tensor) -> torch.Tensor:
    """x_hat, some rows at a time: a dense code of a wide dictionary is large."""
    parts = x_ND.split(max(CODE_NUMBERS // model.latents, 1))
    return torch.cat([model(part).x_hat for part in parts])


def _part(batch: ContextBatch, which: slice) -> ContextBatch:
    """Some contexts of a batch."""
    columns = {
        field.name: getattr(batch, field.name)[which]
        for field in dataclasses.fields(batch)
        if field.name not in ("inputs", "grid")
    }
    inputs = {name: value[which] for name, value in batch.inputs.items()}
    return dataclasses.replace(batch, inputs=inputs, **columns)


# -- from sums to figures


def _statistics(sums: np.ndarray) -> np.ndarray:
    """Sums (..., 8) -> the metrics (..., 8), in the order of LOSS_METRICS."""
    names = (CLEAN, SAE, ZERO, MEAN, KL_SAE, KL_ZERO, AGREES)
    clean, sae, zero, mean, kl_sae, kl_zero, agrees = (
        sums[..., name] / sums[..., COUNT] for name in names
    )
    lost = np.where(zero > clean, zero - clean, np.nan)
    return np.stack([clean, sae, zero, mean, (zero - sae) / lost, kl_sae, kl_zero, agrees], -1)


def _figures(sums_G8: np.ndarray) -> dict[str, dict[str, float | None]]:
    names, kinds = [metric.name for metric in LOSS_METRICS], ("value", "low", "high")
    with np.errstate(divide="ignore", invalid="ignore"):
        table = np.stack(bootstrap(sums_G8, _statistics), axis=1).tolist()
    return {
        name: {kind: value if np.isfinite(value) else None for kind, value in zip(kinds, row)}
        for name, row in zip(names, table)
    }
