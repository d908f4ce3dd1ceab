"""Feature files of SAEDashboard and Neuronpedia: their keys, and values that are those of our
records."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path

import pytest
import torch
from command import saekit
from made_letters import letters_model
from made_runs import trained

import saekit as package
from saekit import export_dictionary
from saekit.errors import DataError, UsageError
from saekit.inspection.dashboards import (
    Source,
    as_file_name,
    batches,
    feature_of,
    write_saedashboard,
)
from saekit.inspection.neuronpedia import write_neuronpedia
from saekit.types import Example, FeatureRecord

RECORD = FeatureRecord(
    index=7,
    density=0.03125,
    active_rows=64,
    max=2.7182818,
    histogram={"edges": [0.0, 1.0, 2.0, 3.0], "counts": [40, 20, 4]},
    bands=[{"low": 0.0, "high": 1.5, "rows": 50}, {"low": 1.5, "high": 2.7182818, "rows": 14}],
    examples=[
        Example("top", 2.7182818, 3, 9, 1, [0.0, 2.7182818], tokens=[" a", " b"], centre=1),
        Example("interval", 1.25, 4, 11, 0, [1.25], interval=0, tokens=["c"], centre=0),
    ],
    neighbours=[{"index": 2, "cosine": 0.1234567}],
    logits={
        "top": [{"token": " b", "value": 1.5}],
        "bottom": [{"token": " z", "value": -0.3333333}],
    },
)
SOURCE = Source(
    "SmolLM2-135M", 9, "blocks.9.hook_resid_post", "topk", 16, "pydocs", 128, 64, 2048,
    torch.tensor([[0.0, 0.0, 0.0, 0.0]] * 7 + [[0.25, -0.5, 0.125, 0.0625]] * 9),
)  # fmt: skip
FEATURE = {
    "feature_index": 7,
    "neuron_alignment_indices": [0, 2, 3],
    "neuron_alignment_values": [0.25, 0.125, 0.0625],
    "neuron_alignment_l1": [0.26667, 0.13333, 0.06667],
    "correlated_neurons_indices": [],
    "correlated_neurons_l1": [],
    "correlated_neurons_pearson": [],
    "correlated_features_indices": [],
    "correlated_features_l1": [],
    "correlated_features_pearson": [],
    "neg_str": [" z"],
    "neg_values": [-0.33333],
    "pos_str": [" b"],
    "pos_values": [1.5],
    "frac_nonzero": 0.03125,
    "freq_hist_data_bar_values": [0.5, 1.5, 2.5],
    "freq_hist_data_bar_heights": [40, 20, 4],
    "logits_hist_data_bar_heights": [],
    "logits_hist_data_bar_values": [],
    "n_prompts_total": 128,
    "n_tokens_in_prompt": 64,
    "dataset": "pydocs",
    "decoder_weights_dist": [],
    "activations": [
        {
            "bin_min": -1,
            "bin_max": 2.71828,
            "bin_contains": -1,
            "tokens": [" a", " b"],
            "values": [0.0, 2.71828],
            "qualifying_token_index": 1,
        },
        {
            "bin_min": 0.0,
            "bin_max": 1.5,
            "bin_contains": 0.02441,
            "tokens": ["c"],
            "values": [1.25],
            "qualifying_token_index": 0,
        },
    ],
    "vector": [],
}


def test_a_batch_of_saedashboard(tmp_path):
    write_saedashboard(tmp_path, SOURCE, [RECORD])
    batch = json.loads((tmp_path / "batch-0.json").read_text())
    assert batch == {
        "model_id": "SmolLM2-135M",
        "layer": 9,
        "sae_set": "topk",
        "sae_id_suffix": None,
        "features": [FEATURE],
    }


def lines(path: Path) -> list[dict]:
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    return [json.loads(line) for line in text.splitlines()]


def test_no_name_in_a_store_leads_out_of_the_folder():
    assert [as_file_name(name) for name in ("..", "", "../a b", "SmolLM2-135M")] == [
        "unnamed", "unnamed", "-a-b", "SmolLM2-135M",
    ]  # fmt: skip


def test_the_files_of_neuronpedia(tmp_path):
    write_neuronpedia(tmp_path, SOURCE, [RECORD], "2026-11-29T12:00:00.000+00:00")
    folder = tmp_path / "SmolLM2-135M" / "9-topk"
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.*")} == {
        "release.jsonl", "model.jsonl", "sourceset.jsonl", "source.jsonl",
        "features/batch-0.jsonl.gz", "activations/batch-0.jsonl.gz",
    }  # fmt: skip
    of_all = {
        "modelId": "SmolLM2-135M",
        "layer": "9-topk",
        "creatorId": "clkht01d40000jv08hvalcvly",
        "createdAt": "2026-11-29T12:00:00.000+00:00",
    }
    (feature,) = lines(folder / "features/batch-0.jsonl.gz")
    not_of_features = ("feature_index", "activations", "vector", "n_prompts_total",
        "n_tokens_in_prompt", "dataset")  # fmt: skip
    assert feature == of_all | {
        name: value for name, value in FEATURE.items() if name not in not_of_features
    } | {
        "index": "7",
        "maxActApprox": 2.71828,
        "hasVector": False,
        "vector": [],
        "vectorLabel": None,
        "vectorDefaultSteerStrength": 10,
        "hookName": "blocks.9.hook_resid_post",
        "topkCosSimIndices": [2],
        "topkCosSimValues": [0.12346],
        "sourceSetName": "topk",
    }
    top, interval = lines(folder / "activations/batch-0.jsonl.gz")
    identity = top.pop("id")
    assert len(identity) == 25 and identity[0] == "c" and identity != interval["id"]
    assert top == of_all | {
        "index": "7",
        "tokens": [" a", " b"],
        "values": [0.0, 2.71828],
        "maxValue": 2.71828,
        "maxValueTokenIndex": 1,
        "minValue": 0.0,
        "binMin": -1,
        "binMax": 2.71828,
        "binContains": -1,
        "qualifyingTokenIndex": 1,
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
    (source,) = lines(folder / "source.jsonl")
    assert source["id"] == "9-topk" and source["setName"] == "topk"
    assert (source["num_prompts"], source["num_tokens_in_prompt"]) == (128, 64)
    assert source["dataset"] == "pydocs" and source["modelId"] == "SmolLM2-135M"
    (sourceset,), (release,) = lines(folder / "sourceset.jsonl"), lines(folder / "release.jsonl")
    assert sourceset["name"] == "topk" and sourceset["releaseName"] == release["name"] == "topk"
    assert release["description"] == "topk: 16 latents at blocks.9.hook_resid_post of SmolLM2-135M"
    assert lines(folder / "model.jsonl")[0]["id"] == "SmolLM2-135M"


def test_files_hold_128_features_each():
    assert [len(batch) for batch in batches([RECORD] * 300)] == [128, 128, 44]


def test_a_deep_decoder_has_no_aligned_coordinates():
    deep = dataclasses.replace(SOURCE, directions_FD=None)
    assert feature_of(RECORD, deep)["neuron_alignment_indices"] == []


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[str, Path, Path]:
    """A topk on the residual stream of a small GPT-2, its store, and the records of its page."""
    folder = tmp_path_factory.mktemp("letters")
    model, docs = letters_model(folder)
    package.harvest(model, docs, folder / "acts", hook="blocks.1", dtype="float32", holdout=0.2)
    path = trained(folder / "acts", folder / "topk", "sae", latents=32, k=4)
    package.inspect(path, folder / "acts", folder / "page", jsonl=True)
    return path, folder / "acts", folder / "page"


def test_feature_files_say_what_the_page_says(run, tmp_path):
    path, acts, page = run
    result = export_dictionary(
        path, tmp_path / "out", format="saedashboard", store=acts, features="all"
    )
    records = lines(page / "features.jsonl")
    batch = json.loads((tmp_path / "out/batch-0.json").read_text())
    assert (batch["model_id"], batch["layer"], batch["sae_set"]) == ("model", 1, "topk")
    assert result.features == len(batch["features"]) == len(records)
    store, W_dec = package.open_store(acts), package.load(path).W_dec.detach()
    for feature, record in zip(batch["features"], records, strict=True):
        assert feature["feature_index"] == record["index"]
        assert feature["frac_nonzero"] == pytest.approx(
            record["active_rows"] / len(store), abs=1e-5
        )
        assert feature["n_prompts_total"] == store.count(examples=True)
        assert sum(feature["freq_hist_data_bar_heights"]) == record["active_rows"]
        assert feature["pos_str"] == [entry["token"] for entry in record["logits"]["top"]]
        direction = W_dec[record["index"]]
        values = feature["neuron_alignment_values"]
        assert values == pytest.approx(sorted(direction.tolist())[:-4:-1], abs=1e-5)
        shares = [abs(value) / float(direction.abs().sum()) for value in values]
        assert feature["neuron_alignment_l1"] == pytest.approx(shares, abs=2e-5)
        for window, example in zip(feature["activations"], record["examples"], strict=True):
            assert window["tokens"] == example["tokens"]
            assert window["values"] == pytest.approx(example["values"], abs=1e-5)
            at = window["qualifying_token_index"]
            assert window["values"][at] == pytest.approx(example["act"], abs=1e-5)
            if example["group"] == "interval":
                assert window["bin_min"] <= example["act"] <= window["bin_max"] + 1e-5


def test_the_command_line_writes_neuronpedia_files_again_only_with_overwrite(run, tmp_path, capsys):
    path, acts, _ = run
    arguments = ("export", path, tmp_path / "out", "--format", "neuronpedia", "--store", acts)
    status, text, error = saekit(capsys, *arguments, "--features", "0-3", "--json")
    assert status == 0 and json.loads(text)["features"] == 4, error
    assert len(lines(tmp_path / "out/model/1-topk/features/batch-0.jsonl.gz")) == 4
    assert saekit(capsys, *arguments)[0] == 3
    status, _, error = saekit(capsys, *arguments, "--features", "2", "--overwrite")
    assert status == 0, error
    assert len(lines(tmp_path / "out/model/1-topk/features/batch-0.jsonl.gz")) == 1


def test_what_has_no_tokens_is_refused(run, tmp_path, digits):
    path, acts, _ = run
    trained(digits, tmp_path / "digits", "sae", latents=32, k=4)
    with pytest.raises(DataError, match="tokens of one hook of a language model"):
        export_dictionary(
            tmp_path / "digits", tmp_path / "out", format="saedashboard", store=digits
        )
    with pytest.raises(UsageError, match="0-255,1024"):
        export_dictionary(
            path, tmp_path / "out", format="saedashboard", store=acts, features="some"
        )
    assert not (tmp_path / "out").exists()


def test_saedashboard_reads_our_batches(run, tmp_path):
    dashboard = pytest.importorskip(
        "sae_dashboard.neuronpedia.neuronpedia_dashboard", reason="it needs SAEDashboard"
    )
    path, acts, _ = run
    export_dictionary(path, tmp_path / "out", format="saedashboard", store=acts)
    batch = json.loads((tmp_path / "out/batch-0.json").read_text())
    again = dashboard.NeuronpediaDashboardBatch(**batch).to_dict()
    assert again == batch
