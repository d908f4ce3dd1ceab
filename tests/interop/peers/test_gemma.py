"""Gemma Scope and the transcoder sets in sae-lens and circuit-tracer, and in saekit: the same codes
and reconstructions.

sae-lens reads repositories of the hub: here those of a cache in a temporary folder, offline, and
the headers of safetensors files from a server on the loopback address.
"""

from __future__ import annotations

import re
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from made_circuit_tracer import clt, transcoder, wandb
from made_dictionaries import D, F
from made_gemma import LATENTS, LAYERS, WIDTH, embedding, of_layers, scope_1, scope_2

from saekit.training.checkpoints import load

DTYPES = {torch.float32: 1e-6, torch.float64: 1e-12}
WHY = "only in the environment of `make interop`"


def rows(width: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(300, width, generator=torch.Generator().manual_seed(4)).to(dtype)


def compare(path: Path, outputs: Callable[[torch.dtype], tuple[torch.Tensor, ...]]) -> None:
    """`outputs(dtype)`: the rows, and what the other program makes of them: code and x_hat."""
    for dtype, relative in DTYPES.items():
        with torch.no_grad():
            x, code, x_hat = outputs(dtype)
            output = load(path).to(dtype)(x)
        assert code.any()
        for mine, other in ((output.code.to_dense(), code), (output.x_hat, x_hat)):
            assert float((mine - other).abs().max() / other.abs().max()) <= relative


# -- sae-lens


@pytest.fixture
def cached(tmp_path, monkeypatch) -> Iterator[Callable[[str, Path], None]]:
    """cached(REPOSITORY, FOLDER): the hub's cache has this folder as the repository."""
    hub = pytest.importorskip("huggingface_hub.constants")
    cache = tmp_path / "cache"
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)

    def snapshot(repository: str) -> Path:
        return cache / f"models--{repository.replace('/', '--')}" / "snapshots" / ("0" * 40)

    def add(repository: str, folder: Path) -> None:
        shutil.copytree(folder, snapshot(repository))
        refs = snapshot(repository).parents[1] / "refs"
        refs.mkdir()
        (refs / "main").write_text("0" * 40)

    class Ranges(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            owner, name, _, _, *rest = self.path.lstrip("/").split("/")
            content = snapshot(f"{owner}/{name}").joinpath(*rest).read_bytes()
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
            assert match
            part = content[int(match[1]) : int(match[2]) + 1]
            self.send_response(206)
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Ranges)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    template = (
        f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setattr(hub, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield add
    server.shutdown()
    server.server_close()


def saelens(
    repository: str, folder: str, loader: str, **settings: Any
) -> Callable[[torch.dtype], tuple[torch.Tensor, ...]]:
    """`settings` replace those that sae-lens takes from the repository's name."""
    package = pytest.importorskip("sae_lens", reason=WHY)
    loaders = pytest.importorskip("sae_lens.loading.pretrained_sae_loaders", reason=WHY)

    def converter(cfg_overrides: dict[str, Any], **arguments: Any) -> Any:
        return getattr(loaders, loader)(cfg_overrides=cfg_overrides | settings, **arguments)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that it registers
        sae = package.SAE.from_pretrained(repository, folder, converter=converter)

    def outputs(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        sae.to(dtype).dtype = dtype  # it casts the input to the dtype of its config
        x = rows(sae.cfg.d_in, dtype)
        return x, sae.encode(x).to_dense(), sae(x)

    return outputs


OF_FIXTURE = {"d_in": D, "d_sae": F}


@pytest.mark.parametrize(
    ("site", "loader"),
    [
        ("res", "gemma_2_sae_huggingface_loader"),
        ("transcoders", "gemma_2_transcoder_huggingface_loader"),
    ],
)
def test_gemma_scope_1(tmp_path, cached, site, loader):
    repository = f"gemma-scope-2b-pt-{site}"
    path = scope_1(tmp_path, repository)
    cached(f"google/{repository}", tmp_path / repository)
    folder = str(path.relative_to(tmp_path / repository))
    settings = OF_FIXTURE | ({"d_out": D} if site == "transcoders" else {})
    compare(path, saelens(f"google/{repository}", folder, loader, **settings))


def test_an_embedding_dictionary_of_gemma_scope_1(tmp_path, cached):
    """sae-lens scales W_dec and not b_dec, for which x_hat is corrected here."""
    path, repository = embedding(tmp_path), "gemma-scope-2b-pt-res"
    cached(f"google/{repository}", tmp_path / repository)
    folder = str(path.relative_to(tmp_path / repository))
    loader = "gemma_2_sae_huggingface_loader"
    theirs = saelens(f"google/{repository}", folder, loader, **OF_FIXTURE)

    def outputs(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        x, code, x_hat = theirs(dtype)
        return x, code, x_hat + (D**0.5 - 1) * load(path).b_dec.to(dtype)

    compare(path, outputs)


@pytest.mark.parametrize(
    ("site", "affine"),
    [
        ("resid_post", False),
        ("attn_out", False),
        ("mlp_out", False),
        ("transcoder_all", False),
        ("transcoder_all", True),
    ],
)
def test_gemma_scope_2(tmp_path, cached, site, affine):
    repository = "gemma-scope-2-1b-pt"
    path = scope_2(tmp_path, site, affine)
    cached(f"google/{repository}", tmp_path / repository)
    folder = str(path.relative_to(tmp_path / repository))
    compare(path, saelens(f"google/{repository}", folder, "gemma_3_sae_huggingface_loader"))


def test_a_transcoder_set_of_mwhanna(tmp_path, cached):
    path = transcoder(tmp_path / "set")
    wandb(path.parent)
    cached("mwhanna/qwen3-0.6b-transcoders-lowl0", path.parent)
    loader = "mwhanna_transcoder_huggingface_loader"
    compare(path, saelens("mwhanna/qwen3-0.6b-transcoders-lowl0", path.name, loader))


def test_a_layer_of_a_clt_of_mntss(tmp_path, cached):
    """sae-lens adds up, in float32, what the layer writes to all its targets."""
    path = clt(tmp_path / "clt")
    cached("mntss/clt-gemma-2-2b-2.5M", path)
    loader = "mntss_clt_layer_huggingface_loader"
    theirs = saelens("mntss/clt-gemma-2-2b-2.5M", "1", loader)
    for dtype, relative in DTYPES.items():
        with torch.no_grad():
            x, code, summed = theirs(dtype)
        output = load(path / "W_enc_1.safetensors").to(dtype)(x)
        ours = output.x_hat.view(-1, LAYERS - 1, WIDTH).sum(1)
        assert float((output.code - code).abs().max() / code.abs().max()) <= relative
        assert float((ours - summed).abs().max() / summed.abs().max()) <= 1e-6


# -- circuit-tracer


def single_layer(path: Path, loader: str, **options: Any) -> Callable[..., Any]:
    module = pytest.importorskip("circuit_tracer.transcoder.single_layer_transcoder", reason=WHY)

    def outputs(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        theirs = getattr(module, loader)(
            str(path), 3, device=torch.device("cpu"), dtype=dtype, **options
        )
        x = rows(D, dtype)
        return x, theirs.encode(x), theirs(x)

    return outputs


WHOLE = {"lazy_encoder": False, "lazy_decoder": False}


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("jumps", [False, True])
def test_circuit_tracer_set(tmp_path, jumps, skips):
    path = transcoder(tmp_path / "set", jumps=jumps, skips=skips)
    compare(path, single_layer(path, "load_relu_transcoder", **WHOLE))


def test_circuit_tracer_gemma_scope_1(tmp_path):
    path = scope_1(tmp_path, "gemma-scope-2b-pt-transcoders") / "params.npz"
    compare(path, single_layer(path, "load_gemma_scope_transcoder"))


@pytest.mark.parametrize("affine", [False, True])
def test_circuit_tracer_gemma_scope_2(tmp_path, affine):
    path = scope_2(tmp_path, "transcoder_all", affine) / "params.safetensors"
    compare(path, single_layer(path, "load_gemma_scope_2_transcoder", **WHOLE))


def cross_layer(load_clt: Callable[[torch.dtype], Any]) -> Callable[..., Any]:
    def outputs(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        theirs, x = load_clt(dtype), rows(LAYERS * WIDTH, dtype)
        x_LBD = x.view(-1, LAYERS, WIDTH).transpose(0, 1)
        z_LBF = theirs.encode(x_LBD)
        # not its forward, which does not give the skip its input
        x_hat_LBD = theirs.decode(z_LBF, x_LBD)
        return x, z_LBF.transpose(0, 1).flatten(1), x_hat_LBD.transpose(0, 1).flatten(1)

    return outputs


@pytest.mark.parametrize("jumps", [False, True])
def test_circuit_tracer_clt(tmp_path, jumps):
    module = pytest.importorskip("circuit_tracer.transcoder.cross_layer_transcoder", reason=WHY)
    path = clt(tmp_path / "clt", jumps)
    options = {"lazy_decoder": False, "device": torch.device("cpu")}
    compare(path, cross_layer(lambda dtype: module.load_clt(str(path), dtype=dtype, **options)))
    assert load(path).latents == LAYERS * LATENTS


@pytest.mark.parametrize("affine", [False, True])
def test_circuit_tracer_gemma_scope_2_clt(tmp_path, affine):
    module = pytest.importorskip("circuit_tracer.transcoder.cross_layer_transcoder", reason=WHY)
    path = of_layers(tmp_path, affine=affine)
    # it reads as many layers as the last number says, and so leaves out the last one
    files = {layer: path / f"params_layer_{layer}.safetensors" for layer in range(LAYERS)}
    files[LAYERS] = files[LAYERS - 1]

    def load_clt(dtype: torch.dtype) -> Any:
        model = module.load_gemma_scope_2_clt(files, dtype=dtype, device=torch.device("cpu"))
        return model.to(dtype)

    compare(path, cross_layer(load_clt))
