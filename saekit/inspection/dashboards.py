"""FeatureRecords as the files that SAEDashboard writes: batch-N.json, 128 features each.

Keys are those of SAEDashboard 0.8.0, floats are rounded to 5 decimals. A list is empty where our
records do not hold it (correlations, the histogram of logits) or it does not apply (attention
heads, direct feature attribution). Nothing is estimated.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch

from saekit.errors import DataError
from saekit.inspection.opening import InspectedModel
from saekit.interop.lens_names import layer_of, lens_name
from saekit.interop.outgoing import without_folders
from saekit.store.files import write_json
from saekit.store.reader import Store
from saekit.types import Example, FeatureRecord

BATCH = 128
DECIMALS = 5
ALIGNED = 3  # decoder coordinates
TOP_GROUP = -1  # in place of the band of an example


@dataclass(frozen=True)
class Source:
    """What a feature file says about the dictionary as a whole."""

    model: str
    """Without the owner: `SmolLM2-135M`."""
    layer: int
    hook: str
    """In TransformerLens' words where it has some, else the module path."""
    name: str
    """Of the dictionary: that of its folder."""
    latents: int
    dataset: str
    contexts: int
    context: int
    """Tokens."""
    rows: int
    """All of the store."""
    directions_FD: torch.Tensor | None
    """The decoder; None where it is deep."""


def source_of(inspected: InspectedModel) -> Source:
    """Raises DataError for rows that are not of one layer of a language model."""
    store = inspected.store
    spec = store.spec
    remedy = f"saekit inspect {inspected.name} makes a page of any store"
    if spec.modality != "text" or spec.is_raw or not isinstance(store, Store):
        what = "several hooks" if not isinstance(store, Store) else f"{spec.hook} rows"
        raise DataError(
            f"{store.path} holds {what}: feature files show tokens of one hook of a language model",
            remedy,
        )
    layer = layer_of(spec.hook)
    if layer is None:
        raise DataError(f"{spec.hook} does not say which layer it belongs to", remedy)
    return Source(
        as_file_name(spec.model.rsplit("/", 1)[-1].removeprefix("embedded:")),
        layer,
        lens_name(spec.hook, spec.model) or spec.hook,
        as_file_name(Path(inspected.name).resolve().name),
        inspected.model.latents,
        without_folders(spec.dataset) or "",
        store.count(examples=True),
        spec.context or 0,
        store.count(),
        inspected.directions(),
    )


def as_file_name(name: str) -> str:
    """A folder of this name lies inside the folder that it is put in."""
    return re.sub(r"[^\w.-]+", "-", name).lstrip(".") or "unnamed"


def write_saedashboard(path: Path, source: Source, records: Iterable[FeatureRecord]) -> None:
    head = {
        "model_id": source.model,
        "layer": source.layer,
        "sae_set": source.name,
        "sae_id_suffix": None,
    }
    for number, batch in enumerate(batches(records)):
        features = [feature_of(record, source) for record in batch]
        write_json(path / f"batch-{number}.json", head | {"features": features})


def batches(records: Iterable[FeatureRecord]) -> Iterator[list[FeatureRecord]]:
    """The records of each file."""
    records = iter(records)
    while batch := list(islice(records, BATCH)):
        yield batch


def feature_of(record: FeatureRecord, source: Source) -> dict[str, Any]:
    """A record under SAEDashboard's keys."""
    directions_FD = source.directions_FD
    edges = record.histogram["edges"]
    logits = record.logits or {"top": [], "bottom": []}
    feature = {
        "feature_index": record.index,
        **_alignment(None if directions_FD is None else directions_FD[record.index]),
        "correlated_neurons_indices": [],
        "correlated_neurons_l1": [],
        "correlated_neurons_pearson": [],
        "correlated_features_indices": [],
        "correlated_features_l1": [],
        "correlated_features_pearson": [],
        "neg_str": [entry["token"] for entry in logits["bottom"]],
        "neg_values": [entry["value"] for entry in logits["bottom"]],
        "pos_str": [entry["token"] for entry in logits["top"]],
        "pos_values": [entry["value"] for entry in logits["top"]],
        "frac_nonzero": record.density,
        "freq_hist_data_bar_values": [(a + b) / 2 for a, b in pairwise(edges)],
        "freq_hist_data_bar_heights": record.histogram["counts"],
        "logits_hist_data_bar_heights": [],
        "logits_hist_data_bar_values": [],
        "n_prompts_total": source.contexts,
        "n_tokens_in_prompt": source.context,
        "dataset": source.dataset,
        "decoder_weights_dist": [],
        "activations": [_activation(example, record, source.rows) for example in record.examples],
        "vector": [],
    }
    return _rounded(feature)


def _alignment(direction_D: torch.Tensor | None) -> dict[str, list[float]]:
    """The largest coordinates of a decoder row, and their share of its L1 norm."""
    names = ("indices", "values", "l1")
    if direction_D is None:
        return {f"neuron_alignment_{name}": [] for name in names}
    largest = direction_D.topk(min(ALIGNED, len(direction_D)))
    shares = largest.values.abs() / direction_D.abs().sum().clamp_min(1e-30)
    columns = (largest.indices, largest.values, shares)
    return {f"neuron_alignment_{name}": column.tolist() for name, column in zip(names, columns)}


def _activation(example: Example, record: FeatureRecord, rows: int) -> dict[str, Any]:
    """A window of tokens. The band says which sizes its group has, and the share of all rows that
    have them."""
    low, high, share = TOP_GROUP, record.max, TOP_GROUP
    if example.interval is not None:
        assert record.bands is not None
        band = record.bands[example.interval]
        low, high, share = band["low"], band["high"], band["rows"] / rows
    return {
        "bin_min": low,
        "bin_max": high,
        "bin_contains": share,
        "tokens": example.tokens,
        "values": example.values,
        "qualifying_token_index": example.centre,
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DECIMALS)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value
