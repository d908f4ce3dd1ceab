"""A checkpoint folder: config.json, model.safetensors, metrics.jsonl, train_state/. Files only; what the tensors mean is the
model's business. No pickle: `.pt` and `.bin` files are refused by name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from saekit.errors import DataError, MissingError
from saekit.store.files import read_json, write_json, write_tensors
from saekit.store.folder_kinds import RUN
from saekit.store.lock import holder
from saekit.store.swap import settle

SCHEMA = 1
CONFIG, MODEL, METRICS = "config.json", "model.safetensors", "metrics.jsonl"
STATE = Path("train_state") / "state.safetensors"
PICKLES = {".pt", ".pth", ".bin", ".pkl", ".ckpt"}


@dataclass
class Checkpoint:
    """config.json as a dict (keys: docs/formats.md) and the tensors of model.safetensors, which act on raw activations."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def write_checkpoint(path: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    write_tensors(path / MODEL, {name: tensor.contiguous() for name, tensor in tensors.items()})
    write_json(path / CONFIG, {"schema_version": SCHEMA, **config})


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Raises MissingError when nothing is there, DataError when it is no finished checkpoint."""
    path = Path(path)
    if path.suffix in PICKLES:
        raise DataError(f"{path} is a pickle, which can run code when it is opened; saekit does not read pickles")
    settle(path, RUN)
    if not path.exists():
        raise MissingError(f"there is no checkpoint at {path}", "give the folder that `saekit train` wrote")
    if not (path / CONFIG).exists() and (path / RUN.marker).exists():
        if (writer := holder(path)) is not None:
            raise DataError(f"{path} is being written by {writer}", "wait until it ends")
        raise DataError(f"{path} holds a training run that did not finish", "saekit train ... --resume")
    config = read_json(path / CONFIG, "a checkpoint")
    if config.get("schema_version", 0) > SCHEMA:
        raise DataError(f"{path} was written by a later saekit (schema {config['schema_version']}, this one reads {SCHEMA})")
    if not (path / MODEL).exists():
        raise DataError(f"{path} has no {MODEL}", "saekit train ... --overwrite")
    try:
        return Checkpoint(path, config, load_file(path / MODEL))
    except SafetensorError as error:
        raise DataError(f"{path / MODEL} is damaged: {error}") from None


def write_train_state(path: Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """All that a resume needs, in one file, so that it is replaced as a whole."""
    (path / STATE).parent.mkdir(exist_ok=True)
    write_tensors(path / STATE, {n: t.contiguous() for n, t in tensors.items()}, {"state": json.dumps(state)})


def read_train_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """(tensors, state), or None when training was killed before the first state was written."""
    if not (path / STATE).exists():
        return None
    try:
        with safe_open(path / STATE, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["state"])
    except SafetensorError as error:
        raise DataError(f"{path / STATE} is damaged: {error}", "--overwrite to train anew") from None
