"""A published dictionary in saekit's terms: a resolved SAE config, tensors under our names, and its
origin.

Our tensors: W_enc (F,D), b_enc (F,), W_dec (F,D_out), b_dec (D_out,), threshold (F,), W_skip
(D_out,D), all float32. A format that computes something else than an SAE class does is refused
(`refused`), never approximated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from saekit.errors import DataError, UsageError
from saekit.models.catalog import config_of
from saekit.store.files import need_regular, read_json, sha256_of
from saekit.store.oserrors import reading

EXACT = (torch.float32, torch.bfloat16, torch.float16)  # dtypes that float32 holds exactly

HEADS = (
    "Its program gives it rows of several heads, (n_heads, d_head); here they lie side by side, as"
    " in the input of the attention's output projection."
)


@dataclass(frozen=True)
class Files:
    """What a format reads, as patterns of names relative to the dictionary's folder, so that
    nothing else is fetched from the hub."""

    folder: tuple[str, ...] = ()
    """Of the tensors in a folder that is a dictionary; the first that a folder has counts."""
    file: tuple[str, ...] = ()
    """Of files that are a dictionary each."""
    beside: tuple[str, ...] = ()
    """What is read with these where it exists. {} is what * stands for in the file's name."""


@dataclass(frozen=True)
class Origin:
    """What a dictionary's files say about where it comes from; None: they do not say."""

    format: str
    base_model: str | None = None
    revision: str | None = None
    hook: str | None = None
    """In the format's own words, such as `blocks.8.hook_resid_pre`."""
    target_hook: str | None = None
    """Of a transcoder: the hook whose states it gives, in the format's own words."""
    layer: int | None = None
    context: int | None = None
    """Tokens in a context of its training."""
    dataset: str | None = None
    special_tokens: dict[str, Any] = field(default_factory=dict)
    """The format's own settings for special tokens."""
    normalization: str | None = None
    """The format's name for what its training did to the input; the weights act on raw rows."""
    notes: tuple[str, ...] = ()
    """What a user must know about the weights, one sentence each."""
    files: dict[str, str] = field(default_factory=dict)
    """Name -> sha256."""
    source: str | None = None
    """The name on the hub that it was opened by; None: local files."""
    repo: str | None = None
    """OWNER/REPO on the hub."""
    commit: str | None = None
    """Of that repo."""
    neuronpedia: str | None = None
    """Its id on neuronpedia.org."""


@dataclass(frozen=True)
class Published:
    config: dict[str, Any]
    """The resolved config of the model as a dict: that of an SAE (saekit.models.sae.SAEConfig or a
    subclass), or CrossLayerConfig."""
    tensors: dict[str, torch.Tensor]
    origin: Origin
    model: str = "sae"
    """Its name among all models (saekit.models.catalog)."""


def published(
    where: Path, sparsity: str, tensors: Mapping[str, torch.Tensor], origin: Origin, **options: Any
) -> Published:
    """Check the tensors and resolve the config. `options`: fields of the config besides those that
    the shapes give. Raises DataError for missing tensors, other dtypes, shapes that do not fit."""
    tensors = {name: as_float32(where, name, tensor) for name, tensor in tensors.items()}
    if tensors["W_enc"].ndim != 2:
        raise DataError(f"{where}: the encoder has the shape {tuple(tensors['W_enc'].shape)}")
    latents, d_in = tensors["W_enc"].shape
    # what the other shapes must be
    d_out = options.get("d_out") or d_in
    wanted = {
        "b_enc": (latents,),
        "W_dec": (latents, d_out),
        "b_dec": (d_out,),
        "threshold": (latents,),
        "W_skip": (d_out, d_in),
    }
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != wanted.get(name, (latents, d_in)):
            raise DataError(
                f"{where}: {name} has the shape {tuple(tensor.shape)} in our layout, and by the"
                f" encoder {wanted[name]}"
            )
    try:
        config = config_of("sae", sparsity)(
            d_in=d_in,
            latents=latents,
            sparsity=sparsity,
            decoder_norm="free",
            revive="none",
            **options,
        ).resolved()
    except UsageError as error:
        raise DataError(f"{where}: {error.cause}") from None
    return Published(dataclasses.asdict(config), tensors, origin)


def as_float32(where: Path, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The same values in float32, contiguous. Raises DataError where that would round."""
    if tensor.dtype not in EXACT:
        raise refused(where, f"dtype of {name}", str(tensor.dtype).removeprefix("torch."))
    return tensor.detach().float().contiguous()


def above(threshold: torch.Tensor) -> torch.Tensor:
    """Thresholds for formats whose code is ReLU(pre) where pre exceeds the threshold: a negative
    one acts as 0."""
    return threshold.clamp_min(0.0)


def gated(
    where: Path,
    W_enc_FD: torch.Tensor,
    r_mag_F: torch.Tensor,
    gate_bias_F: torch.Tensor,
    b_mag_F: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """The jumprelu that a gated dictionary equals (Rajamanoharan et al. 2024, arXiv 2404.16014,
    appendix E): gate > 0 means that the magnitude is above b_mag - exp(r) gate_bias. Computed in
    float64 and rounded once. Raises DataError for biases of another size than the encoder's."""
    if {tuple(t.shape) for t in (r_mag_F, gate_bias_F, b_mag_F)} != {(len(W_enc_FD),)}:
        raise DataError(f"{where}: the biases of gate and magnitude do not fit the encoder")
    scale_F = r_mag_F.double().exp()
    threshold = b_mag_F.double() - scale_F * gate_bias_F.double()
    return {
        "W_enc": (W_enc_FD.double() * scale_F[:, None]).float(),
        "b_enc": b_mag_F,
        "threshold": above(threshold).float(),
    }


def refused(where: Path, name: str, value: Any, hint: str = "") -> DataError:
    """The error for a setting that saekit's SAE does not compute."""
    shown = f'"{value}"' if isinstance(value, str) else value
    return DataError(
        f"{where}: {name} = {shown} is not supported",
        hint or "docs/published.md lists what opens",
    )


def need(where: Path, tensors: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raise DataError unless the tensors have exactly these names."""
    names = set(names)
    if missing := sorted(names - tensors.keys()):
        raise DataError(f"{where} has no tensor {missing[0]}")
    if extra := sorted(tensors.keys() - names):
        raise DataError(f"{where} has a tensor {extra[0]}, which its settings do not explain")


def need_matrices(where: Path, tensors: Mapping[str, torch.Tensor], *names: str) -> None:
    """Raise DataError unless the tensors of these names have two dimensions."""
    need_ndim(where, tensors, dict.fromkeys(names, (2,)))


def need_ndim(
    where: Path, tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise DataError unless each of the named tensors has one of these numbers of dimensions."""
    for name, numbers in wanted.items():
        if tensors[name].ndim not in numbers:
            raise DataError(f"{where}: {name} has the shape {tuple(tensors[name].shape)}")


def number(where: Path, settings: Mapping[str, Any], name: str) -> int:
    """A setting that is a whole number of at least 1. Raises DataError."""
    value = settings.get(name)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    if isinstance(value, float) and value.is_integer() and value >= 1:
        return int(value)
    raise refused(where, name, value)


def factor(where: Path, settings: Mapping[str, Any], name: str) -> float:
    """A setting that is a number above 0. Raises DataError."""
    value = settings.get(name)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if 0 < value <= torch.finfo(torch.float32).max:
            return float(value)
    raise refused(where, name, value)


def integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def text(value: Any) -> str | None:
    """None for what is not text, and for text with control characters: it is printed later."""
    return value if isinstance(value, str) and value and value.isprintable() else None


def json_object(path: Path) -> dict[str, Any] | None:
    """The settings in a file; None where it does not hold a JSON object."""
    try:
        with reading(path):
            return read_json(path, "a dictionary") if path.is_file() else None
    except DataError:
        return None


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a file. Raises DataError for one that does not hold a mapping."""
    import yaml

    with reading(path):
        need_regular(path)
        try:
            settings = yaml.safe_load(path.read_bytes())
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise DataError(f"{path} is not YAML: {error}") from None
    if not isinstance(settings, dict):
        raise DataError(f"{path} does not hold the settings of a dictionary")
    return settings


def tensor_names(path: Path) -> set[str]:
    """Of a safetensors file; empty where it is not one."""
    if not path.is_file():
        return set()
    try:
        with safe_open(path, "pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError):
        return set()


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Raises DataError for a file that is not whole."""
    with reading(path):
        need_regular(path)
        try:
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, ValueError) as error:
            raise DataError(f"{path} is damaged: {error}") from None


def digests(*paths: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in paths}
