"""The output tokens of the language model that a store came from: what the logit lens reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn

from saekit.errors import SaekitError
from saekit.inspection.opening import InspectedModel
from saekit.inspection.output_tests import SIDES, told
from saekit.inspection.relate import (
    ByChance,
    off_the_residual_stream,
    output_tokens,
    standing_out_by_chance,
)
from saekit.inspection.show import token_texts
from saekit.store.reader import Store
from saekit.types import ActivationSpec, FeatureRecord

LATENTS_AT_ONCE = 256
BINS = 50


@dataclass(frozen=True)
class Head:
    """The output tokens of a language model: W_U (N,D), and the token id of each of its rows."""

    W_U_ND: torch.Tensor
    ids: list[int]


def output_head(
    inspected: InspectedModel, store: Store, live: nn.Module | None
) -> tuple[Head | None, str]:
    """As `unembedding`. A transcoder's directions are of its target, not of what it reads."""
    target = inspected.recorded("training", "target_store")
    if target is None and getattr(inspected.model.config, "d_out", 0):
        return None, "the transcoder does not say which hook it writes to"
    try:
        written = store.spec if target is None else Store(Path(target)).spec
    except SaekitError as error:
        return None, f"the target store cannot be read: {error.message}"
    return unembedding(store, written, live)


def unembedding(
    store: Store, written: ActivationSpec | None = None, live: nn.Module | None = None
) -> tuple[Head | None, str]:
    """(the head of the language model that the store came from, '') or (None, why directions at
    `written` have no output tokens). `live`: the model itself, where it was in memory."""
    from saekit.harvesting.memory_models import load_model_of

    spec = written or store.spec
    if spec.is_raw or spec.model != store.spec.model:
        return (
            None,
            f"the decoder writes to {spec.hook} of {spec.model}, not to the model of {store.path}",
        )
    try:
        model = load_model_of(spec, given=live)
    except SaekitError as error:
        return None, error.message
    weight: torch.Tensor | None = getattr(model.output_head, "weight", None)
    if weight is None:
        return None, f"{spec.model} has no output tokens"
    if weight.shape[1] != spec.d_in:
        return None, f"{spec.hook} is {spec.d_in} wide, the residual stream {weight.shape[1]}"
    if why := off_the_residual_stream(model, spec.hook):
        return None, why
    # Heads are padded to round numbers: rows that are not a token of the vocabulary were never
    # trained.
    ids = [i for i in token_texts(store).ids() if 0 <= i < len(weight)]
    return Head(weight.detach().float().cpu()[ids], ids), ""


def with_logits(
    records: Iterable[FeatureRecord], W_dec_FD: torch.Tensor, head: Head, store: Store
) -> Iterator[FeatureRecord]:
    """The same records, each with the output tokens that its decoder row raises and lowers most,
    and how far these stand out beside those of random directions. Where a side does, also the
    distribution over the whole vocabulary."""
    texts = token_texts(store)
    by_chance = standing_out_by_chance(head.W_U_ND)
    records = iter(records)
    while chunk := list(islice(records, LATENTS_AT_ONCE)):
        latents = torch.tensor([record.index for record in chunk])
        tokens, apart_N2K = output_tokens(
            W_dec_FD, latents, head.W_U_ND, lambda i: texts.alone(head.ids[i])
        )
        for record, logits, apart_2K in zip(chunk, tokens, apart_N2K):
            record.logits = logits
            record.logit_test = logit_test(apart_2K, by_chance)
        shown = [record for record in chunk if _stands_out(record.logit_test)]
        rows_ND = W_dec_FD[[record.index for record in shown]]
        for record, counted in zip(shown, logit_histograms(rows_ND @ head.W_U_ND.T)):
            record.logit_histogram = counted
        yield from chunk


def logit_test(apart_2K: torch.Tensor, by_chance: ByChance) -> dict[str, float]:
    """A record's `logit_test`, from the deviations of its listed logits."""
    test: dict[str, float] = {}
    for side, apart_K in zip(SIDES, apart_2K):
        of_one = getattr(by_chance, f"{side}_one")
        test[side], test[f"{side}_chance"] = float(apart_K.mean()), getattr(by_chance, side)
        test[f"{side}_one"], test[f"{side}_one_chance"] = float(apart_K[0]), of_one
        test[f"{side}_beyond"] = int((apart_K > of_one).sum())
    return test


def _stands_out(test: dict[str, float] | None) -> bool:
    """Whether one side says more than 99 % of random directions do."""
    return any(told(test, side) != 0 for side in SIDES)


def logit_histograms(logits_NV: torch.Tensor) -> list[dict[str, list[float]]]:
    """Of each row {"edges" [51], "counts" [50]}: how many of its V logits lie in each of 50 bins of
    equal width from the smallest to the largest. Counts sum to V."""
    counted = (np.histogram(row_V, BINS) for row_V in logits_NV.double().numpy())
    return [{"edges": edges.tolist(), "counts": n.tolist()} for n, edges in counted]
