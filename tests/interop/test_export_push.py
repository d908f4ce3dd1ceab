"""saekit export --push against the stand-in of the hub, through the real client."""

from __future__ import annotations

import json

import pytest
from hub_client import Client
from made_exports import MODEL, checkpoint
from made_stores import write_store
from stand_in_hub import TOKEN, StandInHub, stand_in_hub

from saekit import evaluate


@pytest.fixture(scope="module")
def hub():
    with stand_in_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def client(hub: StandInHub, tmp_path_factory):
    client = Client(hub.url, tmp_path_factory.mktemp("home"), HF_TOKEN=TOKEN)
    yield client
    client.close()


def test_an_export_goes_up_private_with_a_card_and_opens_from_there(hub, client, tmp_path):
    source, acts = (
        checkpoint(tmp_path / "run", "topk"),
        write_store(tmp_path / "acts", model=MODEL, revision="main", hook="model.layers.3"),
    )
    done = client.saekit(
        *("export", source, tmp_path / "out", "--format", "saelens"),
        *("--push", "owner/topk", "--yes", "--store", acts, "--json"),
    )
    assert done.status == 0, done.err
    pushed = json.loads(done.out)["pushed"]
    assert pushed["repo"] == "owner/topk" and pushed["private"] is True
    repo = hub.repos["owner/topk"]
    assert repo.private and repo.files.keys() == {
        "README.md", "cfg.json", "export.json", "sae_weights.safetensors",
    }  # fmt: skip
    card = repo.files["README.md"].decode()
    (figures,) = evaluate(source, acts)
    assert f"| l0 | {figures.metrics['l0']:.1f}" in card and 'load("hf:owner/topk")' in card
    again = client.saekit("import", "hf:owner/topk", tmp_path / "again")
    assert again.status == 0, again.err
    model = (tmp_path / "again/model.safetensors").read_bytes()
    assert model == (source / "model.safetensors").read_bytes()
    assert TOKEN not in done.out + done.err + card


def test_an_upload_needs_no_folder(hub, client, tmp_path):
    source = checkpoint(tmp_path / "run", "topk")
    done = client.saekit("export", source, "--push", "owner/direct", "--yes", "--json")
    assert done.status == 0, done.err
    assert json.loads(done.out)["path"] is None
    assert {"cfg.json", "README.md"} <= hub.repos["owner/direct"].files.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_nothing_is_sent_without_a_yes(hub, client, tmp_path):
    source = checkpoint(tmp_path / "run", "topk")
    arguments = ("export", source, tmp_path / "out", "--format", "saelens", "--push", "owner/no")
    done = client.saekit(*arguments)
    assert done.status == 2 and "--yes" in done.err and "owner/no" not in hub.repos
    assert (tmp_path / "out/cfg.json").exists(), "the folder is written all the same"


def test_flags_of_the_upload_need_it(client, tmp_path):
    source = checkpoint(tmp_path / "run", "topk")
    done = client.saekit("export", source, tmp_path / "out", "--format", "saelens", "--public")
    assert done.status == 2 and "--public applies to --push" in done.err
    done = client.saekit("export", "--push", "owner/x")
    assert done.status == 2 and "export takes CKPT" in done.err
    done = client.saekit(
        "export", source, tmp_path / "out", "--format", "neuronpedia", "--push", "owner/x"
    )
    assert done.status == 2 and "uploads weights" in done.err
    acts = write_store(tmp_path / "acts")  # of another model
    done = client.saekit(
        *("export", source, tmp_path / "out", "--format", "saelens"),
        *("--push", "owner/x", "--store", acts, "--yes"),
    )
    assert done.status == 3 and "--any-store" in done.err
    assert not (tmp_path / "out").exists()
