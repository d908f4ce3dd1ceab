"""dictionary_learning folders: ae.pt, a pickled state dict, and config.json.

A BatchTopK code is that of inference: all values above the threshold that training estimated, or,
where it has not, all positive ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saekit.interop.dictionary import (
    Files,
    Origin,
    Published,
    above,
    as_float32,
    digests,
    gated,
    integer,
    json_object,
    need,
    need_matrices,
    number,
    published,
    refused,
    text,
)
from saekit.interop.pickles import Tensors, read_tensors

SETTINGS, WEIGHTS = "config.json", "ae.pt"
FILES = Files(folder=(WEIGHTS,), file=(WEIGHTS,), beside=(SETTINGS,))
ONE_THRESHOLD = ("BatchTopKSAE", "MatryoshkaBatchTopKSAE")
UNESTIMATED = (
    "Its training did not estimate a threshold: the code is a plain ReLU, as dictionary_learning"
    " computes it, with many more active latents than k."
)


def recognizes(path: Path) -> bool:
    folder = _folder(path)
    trainer = (json_object(folder / SETTINGS) or {}).get("trainer")
    return isinstance(trainer, dict) and "dict_class" in trainer and (folder / WEIGHTS).is_file()


def read(path: Path) -> Published:
    path = _folder(path)
    settings = json_object(path / SETTINGS) or {}
    trainer, buffer = (_object(settings.get(name)) for name in ("trainer", "buffer"))
    kind = trainer.get("dict_class")
    if not isinstance(kind, str) or kind not in KINDS:
        raise refused(path / SETTINGS, "dict_class", kind)
    if buffer.get("io", "out") not in ("in", "out"):  # the target is another module's output
        raise refused(path / SETTINGS, "io", buffer["io"])
    tensors = read_tensors(path / WEIGHTS)
    sparsity, ours, options = KINDS[kind](path / WEIGHTS, tensors)
    origin = Origin(
        format="dictionary_learning",
        base_model=text(trainer.get("lm_name")),
        hook=text(trainer.get("submodule_name")),
        layer=integer(trainer.get("layer")),
        context=integer(buffer.get("ctx_len")),
        special_tokens={
            name: buffer[name] for name in ("remove_bos", "add_special_tokens") if name in buffer
        },
        normalization="none",
        notes=(UNESTIMATED,) if kind in ONE_THRESHOLD and sparsity == "l1" else (),
        files=digests(path / SETTINGS, path / WEIGHTS),
    )
    return published(path, sparsity, ours, origin, **options)


def _folder(path: Path) -> Path:
    """The trainer's folder, which may be given by its ae.pt."""
    return path.parent if path.name == WEIGHTS else path


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _linear(where: Path, tensors: Tensors, *more: str) -> Tensors:
    """encoder.weight, encoder.bias, decoder.weight and the bias, which older files call `bias`."""
    if "bias" in tensors:
        tensors["b_dec"] = tensors.pop("bias")
    need(where, tensors, ("encoder.weight", "encoder.bias", "decoder.weight", "b_dec", *more))
    need_matrices(where, tensors, "encoder.weight", "decoder.weight")
    return {
        "W_enc": tensors["encoder.weight"],
        "b_enc": tensors["encoder.bias"],
        "W_dec": tensors["decoder.weight"].T,
        "b_dec": tensors["b_dec"],
    }


def _above_one_threshold(where: Path, tensors: Tensors, ours: Tensors):
    """The code of a BatchTopK at inference: ReLU(pre) above its one threshold. A negative one, -1
    before training has estimated it, leaves the ReLU."""
    threshold = as_float32(where, "threshold", tensors["threshold"])
    if threshold.numel() != 1 or not bool(threshold.isfinite()):
        raise refused(where, "threshold", threshold.tolist())
    if bool(threshold < 0):
        return "l1", ours, {"subtract_b_dec": True}
    threshold_F = threshold.reshape(1).expand(len(ours["W_enc"]))
    return "jumprelu", ours | {"threshold": threshold_F}, {"subtract_b_dec": True}


def _relu(where: Path, tensors: Tensors):
    return "l1", _linear(where, tensors), {"subtract_b_dec": True}


def _april_update(where: Path, tensors: Tensors):
    if "decoder.bias" in tensors:
        tensors["b_dec"] = tensors.pop("decoder.bias")
    return "l1", _linear(where, tensors), {}


def _topk(where: Path, tensors: Tensors):
    tensors.pop("threshold", None)  # estimated, and not used by default
    ours = _linear(where, tensors, "k")
    k = tensors["k"]
    k = number(where, {"k": k.item() if k.numel() == 1 else k.tolist()}, "k")
    return "topk", ours, {"k": k, "subtract_b_dec": True}


def _batchtopk(where: Path, tensors: Tensors):
    return _above_one_threshold(where, tensors, _linear(where, tensors, "k", "threshold"))


def _matryoshka(where: Path, tensors: Tensors):
    need(where, tensors, ("W_enc", "b_enc", "W_dec", "b_dec", "k", "threshold", "group_sizes"))
    need_matrices(where, tensors, "W_enc")
    ours = {name: tensors[name] for name in ("b_enc", "W_dec", "b_dec")}
    ours["W_enc"] = tensors["W_enc"].T
    return _above_one_threshold(where, tensors, ours)


def _jumprelu(where: Path, tensors: Tensors):
    need(where, tensors, ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"))
    need_matrices(where, tensors, "W_enc")
    changed = {"W_enc": tensors["W_enc"].T, "threshold": above(tensors["threshold"])}
    return "jumprelu", tensors | changed, {}


def _gated(where: Path, tensors: Tensors):
    rest = ("encoder.weight", "decoder.weight", "r_mag", "gate_bias", "mag_bias")
    need(where, tensors, ("decoder_bias", *rest))
    need_matrices(where, tensors, "encoder.weight", "decoder.weight")
    biases = (tensors[name] for name in ("r_mag", "gate_bias", "mag_bias"))
    encoder = gated(where, tensors["encoder.weight"], *biases)
    decoder = {"W_dec": tensors["decoder.weight"].T, "b_dec": tensors["decoder_bias"]}
    return "jumprelu", encoder | decoder, {"subtract_b_dec": True}


# dict_class -> (path, tensors) -> (sparsity, our tensors, options of the config)
KINDS = {
    "AutoEncoder": _relu,
    "AutoEncoderNew": _april_update,
    "AutoEncoderTopK": _topk,
    "BatchTopKSAE": _batchtopk,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "JumpReluAutoEncoder": _jumprelu,
    "GatedAutoEncoder": _gated,
}
