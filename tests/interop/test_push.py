"""Uploads to a stand-in for the hub, with the real client in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from hub_client import Client
from made_dictionaries import saelens
from stand_in_hub import TOKEN, StandInHub, stand_in_hub

from saekit.interop.opening import open_checkpoint
from saekit.interop.push import model_card
from saekit.training.checkpoints import load

HOOK = "blocks.8.hook_resid_pre"


@pytest.fixture(scope="module")
def hub() -> Iterator[StandInHub]:
    with stand_in_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory) -> Iterator[Client]:
    client = Client(hub.url, tmp_path_factory.mktemp("huggingface"))
    yield client
    client.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return saelens(tmp_path_factory.mktemp("sae") / "sae", "topk")


def push(client: Client, folder: Path, repo: str, options: str = "", token: str = TOKEN):
    """What `push` returns, its questions and its errors, as one JSON object."""
    code = f"""
import dataclasses, json
from saekit.errors import SaekitError
from saekit.interop.push import push
asked = []
def yes(question):
    asked.append(question)
    return True
def no(question):
    asked.append(question)
    return False
try:
    options = dict(confirm=yes) | dict({options})
    result = dataclasses.asdict(push({str(folder)!r}, {repo!r}, **options))
except SaekitError as error:
    result = dict(error=error.message, hint=error.hint, status=error.exit_status)
print(json.dumps(result | dict(asked=asked)))
"""
    said = client.python(code, **({"HF_TOKEN": token} if token else {}))
    assert TOKEN not in said.out and TOKEN not in said.err
    return json.loads(said.out)


def test_a_new_repo_is_private_and_gets_every_file_in_one_commit(hub, client, folder, tmp_path):
    result = push(client, folder, "me/new", f"card='# a card', path={HOOK!r}")
    repo = hub.repos["me/new"]
    assert repo.private and result["private"] and result["commit"] == repo.commit
    assert result["url"] == f"{hub.url}/me/new"
    files = {f"{HOOK}/{file.name}": file.read_bytes() for file in folder.iterdir()}
    assert repo.files == files | {"README.md": b"# a card"}
    assert result["files"] == sorted(repo.files)
    size = sum(map(len, repo.files.values()))
    assert result["asked"] == [
        f"upload 3 files, {size:,} bytes, to a new private repo {hub.url}/me/new?"
    ]
    # what was sent opens again, with the same numbers
    fetched = client.saekit("import", f"hf:me/new/{HOOK}", tmp_path / "out", HF_TOKEN=TOKEN)
    assert fetched.status == 0, fetched.err
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load(tmp_path / "out")(x).x_hat, load(folder)(x).x_hat)


def test_public_must_be_asked_for(hub, client, folder):
    result = push(client, folder, "me/public", "public=True")
    assert not hub.repos["me/public"].private and not result["private"]
    assert "to a new PUBLIC repo" in result["asked"][0]
    # an existing one, which anyone sees
    before = hub.repos["me/public"].commit
    refused = push(client, folder, "me/public", "card='changed'")
    assert refused["error"] == "me/public exists and is public" and refused["asked"] == []
    assert refused["hint"] == "public=True, or another repo" and refused["status"] == 2
    assert hub.repos["me/public"].commit == before
    assert (
        "to the PUBLIC repo"
        in push(client, folder, "me/public", "public=True, card='x'")["asked"][0]
    )
    assert hub.repos["me/public"].files["README.md"] == b"x"


def test_a_private_repo_stays_private(hub, client, folder):
    hub.add("me/mine", private=True)
    result = push(client, folder, "me/mine", "public=True")
    assert result["private"] and hub.repos["me/mine"].private
    assert "to the private repo" in result["asked"][0]


def test_nothing_is_sent_without_a_yes(hub, client, folder):
    refused = push(client, folder, "me/asked", "confirm=no")
    assert refused["status"] == 2 and "it was not confirmed" in refused["error"]
    assert refused["hint"] == "yes=True" and "me/asked" not in hub.repos


@pytest.mark.parametrize("token", ["", "hf_wrongToken"])
def test_without_a_token_that_the_hub_accepts_nothing_is_sent(hub, client, folder, token):
    refused = push(client, folder, "me/none", token=token)
    assert refused["status"] == 4 and "HF_TOKEN" in refused["hint"] and not refused["asked"]
    assert "hf_wrongToken" not in json.dumps(refused) and "me/none" not in hub.repos


def test_what_is_not_a_repo_or_has_no_files_is_refused(client, folder, tmp_path):
    for repo in ("me", "me/a/b", "me/--x"):
        assert push(client, folder, repo)["error"] == f'push="{repo}" is not a repo name'
    assert "no files" in push(client, tmp_path, "me/empty")["error"]


def test_the_card_says_what_it_is_how_it_was_measured_and_how_to_load_it(folder):
    described = open_checkpoint(folder).config
    metrics = {"fvu": 0.12345, "l0": 5.0, "knn": None, "parts": {"a": {"fvu": 1.0}}}
    card = model_card("me/saes", described, format="saelens", path=HOOK, metrics=metrics)
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == "gpt2"
    assert yaml.safe_load(front)["library_name"] == "saekit"
    for line in (
        f"| hook | {HOOK} |",
        "| latents | 48 |",
        "| fvu | 0.1235 |",
        f'sae = saekit.load("hf:me/saes/{HOOK}")',
        f'sae = SAE.from_pretrained("me/saes", "{HOOK}")',
    ):
        assert line in text, card
    assert "knn" not in text and "parts" not in text
    plain = model_card("me/saes", described, format="sparsify")
    assert "sae_lens" not in plain and "Evaluation" not in plain
    assert 'saekit.load("hf:me/saes")' in plain
