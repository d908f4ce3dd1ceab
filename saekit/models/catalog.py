"""The one registry of models: name -> (config class, model class, one line)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode

from saekit import typed
from saekit.errors import ALIKE, DataError, UsageError, check_choice, message_of, nearest, opt
from saekit.models.adversarial.aae import AAE, AAEConfig
from saekit.models.adversarial.cgan import CGAN, CGANConfig
from saekit.models.adversarial.dcgan import DCGAN, DCGANConfig
from saekit.models.adversarial.gan import GAN, GANConfig
from saekit.models.autoencoder import Autoencoder
from saekit.models.contextual import Contextual, ContextualConfig
from saekit.models.conv import Conv, ConvConfig
from saekit.models.cross_layer import CrossLayerConfig, CrossLayerTranscoder
from saekit.models.dense import Dense, DenseConfig, Linear, LinearConfig
from saekit.models.kmeans import KMeans, KMeansConfig
from saekit.models.linear import PCA, PCAConfig
from saekit.models.recurrent import Recurrent, RecurrentConfig
from saekit.models.sae import SAE, SAEConfig
from saekit.models.sparsity import VARIANTS
from saekit.models.unet import UNet, UNetConfig
from saekit.models.vae import VAE, VAEConfig
from saekit.options import Option, check_values, options_of


class Entry(NamedTuple):
    config: type
    model: type[Autoencoder]
    line: str


CATALOG: dict[str, Entry] = {
    "sae": Entry(
        SAEConfig,
        SAE,
        "sparse autoencoder, overcomplete; see its variants below",
    ),
    "pca": Entry(PCAConfig, PCA, "principal components in closed form: the linear floor"),
    "kmeans": Entry(KMeansConfig, KMeans, "nearest centroid: one latent per row"),
    "linear": Entry(LinearConfig, Linear, "linear autoencoder by gradient: PCA's subspace"),
    "dense": Entry(
        DenseConfig,
        Dense,
        "mirrored layers, shallow or deep: hidden, tied, noise, contractive, pretrain",
    ),
    "conv": Entry(ConvConfig, Conv, "convolutions for images and grids of patches: channels"),
    "unet": Entry(
        UNetConfig,
        UNet,
        "convolutions down and up with skips between, for a target store: colors, masks",
    ),
    "recurrent": Entry(
        RecurrentConfig,
        Recurrent,
        "reads a sequence into one code and writes it out again: cell gru | lstm",
    ),
    "vae": Entry(VAEConfig, VAE, "variational autoencoder with beta: samples, interpolation, ELBO"),
    "gan": Entry(GANConfig, GAN, "dense generator against a discriminator: samples, no encoder"),
    "dcgan": Entry(
        DCGANConfig, DCGAN, "the same with convolutions, for images and grids: channels"
    ),
    "cgan": Entry(CGANConfig, CGAN, "the same with the class given to both: samples of a class"),
    "aae": Entry(AAEConfig, AAE, "autoencoder whose codes a discriminator matches to a prior"),
}

LABELED = tuple(
    name
    for name, entry in CATALOG.items()
    if "classes" in {field.name for field in dataclasses.fields(entry.config)}
)
"""Models that read the class of every row."""

LOADED: dict[str, Entry] = {
    "cross_layer": Entry(
        CrossLayerConfig, CrossLayerTranscoder, "cross-layer transcoder: one encoder per layer"
    ),
    "contextual": Entry(
        ContextualConfig, Contextual, "a sparse code of what earlier positions do not predict"
    ),
}
"""Models that are opened and imported; none can be trained."""


def check_takes_rows(name: str, where: str) -> None:
    """Raise UsageError for a model that reads all layers at once: for verbs that read rows. `where`
    says in the error which one it is."""
    if name == "cross_layer":
        raise UsageError(
            f"{where} holds a {name} model ({LOADED[name].line}), and no store has the rows of all"
            " layers side by side",
            "saekit.load gives the model; each of its layers is a transcoder",
        )


BY_ITS_ROWS = {
    "transcoder": f"{opt('model', 'sae')} with {opt('target_store')}, the rows to predict, is one",
    "crosscoder": f"{opt('model', 'sae')} on several stores is one",
}


def config_of(name: str, sparsity: str | None = None) -> type:
    """The config class of a model; that of an SAE goes by its sparsity. Raises UsageError."""
    if name in BY_ITS_ROWS:
        raise UsageError(f"{opt('model', name)}: {BY_ITS_ROWS[name]}")
    check_choice("model", name, CATALOG)
    if name != "sae":
        return CATALOG[name].config
    chosen = SAEConfig.sparsity if sparsity is None else sparsity
    check_choice("sparsity", chosen, VARIANTS)
    return VARIANTS[chosen].config_class


def model_options(name: str, sparsity: str | None = None) -> dict[str, Option]:
    """The options that a model takes. `sparsity` selects the variant of an SAE."""
    config = config_of(name, sparsity)
    refused = getattr(config, "without", ())  # inherited, but of no use to this model
    return {key: option for key, option in options_of(config).items() if key not in refused}


def every_option() -> dict[str, Option]:
    """The options of all models, by name: that of the first model that has it."""
    found: dict[str, Option] = {}
    for options in _owners().values():
        found = {**found, **{name: o for name, o in options.items() if name not in found}}
    return found


def labelled_options() -> dict[str, Option]:
    """The same, with texts that say which models and variants take it, where not every SAE does,
    and whose default it is, where they differ."""
    owners = _owners()
    found = {}
    for name, option in every_option().items():
        takers = {owner: options[name] for owner, options in owners.items() if name in options}
        text, default = option.doc.text, option.default
        if any(taker.default != default for taker in takers.values()):
            text, default = f"{text} The default depends on the model.", None
        if not takers.keys() >= {("sparsity", variant) for variant in VARIANTS}:
            text += f" For {_listed(takers)}."
        doc = dataclasses.replace(option.doc, text=text)
        found[name] = dataclasses.replace(option, doc=doc, default=default)
    return found


def _owners() -> dict[tuple[str, str], dict[str, Option]]:
    """("sparsity", variant) or ("model", name) -> its options."""
    owners = {("sparsity", variant): model_options("sae", variant) for variant in VARIANTS}
    return owners | {("model", name): model_options(name) for name in CATALOG if name != "sae"}


def _listed(takers: Iterable[tuple[str, str]]) -> str:
    """'sparsity l1, tanh; model vae'."""
    by_kind: dict[str, list[str]] = {}
    for kind, name in takers:
        by_kind.setdefault(kind, []).append(name)
    return "; ".join(f"{kind} {', '.join(names)}" for kind, names in by_kind.items())


def check_options(name: str, options: dict[str, Any], also: Iterable[str] = ()) -> None:
    """Raise UsageError when an option is not one of the model's, or has a value of another type.
    `also`: other names that the caller may have meant."""
    sparsity = options.get("sparsity") if name == "sae" else None
    known = model_options(name, sparsity)
    for key in options:
        if key not in known:
            raise _unknown(name, key, known, sparsity, also)
    if name == "sae" and None not in (options.get("expansion"), options.get("latents")):
        both = f"{opt('expansion')} and {opt('latents')}"
        raise UsageError(f"{both} both set the number of latents", "give one of them")
    check_values(config_of(name, sparsity), options)


def _unknown(
    name: str, key: str, known: Iterable[str], sparsity: str | None, also: Iterable[str]
) -> UsageError:
    """The error for an option that a model does not take, with the variants that do."""
    takes = [
        variant for variant in VARIANTS if name == "sae" and key in model_options(name, variant)
    ]
    if takes:
        chosen = SAEConfig.sparsity if sparsity is None else sparsity
        return UsageError(
            f"{opt(key)} does not apply to {opt('sparsity', chosen)}",
            f"{opt('sparsity', *takes)}, or drop {opt(key)}",
        )
    cause = f"{opt(key)} does not apply to {opt('model', name)}"
    own = [*known, *also]
    others = VARIANTS if name == "sae" else ()
    of_others = {option for other in others for option in model_options(name, other)}
    near = nearest(key, [*own, *sorted(of_others)], ALIKE)
    if near and near in own:
        return UsageError(cause, f"did you mean {opt(near)}?")
    if near:
        taken = _unknown(name, near, known, sparsity, also)
        return UsageError(f"{opt(key)}: did you mean {opt(near)}? {taken.cause}", taken.hint)
    return UsageError(f"{cause}, which takes {', '.join(map(opt, known))}")


def build(
    name: str,
    d_in: int,
    options: dict[str, Any],
    shape: tuple[int | None, ...] | None = None,
    d_out: int = 0,
    parts: tuple[int, ...] = (),
    seed: int = 0,
    classes: tuple[str, ...] = (),
) -> Autoencoder:
    """A new model. `shape` is that of one example (ActivationSpec.shape), `d_out` the width of the
    target's rows where that is another store, `parts` the widths of several hooks side by side in
    a row, `seed` that of the run, `classes` the labels of the rows (saekit.store.labels). Raises
    UsageError on wrong options, DataError when the model does not take such examples."""
    check_options(name, options)
    config = config_of(name, options.get("sparsity") if name == "sae" else None)
    fields = {f.name for f in dataclasses.fields(config)}
    data: dict[str, Any] = {"d_in": d_in}
    if "shape" in fields:
        data["shape"] = shape or (d_in,)
    if "seed" in fields:
        data["seed"] = seed
    if d_out:
        if "d_out" not in fields:
            raise UsageError(f"{opt('target_store')} does not apply to {opt('model', name)}")
        data["d_out"] = d_out
    if "classes" in fields:
        data["classes"] = classes
    if parts and "parts" in fields:
        data["parts"] = parts
    model = CATALOG[name].model(config(**data, **options))
    for key, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{opt(key, value)} is not a finite number")
    return model


def restore(name: str, config: dict[str, Any], tensors: dict) -> Autoencoder:
    """The model of a checkpoint. Raises DataError when config and tensors do not fit it."""
    if (entry := (CATALOG | LOADED).get(name)) is None:
        raise DataError(f"the checkpoint holds a {name!r} model, which this saekit does not know")
    try:
        kind = entry.config
        if name == "sae":
            kind = config_of(name, typed.as_type(config.get("sparsity"), str, "config.sparsity"))
        settings = typed.build(kind, config, "config")
        _need_possible(settings, tensors)
        # shapes without memory: a config may say any size
        with torch.device("meta"), _NothingDrawn():
            model = entry.model.for_weights(settings)
        _need_shapes(model.state_dict(), tensors)
        _need_thresholds(tensors)
        model.to_empty(device="cpu").load_state_dict(tensors)
    except (
        ValueError,
        TypeError,
        RuntimeError,
        ArithmeticError,
        AssertionError,
        IndexError,
        UsageError,
    ) as error:
        raise DataError(
            f"the checkpoint does not fit a {name} model: {message_of(error)}"
        ) from None
    return model.eval().requires_grad_(False)


class _NothingDrawn(TorchFunctionMode):
    """Random weights are not drawn. Tensors without memory have none, but to find that out torch
    imports its compiler, for 2 s."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        drawing = func in (torch.Tensor.normal_, torch.Tensor.uniform_)
        return args[0] if drawing else func(*args, **(kwargs or {}))


def _need_thresholds(tensors: dict[str, torch.Tensor]) -> None:
    """No threshold is NaN: nothing is above or below it."""
    for name, tensor in tensors.items():
        if name.rpartition(".")[2] == "threshold" and bool(tensor.isnan().any()):
            raise ValueError(f"{name} has the value NaN")


def _need_possible(settings: Any, tensors: dict[str, torch.Tensor]) -> None:
    """No size of a config is above the largest that its tensors have, nor its layers above their
    number."""
    largest = max((max(tensor.shape, default=1) for tensor in tensors.values()), default=0)
    for field in ("latents", "d_in", "d_out", "width", "hidden", "channels", "parts"):
        value = getattr(settings, field, 0)
        sizes = value if isinstance(value, tuple) else (value,)
        # A row of a sequence, an image or one layer is narrower than an example; codes are at most
        # as wide as what they are computed from.
        if any(
            isinstance(size, int) and size > max(largest, 1) * _examples(settings) for size in sizes
        ):
            raise ValueError(
                f"config.{field} is {value}, and the largest tensor has {largest:,} rows or columns"
            )
    if getattr(settings, "layers", 0) > len(tensors) or len(
        getattr(settings, "hidden", None) or ()
    ) > len(tensors):
        raise ValueError(f"config has more layers than the {len(tensors)} tensors")


def _examples(settings: Any) -> int:
    """How many rows an example may hold: positions, pixels, layers."""
    shape = getattr(settings, "shape", None) or ()
    layers = settings.layers if isinstance(settings, CrossLayerConfig) else 1
    return min(layers * math.prod(size or 1 for size in shape), 1 << 24)


def _need_shapes(wanted: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]) -> None:
    if wanted.keys() != tensors.keys():
        difference = sorted(wanted.keys() ^ tensors.keys())[0]
        raise ValueError(
            f"{difference} is {'missing' if difference in wanted else 'not one of its tensors'}"
        )
    for name, tensor in tensors.items():
        if (
            tensor.shape != wanted[name].shape
            or tensor.is_floating_point() != wanted[name].is_floating_point()
        ):
            raise ValueError(
                f"{name} has the shape {tuple(tensor.shape)}, and by config"
                f" {tuple(wanted[name].shape)}"
            )
