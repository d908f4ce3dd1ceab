"""Names on the hub, against a stand-in for its HTTP interface, with the real client.

The client runs in processes of its own, which take seconds to start: one with the network and one
in offline mode serve all tests of this file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_client import Client
from made_dictionaries import gemma_scope, saelens, sparsify
from made_formats import WRITERS
from stand_in_hub import TOKEN, StandInHub, stand_in_hub

from saekit.errors import DataError, UsageError
from saekit.evaluation.table import evaluate
from saekit.interop.dictionary import Published
from saekit.interop.hub import HubName, files_of, parsed
from saekit.interop.opening import FORMATS, open_published
from saekit.store.checkpoint import read_checkpoint
from saekit.training.checkpoints import load

FILES = {name: format.files for name, format in FORMATS.items()}
SAE = "me/saes", "layer_3/sae"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("huggingface")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return saelens(tmp_path_factory.mktemp("saes") / "sae", "jumprelu")


@pytest.fixture(scope="module")
def hub(source) -> Iterator[StandInHub]:
    with stand_in_hub() as hub:
        repo = hub.add(SAE[0], source, SAE[1])
        repo.files |= {"README.md": b"# SAEs", "layer_3/sae/sparsity.safetensors": b"statistics"}
        yield hub


@pytest.fixture(scope="module")
def online(hub, home) -> Iterator[Client]:
    client = Client(hub.url, home)
    yield client
    client.close()


@pytest.fixture(scope="module")
def offline(hub, home) -> Iterator[Client]:
    client = Client(hub.url, home, HF_HUB_OFFLINE="1")
    yield client
    client.close()


def blobs(home: Path, repo: str) -> list[Path]:
    """What the cache holds of a repo."""
    return sorted((home / "hub" / f"models--{repo.replace('/', '--')}" / "blobs").glob("*"))


# names


def test_a_name_has_a_repo_and_may_have_a_revision_and_a_path():
    assert parsed("hf:a/b") == HubName("a/b", None, "")
    assert parsed("hf:a/b@v1/c/d.pt") == HubName("a/b", "v1", "c/d.pt")
    assert parsed("hf:a/b@refs/pr/3/c") == HubName("a/b", "refs/pr/3", "c")
    assert parsed("hf:a/b@my%2Fbranch/c/") == HubName("a/b", "my/branch", "c")
    assert str(parsed("hf:a/b@v1/c")) == "hf:a/b@v1/c"
    for name in ("hf:a", "hf:/b/c", "hf:a/b/../c", "hf:a/b/c//d", "hf:"):
        with pytest.raises(UsageError, match="not a name on the hub"):
            parsed(name)


# files


@pytest.mark.parametrize("format", WRITERS)
def test_the_declared_files_are_all_that_a_format_reads_and_no_others_are_fetched(tmp_path, format):
    for number, write in enumerate(WRITERS[format]):
        root, copy = tmp_path / "all" / str(number), tmp_path / "fetched" / str(number)
        path = write(root / "sae")
        folder = path if path.is_dir() else path.parent
        for decoy in ("README.md", "optimizer.bin", "other/model.safetensors"):
            (folder / decoy).parent.mkdir(exist_ok=True)
            (folder / decoy).write_bytes(b"not of the dictionary")
        # what the hub would send
        names = [f.relative_to(root).as_posix() for f in root.rglob("*") if f.is_file()]
        chosen = files_of(path.relative_to(root).as_posix(), names, FILES)
        if (path / "sae_weights.dcp").is_dir():  # refused: an index is a pickle
            assert not chosen
            continue
        assert chosen and not any(
            "README" in f or "optimizer" in f or "/other/" in f for f in chosen
        )
        for file in chosen:
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / file, copy / file)
        whole, fetched = _opened(root, path), _opened(copy, copy / path.relative_to(root))
        if isinstance(whole, str) or isinstance(fetched, str):  # refused for the same reason
            assert fetched == whole
            continue
        assert fetched.config == whole.config and fetched.origin == whole.origin
        for name, tensor in whole.tensors.items():
            assert torch.equal(fetched.tensors[name], tensor)


def _opened(root: Path, path: Path) -> Published | str:
    try:
        return open_published(path)
    except DataError as error:
        return str(error).replace(str(root), "")


def test_a_layer_of_a_set_goes_without_the_other_layers():
    files = ["config.yaml", *(f"layer_{n}.safetensors" for n in range(3))]
    assert files_of("layer_1.safetensors", files, FILES) == ["config.yaml", "layer_1.safetensors"]
    clt = ["config.yaml", *(f"W_{k}_{n}.safetensors" for k in ("enc", "dec") for n in range(12))]
    chosen = ["W_dec_1.safetensors", "config.yaml", "W_enc_1.safetensors"]
    assert files_of("W_enc_1.safetensors", clt, FILES) == chosen
    assert sorted(files_of("", clt, FILES)) == sorted(clt)


def test_a_folder_of_folders_is_not_a_dictionary():
    files = ["layer_1/ae.pt", "layer_1/config.json", "config.json"]
    assert files_of("", files, FILES) == [] and files_of("layer_2", files, FILES) == []
    assert files_of("layer_1", files, FILES) == ["layer_1/config.json", "layer_1/ae.pt"]


# found


def test_a_dictionary_is_fetched_alone_once_and_imported_with_its_place(
    hub, online, source, tmp_path
):
    name = f"hf:{SAE[0]}/{SAE[1]}"
    status, out, _ = online.saekit("import", name, tmp_path / "out")
    assert status == 0 and "jumprelu 16 -> 48" in out
    assert hub.fetched(SAE[0]) == [f"{SAE[1]}/cfg.json", f"{SAE[1]}/sae_weights.safetensors"]
    for tensor_name, tensor in load(source).state_dict().items():
        assert torch.equal(load(tmp_path / "out").state_dict()[tensor_name], tensor)
    published = read_checkpoint(tmp_path / "out").config["published"]
    assert published["source"] == name and published["repo"] == SAE[0]
    assert published["commit"] == hub.repos[SAE[0]].commit
    assert published["base_model"] == "gpt2" and published["revision"] is None
    # a second time
    before = len(hub.fetched(SAE[0]))
    assert online.saekit("import", name, tmp_path / "again").status == 0
    assert len(hub.fetched(SAE[0])) == before


def test_the_library_prints_nothing_and_reports_to_a_callback(hub, online, source):
    hub.add("me/quiet", source)
    code = "import saekit; print(type(saekit.load('hf:me/quiet')).__name__)"
    assert online.python(code) == (0, "JumpReLU\n", "")
    hub.add("me/reports", source)
    code = """
import saekit
from saekit.interop.hub import reporting
with reporting(lambda p: print(p.phase, p.done, p.total, p.unit)):
    saekit.load("hf:me/reports")
"""
    size = (source / "sae_weights.safetensors").stat().st_size
    lines = online.python(code).out.splitlines()
    assert lines[-1] == f"sae_weights.safetensors {size} {size} bytes"


def test_a_revision_is_a_branch_or_a_commit(hub, online, source, tmp_path):
    repo = hub.add("me/branches", source)
    commit, repo.branch = repo.commit, "v2"
    for number, revision in enumerate(("v2", commit)):
        out = tmp_path / str(number)
        assert online.saekit("import", f"hf:me/branches@{revision}", out).status == 0
        assert read_checkpoint(out).config["published"]["commit"] == commit
    status, _, err = online.saekit("import", "hf:me/branches@v3", tmp_path / "out")
    assert status == 4 and "me/branches has no revision v3" in err and "it has: v2" in err


def test_what_stands_above_the_folder_is_fetched_too(hub, online, tmp_path):
    sparsify(tmp_path / "run" / "layers.3")
    repo = hub.add("me/sparsify", tmp_path / "run" / "layers.3", "run/layers.3")
    repo.files["run/config.json"] = json.dumps({"model": "EleutherAI/pythia-70m"}).encode()
    repo.files["run/layers.4/sae.safetensors"] = b"of another layer"
    assert online.saekit("import", "hf:me/sparsify/run/layers.3", tmp_path / "out").status == 0
    assert read_checkpoint(tmp_path / "out").config["spec"]["model"] == "EleutherAI/pythia-70m"
    assert len(hub.fetched("me/sparsify")) == 3


def test_folders_that_tell_the_layer_survive_the_links_of_the_cache(hub, online, tmp_path):
    path = "layer_12/width_16k/average_l0_82"
    hub.add("google/gemma-scope-2b-pt-res", gemma_scope(tmp_path / "npz"), path)
    for number, end in enumerate(("", "/params.npz")):
        name = f"hf:google/gemma-scope-2b-pt-res/{path}{end}"
        assert online.saekit("import", name, tmp_path / str(number)).status == 0
        published = read_checkpoint(tmp_path / str(number)).config["published"]
        assert published["hook"] == "blocks.12.hook_resid_post" and published["layer"] == 12


# the verbs


def test_every_verb_takes_a_name_and_writes_nothing_beside_the_files(
    hub, online, home, digits, tmp_path
):
    source = saelens(tmp_path / "sae", "jumprelu", width=64, metadata={})  # of any model
    hub.add("me/digits", source, "layer_3/sae")
    name = "hf:me/digits/layer_3/sae"
    assert online.saekit("import", name, tmp_path / "out").status == 0
    before = sorted(home.rglob("*"))
    # the numbers of the local folder
    result = online.saekit("evaluate", name, tmp_path / "out", "--store", digits, "--json")
    first, second = json.loads(result.out)
    assert first["checkpoint"] == name
    assert first["metrics"] == second["metrics"] == evaluate([source], digits)[0].metrics
    # tables and pages call it by its whole name
    assert name in online.saekit("compare", name, "--store", digits).out
    rows = online.saekit("features", name, "--store", digits, "--index", 3, "--json")
    assert json.loads(rows.out)[0]["index"] == 3, rows.err
    page = online.saekit(
        "inspect", name, "--store", digits, "--out", tmp_path / "page", "--features", "0-2"
    )
    assert page.status == 0, page.err
    written = [f.read_bytes() for f in (tmp_path / "page").rglob("*.*") if f.name != "config.toml"]
    assert any(name.encode() in data for data in written)
    assert sorted(home.rglob("*")) == before
    # no held-out documents are known
    fetched = len(hub.log)
    status, _, err = online.saekit("finetune", name, tmp_path / "tuned")
    assert status == 2 and "is a published dictionary" in err and len(hub.log) == fetched


# refused


def test_a_repo_or_path_that_is_not_there_is_named_with_near_names(hub, online, offline, tmp_path):
    out = tmp_path / "out"
    status, _, err = online.saekit("import", "hf:me/none/x", out, HF_TOKEN=TOKEN)
    assert status == 4 and f"there is no me/none on {hub.url}" in err
    status, _, err = online.saekit("import", f"hf:{SAE[0]}/layer_3/saee", out)
    assert status == 4 and "there is no layer_3/saee in me/saes" in err
    assert "near names: layer_3/sae\n" in err
    status, _, err = online.saekit("import", f"hf:{SAE[0]}/layer_3", out)
    assert status == 4 and "layer_3 of me/saes holds no dictionary" in err and "layer_3/sae" in err
    for client in (online, offline):
        assert client.saekit("import", "hf:me/..", out).status == 2
    hub.add("me/hostile").files |= {
        "../config.json": b"{}",
        "sae.safetensors": b"not tensors",
        "cfg.json": b"{}",
    }
    assert online.saekit("import", "hf:me/hostile", out).status == 3, "not what its name says"
    assert hub.fetched("me/hostile") == ["cfg.json", "sae.safetensors"]
    assert not out.exists()


def test_a_private_repo_needs_the_token_which_is_never_shown(hub, online, source, home, tmp_path):
    hub.add("me/private", source, private=True)
    status, _, err = online.saekit("import", "hf:me/private", tmp_path / "out")
    assert status == 4 and "is private or does not exist: the hub answers 401 (no token" in err
    assert "hf auth login" in err and "HF_TOKEN" in err
    wrong = online.saekit("import", "hf:me/private", tmp_path / "out", HF_TOKEN="hf_wrongToken")
    assert wrong.status == 4 and "(a token is set)" in wrong.err
    right = online.saekit("import", "hf:me/private", tmp_path / "out", HF_TOKEN=TOKEN)
    assert right.status == 0
    assert not any(
        token in text for token in (TOKEN, "hf_wrongToken") for text in (*wrong[1:], *right[1:])
    )
    for folder in (tmp_path, home):
        for file in folder.rglob("*"):
            assert not file.is_file() or TOKEN.encode() not in file.read_bytes(), file


def test_a_password_in_the_address_is_never_shown(hub, online, source, tmp_path):
    hub.add("me/private", source, private=True)
    address = hub.url.replace("//", "//me:hunter2@")
    for name in ("hf:me/none/x", "hf:me/private"):
        status, *texts = online.saekit("import", name, tmp_path / "out", HF_ENDPOINT=address)
        assert status == 4 and not any("hunter2" in text for text in texts), texts


@pytest.mark.parametrize("token", [None, TOKEN])
def test_a_gated_repo_sends_to_its_terms(hub, online, source, tmp_path, token):
    hub.add("me/gated", source, gated=True)
    variables = {"HF_TOKEN": token} if token else {}
    status, _, err = online.saekit("import", "hf:me/gated", tmp_path / "out", **variables)
    assert status == 4 and f"me/gated is gated ({403 if token else 401})" in err
    assert f"accept the terms at {hub.url}/me/gated" in err


def test_a_download_that_is_cut_off_is_refused_and_not_kept(hub, online, source, home, tmp_path):
    repo = hub.add("me/cut", source)
    repo.cut.add("sae_weights.safetensors")
    status, _, err = online.saekit("import", "hf:me/cut", tmp_path / "out")
    assert status == 4 and "sae_weights.safetensors of me/cut was cut off" in err
    assert len(blobs(home, "me/cut")) == 1, "cfg.json"
    repo.cut.clear()
    assert online.saekit("import", "hf:me/cut", tmp_path / "out").status == 0
    weights = (source / "sae_weights.safetensors").read_bytes()
    assert weights in [file.read_bytes() for file in blobs(home, "me/cut")]


# without the hub


def test_offline_mode_opens_what_is_cached_and_asks_nothing(hub, online, offline, source, tmp_path):
    hub.add("me/cached", source)
    assert online.saekit("import", "hf:me/cached", tmp_path / "online").status == 0
    asked = len(hub.log)
    assert offline.saekit("import", "hf:me/cached", tmp_path / "out").status == 0
    hub.add("me/absent", source)
    status, _, err = offline.saekit("import", "hf:me/absent", tmp_path / "absent")
    assert status == 4 and "hf:me/absent is not in the cache" in err and "HF_HUB_OFFLINE" in err
    # of another dictionary of a repo that is cached
    status, _, err = offline.saekit("import", f"hf:{SAE[0]}/layer_4/sae", tmp_path / "absent")
    assert status == 4 and "layer_4/sae is not in the cache" in err
    assert len(hub.log) == asked


def test_a_hub_that_does_not_answer_leaves_the_cached_copy_and_says_so(
    hub, online, source, tmp_path
):
    hub.add("me/kept", source)
    assert online.saekit("import", "hf:me/kept", tmp_path / "before").status == 0
    hub.down = True
    try:
        kept = online.saekit("import", "hf:me/kept", tmp_path / "out")
        lost = online.saekit("import", "hf:me/lost", tmp_path / "lost")
    finally:
        hub.down = False
    assert kept.status == 0 and "does not answer: the cached copy of hf:me/kept is used" in kept.err
    assert lost.status == 4 and f"not in the cache, and {hub.url} does not answer" in lost.err
