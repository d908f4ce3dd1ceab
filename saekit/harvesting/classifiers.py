"""Image classifiers: a vision model with the head that it was saved with."""

from __future__ import annotations

from typing import Any

import torch

from saekit.embedded.silence import quiet_transformers
from saekit.embedded.weights import check_weights, load_weights
from saekit.errors import DataError, did_you_mean
from saekit.harvesting.location import locate_model
from saekit.harvesting.memory_models import REVISION, load_model_of
from saekit.harvesting.models import FromFolder, LiveModel, assemble
from saekit.harvesting.reading import check_sizes, model_reading
from saekit.types import ActivationSpec

LISTED = 8  # classes in a hint


def load_classifier(name: str, device: str | torch.device = "cpu") -> LiveModel:
    """Load an image model as `load_model` does, with its head: the forward pass returns logits.

    Raises DataError for a model whose class or file has no classification head, and what
    `load_model` raises.
    """
    from transformers import AutoConfig, AutoModelForImageClassification
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    )

    with model_reading("model", name, name):
        where, revision = locate_model(name)
    with quiet_transformers(), model_reading("model", name, where):
        config = AutoConfig.from_pretrained(where, trust_remote_code=False)
        check_sizes(config, name, where)
        if config.model_type not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
            raise no_head(name)
        dtype = torch.float32 if torch.device(device).type == "cpu" else "auto"
        module, report = load_weights(AutoModelForImageClassification, where, dtype=dtype)
        if not check_weights(module, report, name, head=True):
            raise no_head(name)
        module = module.to(device).eval().requires_grad_(False)
    revision = revision or getattr(config, "_commit_hash", None)
    return assemble(module, "vision", name, revision, FromFolder(where))


def load_classifier_of(spec: ActivationSpec, device: str | torch.device = "cpu") -> LiveModel:
    """The image model that a store's rows came from, with its head. Raises the errors of
    `load_classifier`, and MissingError where the weights differ from those of a model that was in
    memory."""
    live = load_classifier(spec.model, device)
    if spec.revision is None or not spec.revision.startswith(REVISION):
        return live
    return load_model_of(spec, given=live.module, processor=live.processor)


def no_head(name: str) -> DataError:
    """The error for an image model without logits."""
    return DataError(
        f"{name} has no classification head, so there are no logits to compare",
        "use a model that was saved with its head (AutoModelForImageClassification)",
    )


def class_names(live: LiveModel) -> list[str]:
    """The names of the classes, in the order of the logits."""
    config: Any = live.module.config
    names: dict[int, str] = config.id2label
    return [names[number] for number in sorted(names)]


def class_number(label: str | int, live: LiveModel) -> int:
    """Of a class by its name or number. Raises DataError."""
    names, text = class_names(live), str(label)
    if text in names:
        return names.index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    listed = ", ".join(names[:LISTED]) + ", ..." * (len(names) > LISTED)
    raise DataError(
        f"{text} is not a class of {live.name}",
        f"{did_you_mean(text, names)}give a number below {len(names):,} or a name: {listed}",
    )


def class_numbers(live: LiveModel, labels: set[str | None]) -> dict[str, int] | None:
    """label of the data -> class of the model; None where one of the labels is not a class.

    A label is the name of a class, or its number where the model's names are the placeholders of
    transformers (LABEL_3). A name that two classes share says nothing about which one is meant.
    """
    names = class_names(live)
    if names == [f"LABEL_{number}" for number in range(len(names))]:
        names = [str(number) for number in range(len(names))]
    numbers = {name: number for number, name in enumerate(names) if names.count(name) == 1}
    known = {label: numbers[label] for label in labels if label is not None and label in numbers}
    return known if labels and len(known) == len(labels) else None
