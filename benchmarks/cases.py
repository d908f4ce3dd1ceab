"""What classic.py trains: one line per model, on data that ships in wheels and on hidden states of
an embedded transformer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# name -> (MODEL, DATA, options) of the harvest
DATA: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mnist": ("raw:pixels", "embedded:mnist-5k", {"holdout": 0.2}),
    "digits": ("raw:pixels", "embedded:digits", {"holdout": 0.2}),
    "hidden": ("embedded:digits-vit", "embedded:digits", {"hook": "blocks.2", "batch": 128}),
    "hidden-grid": (
        "embedded:digits-vit",
        "embedded:digits",
        {"hook": "blocks.2", "batch": 128, "layout": "grid"},
    ),
    "hidden-sequence": (
        "embedded:digits-vit",
        "embedded:digits",
        {"hook": "blocks.2", "batch": 128, "layout": "sequence"},
    ),
    "documents": ("raw:tfidf", "embedded:pydocs", {"holdout": 0.2}),
    "grey": ("raw:pixels", "embedded:photos-grey", {"holdout": 0.2}),
    "colour": ("raw:pixels", "embedded:photos", {"holdout": 0.2}),
    "scenes": ("raw:pixels", "embedded:scenes", {"holdout": 0.2}),
    "masks": ("raw:pixels", "embedded:scene-masks", {"holdout": 0.2}),
}


@dataclass(frozen=True)
class Case:
    """A model on some data. `task` is a key of TASKS or TRAINING_TASKS in classic.py: what is
    measured besides the reconstruction."""

    data: str
    name: str
    model: str
    options: dict[str, Any] = field(default_factory=dict)
    task: str = "reconstruct"
    seeded: bool = True  # False: closed form, the same for every seed
    noise: str = ""  # for task denoise, unless the model has a noise option
    rows: int | None = None  # for task map: the number of rows
    epochs: int | None = None  # None: the model's default (saekit.training.defaults)


BERNOULLI = {"output": "bernoulli"}
DEEP = {"hidden": (512, 256, 128), **BERNOULLI}
DEEP_NOISY = {"hidden": (512, 256, 128), "noise": "gaussian:0.3"}
SIGMOID = {**DEEP, "activation": "sigmoid", "latents": 30}
# the shape for documents of Hinton and Salakhutdinov 2006
STACK = {"hidden": (500, 250, 125), "latents": 2, "normalize": "center+scale"}
NOISES = ("gaussian:0.25", "masking:0.3", "salt-pepper:0.2")


def pca(data: str, latents: int, task: str = "reconstruct", noise: str = "") -> Case:
    return Case(
        data,
        f"pca {latents}{', ' if noise else ''}{noise}",
        "pca",
        {"latents": latents},
        task,
        seeded=False,
        noise=noise,
    )


def dense(data: str, name: str, latents: int, task: str = "reconstruct", **options: Any) -> Case:
    return Case(data, name, "dense", {"latents": latents, **BERNOULLI, **options}, task)


def unet(data: str, name: str, task: str, target: str, **options: Any) -> Case:
    return Case(
        data,
        name,
        "unet",
        {"target_store": target, **options},
        task,
        epochs=12 if task == "segment" else 20,
    )


MNIST = [
    pca("mnist", 2),
    dense(
        "mnist", "dense 512-256-128-2, denoising", 2, hidden=(512, 256, 128), noise="gaussian:0.3"
    ),
    Case("mnist", "vae 512-256-2", "vae", {"latents": 2, **BERNOULLI}),
    pca("mnist", 30),
    Case("mnist", "kmeans 30", "kmeans", {"latents": 30}),
    Case("mnist", "linear 30", "linear", {"latents": 30}),
    dense("mnist", "dense 256-30", 30, hidden=(256,)),
    dense("mnist", "dense 256-30, tied", 30, hidden=(256,), tied=True),
    dense("mnist", "dense 512-256-128-30", 30, hidden=(512, 256, 128)),
    dense("mnist", "dense 512-30, denoising", 30, hidden=(512,), noise="gaussian:0.3"),
    dense("mnist", "dense 256-30, contractive", 30, hidden=(256,), contractive=0.1),
    Case("mnist", "conv 16-32-30", "conv", {"latents": 30, **BERNOULLI}),
    Case("mnist", "recurrent gru 30", "recurrent", {"latents": 30, **BERNOULLI}),
    Case("mnist", "vae 512-256-30", "vae", {"latents": 30, **BERNOULLI}),
    dense("mnist", "dense 784, l1", 784, hidden=(), sparsity="l1"),
    dense("mnist", "dense 784, kl", 784, hidden=(), sparsity="kl-sigmoid", target_rate=0.05),
    Case("mnist", "sae topk 4x, k 30", "sae", {"expansion": 4, "k": 30}, epochs=60),
    Case("mnist", "sigmoid stack, random start", "dense", SIGMOID),
    Case("mnist", "sigmoid stack, greedy", "dense", {**SIGMOID, "pretrain": "greedy"}),
    Case("mnist", "sigmoid stack, rbm", "dense", {**SIGMOID, "pretrain": "rbm"}),
]
DENOISE = [
    case
    for noise in NOISES
    for case in (
        pca("mnist", 30, "denoise", noise),
        dense("mnist", f"dense 512-30, {noise}", 30, "denoise", hidden=(512,), noise=noise),
    )
]
ONE_CLASS = [
    pca("mnist", 30, "one_class"),
    dense("mnist", "dense 512-30, denoising", 30, "one_class", hidden=(512,), noise="gaussian:0.3"),
    Case("mnist", "vae 512-16", "vae", {"latents": 16, "hidden": (512,), **BERNOULLI}, "one_class"),
]
CLASSIFY = [
    pca("mnist", 30, "classify"),
    dense("mnist", "dense 512-256-128-30, denoising", 30, "classify", **DEEP_NOISY),
]
MAPS = [
    case
    for rows in (1000, 2000, 4000)
    for case in (
        Case("mnist", f"pca 2, {rows} rows", "pca", {"latents": 2}, "map", seeded=False, rows=rows),
        Case("mnist", f"t-sne, {rows} rows", "t-sne", {}, "map", rows=rows),
        Case(
            "mnist",
            f"dense 512-256-128-2, {rows} rows",
            "dense",
            {"latents": 2, **BERNOULLI, **DEEP_NOISY},
            "map",
            rows=rows,
        ),
    )
]
DIGITS = [
    pca("digits", 8),
    Case("digits", "linear 8", "linear", {"latents": 8}),
    dense("digits", "dense 256-8", 8, hidden=(256,)),
    Case("digits", "vae 128-8", "vae", {"latents": 8, "hidden": (128,), **BERNOULLI}),
]
HIDDEN = [
    pca("hidden", 16),
    Case("hidden", "kmeans 512", "kmeans", {"latents": 512}),
    Case("hidden", "linear 16", "linear", {"latents": 16}),
    Case("hidden", "dense 256-16", "dense", {"latents": 16}),
    Case("hidden", "vae 256-16", "vae", {"latents": 16, "hidden": (256,)}),
    Case("hidden", "sae topk 32x, k 16", "sae", {"k": 16}),
    Case(
        "hidden-grid",
        "conv 128-128-256",
        "conv",
        {"latents": 256, "channels": (128, 128)},
        epochs=30,
    ),
    Case("hidden-sequence", "recurrent gru 256", "recurrent", {"latents": 256}, epochs=20),
]
DOCUMENTS = [
    pca("documents", 2),
    Case(
        "documents",
        "dense 500-250-125-2, denoising",
        "dense",
        {**STACK, "activation": "tanh", "noise": "masking:0.3"},
    ),
    Case(
        "documents",
        "sigmoid 500-250-125-2, rbm",
        "dense",
        {**STACK, "activation": "sigmoid", "pretrain": "rbm"},
    ),
]
PICTURES = [
    Case("grey", "grey copied", "copy", task="colour", seeded=False),
    unet("grey", "unet", "colour", "colour", output="sigmoid"),
    unet("grey", "unet without skips", "colour", "colour", output="sigmoid", skips=False),
    unet("scenes", "unet", "segment", "masks", **BERNOULLI),
    unet("scenes", "unet without skips", "segment", "masks", **BERNOULLI, skips=False),
]
CASES = [*MNIST, *DENOISE, *ONE_CLASS, *CLASSIFY, *MAPS, *DIGITS, *HIDDEN, *DOCUMENTS, *PICTURES]
