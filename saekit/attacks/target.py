"""What an attack is on: a classifier, or a dictionary with the model that it was trained on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from saekit.attacks.pixels import PixelScale, pixel_scale
from saekit.attacks.scores import LatentScore, States
from saekit.embedded import PREFIX
from saekit.errors import DataError, UsageError, opt
from saekit.harvesting.classifiers import class_names, class_number, load_classifier, no_head
from saekit.harvesting.models import LiveModel, load_model
from saekit.indexing.maxima import indexed_maxima
from saekit.interop.opening import is_name, open_checkpoint
from saekit.intervention.attach import hooks_of
from saekit.models.autoencoder import Autoencoder
from saekit.models.catalog import check_takes_rows, restore
from saekit.store.checkpoint import Checkpoint
from saekit.training.checkpoints import ModelLike, catalog_name, kind_of, path_or_model
from saekit.types import Scope

LISTED = 20  # classes in an error
CLASSIFIER_KEY = "model_type"  # in the config.json of a transformers model, and in none of ours


@dataclass(frozen=True)
class AttackedDictionary:
    name: str
    model: Autoencoder
    """On the model's device."""
    hook: str
    scope: Scope
    checkpoint: Checkpoint | None
    """None for a model in memory."""

    @cached_property
    def maxima(self) -> torch.Tensor | None:
        """(F,): the largest activation of each latent on the scanned store, if there is one."""
        known = self.checkpoint
        return known and indexed_maxima(known.path, known.config, self.model.latents)

    def maximum(self, latent: int) -> float | None:
        return None if self.maxima is None else float(self.maxima[latent])


@dataclass(frozen=True)
class Target:
    live: LiveModel
    scale: PixelScale
    names: list[str]
    """Of the classes; [] for a model without a head."""
    dictionary: AttackedDictionary | None

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """(B,V) of x (B,C,h,w) in [0,1]. Raises DataError for a model without a head."""
        if not self.names:
            raise no_head(self.live.name)
        return self.live.module(pixel_values=self.scale.to_model(x)).logits

    def number(self, label: str | int) -> int:
        """Of a class by its name or number. Raises DataError."""
        if not self.names:
            raise no_head(self.live.name)
        return class_number(label, self.live)

    def latent_score(self, latent: int, direction: Any) -> LatentScore:
        """Raises UsageError for a target without a dictionary or a latent that it lacks."""
        if self.dictionary is None:
            raise UsageError(
                f"{opt('latent', latent)}: {self.live.name} is a classifier without a dictionary",
                "give the checkpoint of a dictionary",
            )
        its = self.dictionary
        return LatentScore(self.live, self.scale, its.model, its.hook, latent, its.scope, direction)

    @torch.no_grad()
    def largest_activations(self, x: torch.Tensor) -> torch.Tensor:
        """(B,F): of each latent the largest activation over the positions."""
        assert self.dictionary is not None
        its = self.dictionary
        states_BTD = States(self.live, self.scale, its.hook, its.scope)(x)
        return its.model.encode(states_BTD).to_dense().amax(1)


def target_of(
    source: ModelLike | LiveModel,
    model: LiveModel | str | None = None,
    hook: str | None = None,
) -> Target:
    """The target that `attack` names. Raises UsageError, DataError, MissingError."""
    if isinstance(source, LiveModel) or is_classifier(source):
        live = source if isinstance(source, LiveModel) else load_classifier(str(source))
        return _target(live, None)
    opened = path_or_model(source)
    checkpoint = None
    if isinstance(opened, Autoencoder):
        dictionary, name = opened, f"the {kind_of(opened)} dictionary"
    else:
        checkpoint, name = open_checkpoint(opened), opened
        config = checkpoint.config
        dictionary = restore(config["model"], config["config"], checkpoint.tensors)
    check_takes_rows(catalog_name(dictionary), name)
    hooks = hooks_of(checkpoint, dictionary, name, hook)
    if getattr(dictionary.config, "parts", ()) or dictionary.takes != "rows":
        raise UsageError(
            f"{name} does not read the rows of one hook", "give a dictionary of one hook"
        )
    spec = {} if checkpoint is None else checkpoint.config["spec"]
    live = _live(spec, model)
    its = AttackedDictionary(
        name, dictionary.to(live.device).eval(), hooks[0], spec.get("scope", "content"), checkpoint
    )
    return _target(live, its)


def is_classifier(source: object) -> bool:
    """Whether a path or name is that of a model rather than of a dictionary."""
    if not isinstance(source, (str, Path)):
        return False
    if str(source).startswith(PREFIX):
        return True
    path = Path(source)
    if not path.exists():  # a name on the hub: those of dictionaries have a prefix
        return not is_name(str(source))
    try:
        config = json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and CLASSIFIER_KEY in config


def _live(spec: dict[str, Any], given: LiveModel | str | None) -> LiveModel:
    """With its head, where it has one."""
    if isinstance(given, LiveModel):
        return given
    name = given or spec.get("model")
    if not name:
        raise UsageError("the dictionary does not say which model it belongs to", opt("model"))
    if spec.get("modality", "image") != "image":
        raise UsageError(
            f"the dictionary was trained on texts of {name}, whose inputs have no pixels",
            "give a dictionary of a vision model",
        )
    try:
        return load_classifier(name)
    except DataError:
        return load_model(name)  # raises what is wrong besides the head


def _target(live: LiveModel, dictionary: AttackedDictionary | None) -> Target:
    if live.image_tokens is None:
        raise UsageError(f"{live.name} is not a vision model", "give one")
    has_head = "ForImageClassification" in type(live.module).__name__
    if dictionary is None and not has_head:
        raise no_head(live.name)
    return Target(live, pixel_scale(live), class_names(live) if has_head else [], dictionary)
