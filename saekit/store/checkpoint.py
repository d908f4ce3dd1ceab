"""A checkpoint folder: config.json, model.safetensors, metrics.jsonl, train_state/. Only files are
handled here; the models know what the tensors mean. No pickle: `.pt` and `.bin` files are refused
by name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from saekit.display import brief
from saekit.errors import DataError, MissingError, opt
from saekit.store.files import check_schema, need_regular, read_json, write_json, write_tensors
from saekit.store.folder_kinds import RUN
from saekit.store.lock import holder
from saekit.store.oserrors import reading
from saekit.store.swap import settle
from saekit.typed import MisfitError, as_type
from saekit.types import ActivationSpec

SCHEMA = 2
# Schema 1 -> 2: what these names of a sparsity mean today.
RENAMED = {"kl": "kl-sigmoid", "kl-means": "kl"}
CONFIG, MODEL, METRICS = "config.json", "model.safetensors", "metrics.jsonl"
STATE = Path("train_state") / "state.safetensors"
PICKLES = {".pt", ".pth", ".bin", ".pkl", ".ckpt"}


@dataclass
class Checkpoint:
    """config.json as a dict (keys: docs/formats.md) and the tensors of model.safetensors, which act
    on raw activations."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    own: bool = True
    """Whether the folder is saekit's, to keep indexes in; False: a published dictionary, of which
    `path` may be a name on the hub."""

    def __repr__(self) -> str:
        config, spec = self.config.get("config", {}), self.config.get("spec") or {}
        model = " ".join(filter(None, [self.config.get("model"), config.get("sparsity")]))
        sizes = {name: config.get(name) for name in ("d_in", "latents", "k")}
        metrics = (self.config.get("result") or {}).get("metrics", {})
        figures = {name: metrics.get(name) for name in ("fvu", "l0", "dead")}
        values = {"model": model or None, **sizes, "hook": spec.get("hook"), **figures}
        return brief(self, values, repr(str(self.path)))


def write_checkpoint(path: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    write_tensors(path / MODEL, {name: tensor.contiguous() for name, tensor in tensors.items()})
    write_json(path / CONFIG, {"schema_version": SCHEMA, **config})


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Raises MissingError when nothing is there, DataError when it is not a finished
    checkpoint."""
    with reading(Path(path)):
        return _read(Path(path))


def _read(path: Path) -> Checkpoint:
    # What the path is.
    if path.suffix in PICKLES:
        raise DataError(
            f"{path} is a pickle, which can run code when it is opened; saekit does not read"
            " pickles"
        )
    settle(path, RUN)
    if not path.exists():
        raise MissingError(
            f"there is no checkpoint at {path}", "give the folder that `saekit train` wrote"
        )
    if not (path / CONFIG).exists() and (path / RUN.marker).exists():
        if (writer := holder(path)) is not None:
            raise DataError(f"{path} is being written by {writer}", "wait until it finishes")
        raise DataError(
            f"{path} holds a training run that did not finish",
            f"train it again with {opt('resume', True)}",
        )
    # The description.
    config = read_json(path / CONFIG, "a checkpoint")
    check_schema(path, config, SCHEMA)
    try:
        _check_config(config)
    except MisfitError as error:
        raise DataError(
            f"{path / CONFIG} is damaged: {error}", f"train it again with {opt('overwrite', True)}"
        ) from None
    if config["schema_version"] < 2:
        for part in ("config", "training"):
            config[part] = _renamed(config[part])
    # The tensors.
    if not (path / MODEL).exists():
        raise DataError(f"{path} has no {MODEL}", f"train it again with {opt('overwrite', True)}")
    need_regular(path / MODEL)
    try:
        return Checkpoint(path, config, load_file(path / MODEL))
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(
            f"{path / MODEL} is damaged: {error}", f"train it again with {opt('overwrite', True)}"
        ) from None


# What config.json holds besides schema_version; a fine-tune adds `finetuned`, a
# conversion `converted`, an import `published`, with null for what the published files do not say.
_KEYS = {
    "model": str,
    "config": dict[str, Any],
    "training": dict[str, Any],
    "spec": dict[str, Any],
    "content": str,
    "input_scale": float | list[float],
    "backend": dict[str, Any],
    "result": dict[str, Any],
    "versions": dict[str, str],
}


def _check_config(config: dict[str, Any]) -> None:
    # Keys, and where the rows came from; an import may not know.
    imported = "published" in config
    for name, hint in _KEYS.items():
        may_be_null = imported and name in ("content", "input_scale")
        as_type(config.get(name), hint | None if may_be_null else hint, name)
    if imported:
        as_type(config["published"], dict[str, Any], "published")
        as_type(config["spec"].get("d_in"), int, "spec.d_in")
    elif config.get("fingerprint") != ActivationSpec.from_json(config["spec"]).fingerprint:
        raise MisfitError("its fingerprint does not match its spec")
    # What the run says about itself.
    result, training = config["result"], config["training"]
    for name, value in as_type(result.get("metrics"), dict[str, Any], "result.metrics").items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise MisfitError(f"result.metrics.{name} is not a number")
    for name, hint in (
        ("path", str),
        ("step", int),
        ("rows", int),
        ("rows_per_s", float),
        ("backend", str),
    ):
        as_type(result.get(name), hint | None if imported else hint, f"result.{name}")
    as_type(training.get("target_store"), str | None, "training.target_store")
    as_type(training.get("stores", []), list[str], "training.stores")
    as_type(config["backend"].get("name"), str | None if imported else str, "backend.name")
    as_type(config["config"].get("sparsity"), str | None, "config.sparsity")
    as_type(training.get("sparsity"), str | None, "training.sparsity")
    as_type(config["config"].get("parts"), list[int] | None, "config.parts")


def _renamed(options: dict[str, Any]) -> dict[str, Any]:
    """A model's options of schema 1 in today's terms."""
    old = options.get("sparsity")
    if old not in RENAMED:
        return options
    # kl-means without a target L0 had none; kl would take its default
    no_target = {"target_l0": options.get("target_l0") or 0} if old == "kl-means" else {}
    return options | {"sparsity": RENAMED[old]} | no_target


def write_train_state(path: Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """All that a resume needs, in one file, so that it is replaced atomically."""
    (path / STATE).parent.mkdir(exist_ok=True)
    write_tensors(
        path / STATE, {n: t.contiguous() for n, t in tensors.items()}, {"state": json.dumps(state)}
    )


def read_train_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """(tensors, state), or None when training was killed before the first state was written."""
    with reading(path / STATE):
        return _read_state(path) if (path / STATE).exists() else None


def _read_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        need_regular(path / STATE)
        with safe_open(path / STATE, "pt") as file:
            state = json.loads((file.metadata() or {}).get("state", "null"))
            if not isinstance(state, dict):
                raise ValueError("it has no state")
            return {name: file.get_tensor(name) for name in file.keys()}, state
    except (SafetensorError, ValueError, RecursionError) as error:
        raise damaged_state(path, error) from None


def damaged_state(path: Path, error: Exception) -> DataError:
    """For a train state, in the run's folder `path`, that training cannot resume from."""
    return DataError(
        f"{path / STATE} is damaged: {error}", f"{opt('overwrite', True)} to train from scratch"
    )
