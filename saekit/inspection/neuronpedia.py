"""FeatureRecords as the files of Neuronpedia's bulk import, as SAEDashboard's exporter writes them
(2026-07): MODEL/LAYER-NAME/ with release.jsonl, model.jsonl, sourceset.jsonl, source.jsonl,
features/batch-N.jsonl.gz and activations/batch-N.jsonl.gz.

Neuronpedia asks for accounts and titles that a checkpoint does not know: the creator is the account
that SAEDashboard's exporter uses by default, its name is empty, titles are put together from model,
hook and kind of dictionary. Edit the four small files before an upload.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from saekit.inspection.dashboards import DECIMALS, Source, batches, feature_of
from saekit.store.files import write_bytes
from saekit.types import FeatureRecord

CREATOR = "clkht01d40000jv08hvalcvly"


def write_neuronpedia(
    path: Path, source: Source, records: Iterable[FeatureRecord], created: str
) -> None:
    """`created`: an ISO 8601 time, for the fields of that name."""
    layer = f"{source.layer}-{source.name}"
    folder = path / source.model / layer
    for name in ("features", "activations"):
        (folder / name).mkdir(parents=True)
    of_creator = {"creatorId": CREATOR, "createdAt": created}
    for name, row in _about(source, layer).items():
        write_bytes(folder / f"{name}.jsonl", _lines([row | of_creator]))
    of_model = {"modelId": source.model, "layer": layer, **of_creator}
    for number, batch in enumerate(batches(records)):
        features, activations = [], []
        for record in batch:
            feature = feature_of(record, source)
            features.append(_feature(feature, record, source) | of_model)
            activations += [row | of_model for row in _activations(feature, source)]
        for name, rows in (("features", features), ("activations", activations)):
            packed = gzip.compress(_lines(rows), 6, mtime=0)
            write_bytes(folder / name / f"batch-{number}.jsonl.gz", packed)


def _about(source: Source, layer: str) -> dict[str, dict[str, Any]]:
    """The rows of the four small files."""
    title = f"{source.name}: {source.latents:,} latents at {source.hook} of {source.model}"
    shared = {"visibility": "PUBLIC"}
    return {
        "release": shared
        | {
            "name": source.name,
            "description": title,
            "descriptionShort": title,
            "urls": [],
            "creatorName": "",
            "creatorNameShort": "",
            "creatorEmail": None,
            "isNewUi": False,
            "featured": False,
            "defaultSourceSetName": None,
            "defaultSourceId": None,
            "defaultUmapSourceIds": [],
        },
        "model": shared
        | {
            "id": source.model,
            "instruct": source.model.endswith("-it"),
            "displayNameShort": source.model,
            "displayName": source.model,
            "tlensId": None,
            "dimension": None,
            "defaultSourceSetName": None,
            "defaultSourceId": None,
            "inferenceEnabled": False,
            "layers": 0,
            "neuronsPerLayer": 0,
            "owner": "",
            "website": None,
        },
        "sourceset": shared
        | {
            "modelId": source.model,
            "name": source.name,
            "hasDashboards": True,
            "description": title,
            "type": "",
            "creatorName": "",
            "urls": [],
            "creatorEmail": None,
            "releaseName": source.name,
            "defaultOfModelId": None,
            "defaultRange": 1,
            "defaultShowBreaks": True,
            "showDfa": False,
            "showCorrelated": False,
            "showHeadAttribution": False,
            "showUmap": False,
        },
        "source": shared
        | {
            "id": layer,
            "modelId": source.model,
            "setName": source.name,
            "hasDashboards": True,
            "inferenceEnabled": False,
            "inferenceHosts": [],
            "saelensConfig": None,
            "saelensRelease": None,
            "saelensSaeId": None,
            "hfRepoId": None,
            "hfFolderId": None,
            "defaultOfModelId": None,
            "hasUmap": False,
            "hasUmapLogSparsity": False,
            "hasUmapClusters": False,
            "num_prompts": source.contexts,
            "num_tokens_in_prompt": source.context,
            "dataset": source.dataset,
            "notes": None,
        },
    }


# of a feature under SAEDashboard's keys, with the same names here
SAME = (
    *(f"neuron_alignment_{name}" for name in ("indices", "values", "l1")),
    *(f"correlated_neurons_{name}" for name in ("indices", "pearson", "l1")),
    *(f"correlated_features_{name}" for name in ("indices", "pearson", "l1")),
    *("neg_str", "neg_values", "pos_str", "pos_values", "frac_nonzero"),
    *("freq_hist_data_bar_heights", "freq_hist_data_bar_values"),
    *("logits_hist_data_bar_heights", "logits_hist_data_bar_values", "decoder_weights_dist"),
)


def _feature(feature: dict[str, Any], record: FeatureRecord, source: Source) -> dict[str, Any]:
    return {
        "index": str(record.index),
        "maxActApprox": round(record.max, DECIMALS),
        "hasVector": False,
        "vector": [],
        "vectorLabel": None,
        "vectorDefaultSteerStrength": 10,
        "hookName": source.hook,
        "topkCosSimIndices": [near["index"] for near in record.neighbours],
        "topkCosSimValues": [round(near["cosine"], DECIMALS) for near in record.neighbours],
        "sourceSetName": source.name,
        **{name: feature[name] for name in SAME},
    }


def _activations(feature: dict[str, Any], source: Source) -> Iterator[dict[str, Any]]:
    index = str(feature["feature_index"])
    origin = f"{source.model}/{source.layer}-{source.name}"
    for number, window in enumerate(feature["activations"]):
        values = window["values"]
        # as long as Neuronpedia's own, the same for the same window of the same export
        digest = hashlib.sha256(f"{origin}/{index}/{number}".encode()).hexdigest()
        yield {
            "id": f"c{digest[:24]}",
            "index": index,
            "tokens": window["tokens"],
            "values": values,
            "maxValue": max(values),
            "maxValueTokenIndex": values.index(max(values)),
            "minValue": min(values),
            "binMin": window["bin_min"],
            "binMax": window["bin_max"],
            "binContains": window["bin_contains"],
            "qualifyingTokenIndex": window["qualifying_token_index"],
            "dfaValues": [],
            "dfaTargetIndex": None,
            "dfaMaxValue": None,
            "lossValues": [],
            "logitContributions": None,
            "dataIndex": None,
            "dataSource": None,
            "zIndices": None,
            "zValues": None,
        }


def _lines(rows: Iterable[dict[str, Any]]) -> bytes:
    return "".join(
        json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n" for row in rows
    ).encode()
