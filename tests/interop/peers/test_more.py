"""The same files in saev, in sae-lens' loaders of published formats, and in saekit: the same codes
and reconstructions. In the environment of `make interop` only."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_dictionaries import D, F, K, hook_z
from made_more import (
    MEAN_NORMS,
    deepseek_r1,
    goodfire,
    llama_scope,
    llama_scope_r1,
    qwen_scope,
    saev,
)

from saekit.training.checkpoints import load

DTYPES = {torch.float32: 1e-6, torch.float64: 1e-12}
WHY = "only in the environment of `make interop`"
FACTOR = math.sqrt(D) / MEAN_NORMS[0]  # of hyperparams.json
FACTOR_32 = math.sqrt(D) / float(torch.tensor(MEAN_NORMS[0]))  # of a tensor
WIDTHS = {"d_in": D, "d_sae": F}
# name -> (writes it, loader, repository, its folder or file there, changes of the config, factor)
CASES: dict[str, tuple[Callable[[Path], Path], str, str, str, dict[str, Any], float | None]] = {
    "llama_scope": (
        # sae-lens does not look at the norms of the decoder
        lambda path: llama_scope(path, sparsity_include_decoder_norm=False),
        "llama_scope_sae_huggingface_loader",
        "fnlp/Llama3_1-8B-Base-LXR-8x",
        "Llama3_1-8B-Base-L15R-8x",
        {},
        FACTOR,
    ),
    "llama_scope, decoder vectors of norm 1": (
        lambda path: llama_scope(path, unit=True),
        "llama_scope_sae_huggingface_loader",
        "fnlp/Llama3_1-8B-Base-LXR-32x",
        "Llama3_1-8B-Base-L15R-32x",
        {},
        FACTOR,
    ),
    "llama_scope_r1": (
        lambda path: llama_scope_r1(path, unit=True),
        "llama_scope_r1_distill_sae_huggingface_loader",
        "fnlp/Llama-Scope-R1-Distill",
        "400M-Slimpajama-400M-OpenR1-Math-220k/L15R",
        {},
        FACTOR_32,
    ),
    "qwen_scope": (
        qwen_scope,
        "qwen_scope_sae_huggingface_loader",
        f"Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_{K}",
        "layer12.sae.pt",
        WIDTHS,
        None,
    ),
    "goodfire": (
        goodfire,
        "get_goodfire_huggingface_loader",
        "Goodfire/Llama-3.1-8B-Instruct-SAE-l19",
        "Llama-3.1-8B-Instruct-SAE-l19.pth",
        WIDTHS,
        None,
    ),
    "hook_z": (
        hook_z,
        "connor_rob_hook_z_huggingface_loader",
        "ckkissane/attn-saes-gpt2-small-all-layers",
        "gpt2-small_L0_Hcat_z_lr1.20e-03_l11.80e+00_ds24576_v9.pt",
        {"reshape_activations": "none"},  # the rows have all heads side by side already
        None,
    ),
    "deepseek_r1": (
        deepseek_r1,
        "deepseek_r1_sae_huggingface_loader",
        "qresearch/DeepSeek-R1-Distill-Llama-8B-SAE-l19",
        "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt",
        WIDTHS,
        None,
    ),
}


def rows() -> torch.Tensor:
    return torch.randn(300, D, generator=torch.Generator().manual_seed(4)).double()


def same(ours: torch.Tensor, theirs: torch.Tensor, relative: float) -> bool:
    return float((ours - theirs).abs().max() / theirs.abs().max()) <= relative


@pytest.fixture(scope="module")
def computed(tmp_path_factory) -> tuple[dict[str, Path], dict[str, Any]]:
    """(path of each dictionary in a cache of the hub, what sae-lens computes with it)."""
    pytest.importorskip("sae_lens", reason=WHY)
    root = tmp_path_factory.mktemp("loaders")
    paths, jobs = {}, []
    for name, (write, loader, repository, folder, overrides, factor) in CASES.items():
        paths[name] = _cached(root / "cache", repository, folder, write(root / str(len(jobs))))
        job = {"name": name, "loader": loader, "repo": repository, "folder": folder}
        jobs.append(job | {"overrides": overrides, "factor": factor})
    (root / "jobs.json").write_text(json.dumps(jobs))
    torch.save(rows(), root / "rows.pt")
    program = Path(__file__).with_name("saelens_loaders.py")
    arguments = [root / "jobs.json", root / "rows.pt", root / "results.pt"]
    environment = {"HF_HUB_CACHE": str(root / "cache"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, program, *arguments], env=os.environ | environment, check=True)
    return paths, torch.load(root / "results.pt", weights_only=True)


def _cached(cache: Path, repository: str, folder: str, source: Path) -> Path:
    """A dictionary's place in a cache of the hub, as a download leaves it, with what is beside a
    file."""
    commit, where = "0" * 40, cache / f"models--{repository.replace('/', '--')}"
    place = where / "snapshots" / commit / folder
    if source.is_dir():
        shutil.copytree(source, place)
    else:
        shutil.copytree(source.parent, place.parent)
    (where / "refs").mkdir()
    (where / "refs" / "main").write_text(commit)
    return place


@pytest.mark.parametrize("name", CASES)
def test_the_loaders_of_saelens(computed, name):
    paths, theirs = computed
    sae = load(paths[name])
    for dtype, relative in DTYPES.items():
        code, x_hat = theirs[name][str(dtype)]
        with torch.no_grad():
            output = sae.to(dtype)(rows().to(dtype))
        assert 0 < (code != 0).double().mean() < 0.9
        assert same(output.code.to_dense(), code, relative)
        assert same(output.x_hat, x_hat, relative)


def test_saev(tmp_path):
    module = pytest.importorskip("saev.nn", reason=WHY)
    path = saev(tmp_path / "sae")
    ours, theirs = load(path), module.load(str(path / "sae.pt"))
    for dtype, relative in DTYPES.items():
        x = rows().to(dtype)
        with torch.no_grad():
            output, (x_hat, code, _) = ours.to(dtype)(x), theirs.to(dtype)(x)
        assert code.any()
        assert same(output.code.to_dense(), code, relative)
        assert same(output.x_hat, x_hat, relative)
