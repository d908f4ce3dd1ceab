"""sparsify folders: cfg.json and sae.safetensors, an SAE or a transcoder.

The folder is named after the module whose output is the hook; a transcoder reads that module's
input. config.json of the run's folder, above it, names the base model. `multi_topk` adds a term to
the loss only. `signed`, of versions of June to August 2024, chooses the k values of largest
magnitude and keeps their signs.
"""

from __future__ import annotations

from pathlib import Path

from saekit.errors import DataError
from saekit.interop.dictionary import (
    Files,
    Origin,
    Published,
    digests,
    integer,
    json_object,
    need,
    number,
    published,
    read_safetensors,
    refused,
    tensor_names,
    text,
)

SETTINGS, WEIGHTS = "cfg.json", "sae.safetensors"
ABOUT = ("model", "revision", "hook", "target_hook", "ctx_len", "dataset")
FILES = Files(folder=(WEIGHTS,), beside=(SETTINGS, "../config.json"))


def recognizes(path: Path) -> bool:
    settings = json_object(path / SETTINGS) or {}
    return {"d_in", "k"} <= settings.keys() and {"encoder.weight", "W_dec"} <= tensor_names(
        path / WEIGHTS
    )


def read(path: Path) -> Published:
    where = path / SETTINGS
    settings = json_object(where)
    if settings is None:
        raise DataError(f"{where} does not hold the settings of a dictionary")
    transcodes, skips = bool(settings.get("transcode")), bool(settings.get("skip_connection"))
    # what saekit's SAE does not compute
    if (activation := settings.get("activation", "topk")) != "topk":
        raise refused(where, "activation", activation)
    if (signed := bool(settings.get("signed"))) and transcodes:
        raise refused(where, "signed", True, "no version of sparsify has signed transcoders")
    if skips and not transcodes:
        raise refused(where, "skip_connection", True, "a skip needs transcode = true")
    tensors = read_safetensors(path / WEIGHTS)
    names = ("encoder.weight", "encoder.bias", "W_dec", "b_dec", *(("W_skip",) if skips else ()))
    need(path / WEIGHTS, tensors, names)
    d_in = number(where, settings, "d_in")
    if tensors["encoder.weight"].shape[-1:] != (d_in,):
        shape = tuple(tensors["encoder.weight"].shape)
        raise refused(where, "d_in", d_in, f"encoder.weight has the shape {shape}")
    # a run's folder has one for each hook; a folder of ours says it in cfg.json
    run, module = json_object(path.resolve().parent / "config.json") or {}, path.resolve().name
    run |= {name: settings[name] for name in ABOUT if name in settings}
    origin = Origin(
        format="sparsify",
        base_model=text(run.get("model")),
        revision=text(run.get("revision")),
        hook=text(run.get("hook")) or (f"{module}:in" if transcodes else module),
        target_hook=(text(run.get("target_hook")) or module) if transcodes else None,
        context=integer(run.get("ctx_len")),
        dataset=text(run.get("dataset")),
        normalization="none",
        files=digests(where, path / WEIGHTS),
    )
    ours = {"encoder.weight": "W_enc", "encoder.bias": "b_enc"}
    return published(
        path,
        "abs-topk" if signed else "topk",
        {ours.get(name, name): tensor for name, tensor in tensors.items()},
        origin,
        k=number(where, settings, "k"),
        d_out=d_in if transcodes else 0,
        skip=skips,
        subtract_b_dec=not transcodes,
    )
