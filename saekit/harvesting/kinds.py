"""Which of the three kinds of model a folder holds, by its config before it is loaded, and by its
forward pass after."""

from __future__ import annotations

import inspect
from typing import Any, Literal

from torch import nn

from saekit.errors import DataError
from saekit.harvesting.blocks import tower_path

Kind = Literal["causal_lm", "text_encoder", "vision"]


def kind_of(config: Any, name: str, architecture: str | None = None) -> Kind:
    """The kind, by the config: a model with an image size is a vision model; text models with
    masked-language or encoder-decoder pretraining are encoders, unless they were saved as a causal
    model. `architecture` is the class of a model in memory, which its config may lack. Raises
    DataError for other kinds."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        MODEL_MAPPING_NAMES,
    )

    kind = config.model_type
    saved_as: str = architecture or (getattr(config, "architectures", None) or [""])[0]
    causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    # Text and images in one sequence: refused, with a way to save the text model.
    if (
        not causal
        and hasattr(config, "text_config")
        and kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
        and kind != "blip"
    ):
        raise DataError(
            f"{name} is a {kind} model, which reads text and images in one sequence; saekit reads"
            " models of text or of images",
            f'save only its language model: python -c "from transformers import'
            f" AutoModelForImageTextToText as A, AutoTokenizer as T; "
            f"A.from_pretrained('{name}').model.language_model.save_pretrained('text-model'); "
            f"T.from_pretrained('{name}').save_pretrained('text-model')\", then saekit harvest"
            " text-model ...",
        )
    # Vision, then text.
    if hasattr(config, "vision_config"):
        return "causal_lm" if causal else "vision"
    if hasattr(config, "image_size") or hasattr(config, "patch_size"):
        return "vision"
    if causal and (
        saved_as.endswith(("ForCausalLM", "LMHeadModel")) or getattr(config, "is_decoder", False)
    ):
        return "causal_lm"
    if config.is_encoder_decoder or kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "text_encoder"
    if causal:
        return "causal_lm"
    if kind in MODEL_MAPPING_NAMES:
        return "text_encoder"
    raise DataError(
        f"{name} is a {kind} model, which saekit cannot read",
        "choose a language or vision transformer",
    )


def check_input(module: nn.Module, kind: Kind, name: str) -> None:
    """Raise DataError when the forward pass takes other inputs: by their config, models of sound or
    video look like text encoders."""
    tower = module.get_submodule(tower_path(module))
    takes = inspect.signature(tower.forward).parameters
    expected = "pixel_values" if kind == "vision" else "input_ids"
    required = [
        name
        for name, parameter in takes.items()
        if parameter.default is parameter.empty
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    if expected not in takes or set(required) - {expected}:
        raise DataError(
            f"{name} ({type(module).__name__}) takes neither text nor images of one size:"
            f" {', '.join(list(takes)[:3])}, ...",
            "choose a language or vision transformer",
        )


def auto_class(kind: Kind) -> Any:
    from transformers import AutoModel, AutoModelForCausalLM

    return AutoModelForCausalLM if kind == "causal_lm" else AutoModel
