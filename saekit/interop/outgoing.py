"""A dictionary of ours on its way into another program's format: what it computes, in words that
formats are compared by, and where it comes from.

What a format can say is a set of such words (`SAYS` of its writer). A dictionary goes out exactly
or is refused; only b_dec may move between the input and b_enc (`encoder_bias`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from saekit import __version__
from saekit.errors import DataError, SaekitError
from saekit.interop.lens_names import layer_of, lens_name
from saekit.interop.provenance import provenance
from saekit.models.catalog import restore
from saekit.models.sae.dictionary import Dictionary
from saekit.models.sparsity import AbsTopK
from saekit.models.sparsity.penalised import Penalised
from saekit.models.sparsity.topk import LargestOfRows
from saekit.store.checkpoint import Checkpoint
from saekit.store.reader import Store

# what a dictionary may have besides its code, in words that complete "these files do not hold"
SKIP = "skip connections"
OTHER_WIDTH = "outputs of another width than the input"
BY_DECODER_NORM = "codes chosen by decoder norms"  # after the name of the code
NEGATIVE = "thresholds below 0"
NEGATIVE_VALUES = "negative values among the k largest"
FACTORS = "factors on input and output"


@dataclass(frozen=True)
class About:
    """Where a dictionary comes from, in what the settings of other programs say; None: not
    known."""

    base_model: str | None
    revision: str | None
    hook: str | None
    """A module path, or as the format that it came from writes it."""
    target_hook: str | None
    """Of a transcoder."""
    layer: int | None
    """The block, counted from 0."""
    context: int | None
    dataset: str | None
    scope: str | None
    """Which rows of its training data: content (without BOS, EOS and padding) | cls | all."""
    special_tokens: dict[str, Any]
    """The settings of the format that it came from; of our own training the scope."""
    lens_hook: str | None
    """TransformerLens' name of `hook`, where it has one."""
    lens_target_hook: str | None
    saekit: str = __version__

    @property
    def without_special_tokens(self) -> bool | None:
        """Whether its training left out the rows of BOS, EOS and padding."""
        return None if self.scope not in ("content", "all") else self.scope == "content"


@dataclass(frozen=True)
class Outgoing:
    where: str
    """Its path, for messages."""
    code: str
    """relu | topk | jumprelu | abs-topk, or the name of a variant with another code."""
    config: dict[str, Any]
    """Of the SAE (saekit.models.sae.SAEConfig or a subclass)."""
    tensors: dict[str, torch.Tensor]
    """Under our names (saekit.interop.dictionary), float32."""
    origin: About
    l0: float | None
    """Mean, on the rows that its training evaluated."""

    @property
    def transcodes(self) -> bool:
        return bool(self.config["d_out"])

    @property
    def kind(self) -> str:
        if self.config["parts"]:
            return "crosscoder"
        return "transcoder" if self.transcodes else "autoencoder"

    @property
    def needs(self) -> list[str]:
        """What a format must be able to say."""
        config, norm = self.config, self.config["input_norm"]
        factors = (config["input_factor"], config["output_factor"])
        present = {
            f"{self.code} {self.kind}s": True,
            SKIP: config["skip"],
            OTHER_WIDTH: config["d_out"] not in (0, config["d_in"]),
            f"{self.kind}s with {norm}": norm != "none",
            FACTORS: factors != (1.0, 1.0),
            f"{self.code} {BY_DECODER_NORM}": config["rescale_by_decoder_norm"],
            NEGATIVE_VALUES: config.get("keep_negative", False),
            NEGATIVE: "threshold" in self.tensors and bool((self.tensors["threshold"] < 0).any()),
        }
        return [need for need, applies in present.items() if applies]


class Writer(Protocol):
    """The module of a format that we write."""

    SAYS: frozenset[str]
    """What its files can say, in the words of `Outgoing.needs`."""

    def write(self, path: Path, dictionaries: list[Outgoing]) -> list[str]:
        """Write the files of dictionaries that it can say into the folder. Returns sentences about
        what changed on the way."""
        ...


def outgoing(checkpoint: Checkpoint) -> Outgoing:
    """Raises DataError for a model that is not an SAE, or tensors that do not fit it."""
    description, config = checkpoint.config, checkpoint.config["config"]
    if description["model"] != "sae":
        raise DataError(
            f"{checkpoint.path} holds a {description['model']} model: other programs' formats are"
            " for sparse autoencoders"
        )
    model = restore("sae", config, checkpoint.tensors)
    assert isinstance(model, Dictionary)
    return Outgoing(
        str(checkpoint.path),
        _code(model),
        config,
        checkpoint.tensors,
        _about(description),
        description["result"]["metrics"].get("l0"),
    )


def encoder_bias(dictionary: Outgoing, subtracts: bool) -> tuple[torch.Tensor, list[str]]:
    """(b_enc (F,), notes) for a format that subtracts b_dec from the input, or does not. Where the
    dictionary does the opposite, b_enc changes by W_enc b_dec: in float64, rounded once."""
    tensors = dictionary.tensors
    moves = bool(dictionary.config["subtract_b_dec"]) - subtracts
    if dictionary.transcodes or not moves:
        return tensors["b_enc"], []
    W_enc, b_enc, b_dec = (tensors[name].double() for name in ("W_enc", "b_enc", "b_dec"))
    note = (
        "the format subtracts b_dec from the input, so W_enc b_dec was added to b_enc"
        if subtracts
        else "the format does not subtract b_dec from the input, so W_enc b_dec was taken off b_enc"
    )
    return (b_enc - moves * (W_enc @ b_dec)).float(), [
        f"{note}: codes agree within float32 rounding"
    ]


def _code(model: Dictionary) -> str:
    """How a trained model of this class computes its code."""
    if isinstance(model, LargestOfRows):
        return "topk"
    if isinstance(model, AbsTopK):
        return "abs-topk"
    if model.thresholded:
        return "jumprelu"
    return "relu" if isinstance(model, Penalised) else model.sparsity


def without_folders(name: str | None) -> str | None:
    """The last part of an absolute path, any other name as it is: what may be uploaded does not say
    where models and data are on this machine. A model in the hub's cache has its id."""
    if name is None or not Path(name).is_absolute():
        return name
    cached = re.search(r"/models--([^/]+?)--([^/]+)/snapshots/", f"{name}/")
    return f"{cached[1]}/{cached[2]}" if cached else Path(name).name


def _about(description: dict[str, Any]) -> About:
    known, spec = provenance(description), description["spec"]
    published = description.get("published") or {}
    model, hook = known.model, "+".join(known.hooks) or None
    target = known.target_hook or _hook_of(description["training"].get("target_store"))
    layer = published.get("layer")
    is_text = spec["modality"] in ("text", None)
    return About(
        without_folders(model),
        known.revision,
        hook,
        target,
        layer_of(hook) if layer is None else layer,
        known.context,
        without_folders(spec["dataset"]),
        known.scope,
        published.get("special_tokens") or ({"scope": known.scope} if known.scope else {}),
        lens_name(hook, model) if is_text else None,
        lens_name(target, model) if is_text else None,
    )


def _hook_of(store: str | None) -> str | None:
    """The hook of a target store, where it is still there."""
    try:
        return None if store is None else Store(Path(store)).spec.hook
    except SaekitError:
        return None
