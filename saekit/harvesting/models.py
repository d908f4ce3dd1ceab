"""Any transformers model, ready to be read from: weights, tokenizer or image processor, and what is known of its tokens.

Text decoders load with their head (AutoModelForCausalLM: the loss is wanted later), text encoders and vision models without
(AutoModel: SAE work needs the hidden states). Of a dual model (CLIP, SigLIP) only the image tower is run, of an encoder-decoder
only the encoder; hook paths stay relative to the loaded module (`vision_model.encoder.layers.9`), so that they mean the same
module in anyone's hands.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from saekit.embedded import is_embedded, model_folder
from saekit.embedded.dequantise import dequantised_folder, file_digest
from saekit.embedded.silence import quiet_transformers
from saekit.errors import DataError, MissingError
from saekit.harvesting.blocks import tower_path
from saekit.harvesting.hooks import block_count
from saekit.harvesting.images import ImageTokens, image_processor, image_tokens
from saekit.harvesting.probe import hook_widths

Kind = Literal["causal_lm", "text_encoder", "vision"]


@dataclass(frozen=True)
class LiveModel:
    """A loaded model: eval mode, no parameter asks for a gradient.

    `processor` is the tokenizer of a text model, the image processor of a vision model; None when the folder has none.
    `revision` is the hub commit, `files:<digest>` for local weights, or the package that carries an embedded model.
    """

    name: str
    module: nn.Module
    kind: Kind
    processor: Any
    revision: str | None
    device: torch.device
    tower: str = ""  # path of the part that is run; '' is the whole model
    image_tokens: ImageTokens | None = None
    notes: tuple[str, ...] = field(default=())  # what the user should know, one line each

    @property
    def modality(self) -> Literal["text", "image"]:
        return "image" if self.kind == "vision" else "text"

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    @property
    def blocks(self) -> int:
        return block_count(self.module)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer; raises MissingError when the model came without one, DataError on an image model."""
        if self.modality != "text":
            raise DataError(f"{self.name} is an image model and has no tokenizer", "give it images (DATA)")
        if self.processor is None:
            raise MissingError(f"{self.name} has no tokenizer", "put tokenizer.json and tokenizer_config.json beside its weights")
        return self.processor

    def forward(self, inputs: dict[str, torch.Tensor]) -> Any:
        """Run the part that is hooked (`tower`) on a batch's `inputs`, moved to the model's device; images in its dtype."""
        moved = {
            name: value.to(self.device, self.dtype if value.is_floating_point() else value.dtype, non_blocking=True)
            for name, value in inputs.items()
        }
        if self.kind == "causal_lm":
            moved["use_cache"] = False  # one pass a context: a key-value cache would only cost memory
        return self.module.get_submodule(self.tower)(**moved)

    def probe(self, hooks: Sequence[str]) -> dict[str, int]:
        """The width d_in of each hook (see `saekit.harvesting.probe`)."""
        return hook_widths(self, hooks)


def load_model(name: str, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> LiveModel:
    """Load a hub id, a local folder, a .gguf file or `embedded:NAME`.

    dtype None is float32 on the CPU and the checkpoint's own elsewhere. Raises MissingError when there is nothing to load (says
    whether offline mode is on), DataError for a folder that holds no model or a kind that is not supported.
    """
    from transformers import AutoConfig

    where, revision = _locate(name)
    device = torch.device(device)
    with quiet_transformers(), _loading_errors(name):
        config = AutoConfig.from_pretrained(where)
        kind = _kind(config, name)
        module = _auto_class(kind).from_pretrained(where, dtype=dtype or (torch.float32 if device.type == "cpu" else "auto"))
        _check_input(module, kind, name)
    module = module.to(device).eval().requires_grad_(False)
    with quiet_transformers():
        processor, notes = image_processor(where) if kind == "vision" else (_tokenizer(where), ())
    return LiveModel(
        name=name,
        module=module,
        kind=kind,
        processor=processor,
        revision=revision or getattr(config, "_commit_hash", None),
        device=device,
        tower=tower_path(module) if kind == "vision" or config.is_encoder_decoder else "",
        image_tokens=image_tokens(module, processor, name) if kind == "vision" else None,
        notes=notes,
    )


# --- finding ------------------------------------------------------------------------------------------------------------------


def _locate(name: str) -> tuple[str, str | None]:
    """(what from_pretrained takes, revision where it is known without the hub)."""
    if is_embedded(name):
        folder, revision = model_folder(name)
        return str(folder), revision
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise DataError(f"{name} holds no config.json, so it is not a transformers model", _nearest_model(path))
        return str(path), _folder_revision(path)
    if path.is_file():
        if path.suffix != ".gguf":
            raise DataError(f"{name} is a file, not a model", "MODEL is a hub id, a model folder or a .gguf file")
        return str(dequantised_folder(path)), f"files:{file_digest(path)}"
    if path.suffix == ".gguf" or name.startswith((".", "~", os.sep)) or name.count("/") > 1:
        raise MissingError(f"there is no model at {name}", "check the path")
    return name, None


def _nearest_model(path: Path) -> str:
    below = next((each.parent for each in sorted(path.glob("*/config.json"))), None)
    return f"did you mean {below}?" if below else "save it with model.save_pretrained(folder)"


def _folder_revision(path: Path) -> str:
    """Digest of configuration and weights: another fine-tuning saved in the same place is another model."""
    import hashlib

    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.name == "config.json" or file.suffix in (".safetensors", ".bin"):
            digest.update(f"{file.name} {file_digest(file)}\n".encode())
    return f"files:{digest.hexdigest()[:16]}"


@contextmanager
def _loading_errors(name: str) -> Iterator[None]:
    """Turns what transformers raises on loading into a MissingError or DataError with a next step."""
    try:
        yield
    except OSError as error:
        raise not_found("model", name, error) from error
    except (ValueError, KeyError) as error:
        raise DataError(
            f"{name} cannot be loaded by transformers: {_first_line(error)}",
            "saekit reads text decoders, text encoders and vision transformers that transformers knows",
        ) from error


def not_found(what: str, name: str, error: Exception) -> MissingError:
    """The MissingError for a hub id that gave `error`: not there, gated, or unreachable; says whether offline mode is on."""
    from huggingface_hub import constants

    text = str(error).lower()
    if constants.HF_HUB_OFFLINE:
        return MissingError(
            f"{what} {name} is not in the local cache, and offline mode is on (HF_HUB_OFFLINE=1)",
            f"unset HF_HUB_OFFLINE, give a local folder, or choose an embedded {what} (embedded:NAME)",
        )
    if "gated" in text or "401" in text or "403" in text:
        token = "a token is set" if os.environ.get("HF_TOKEN") else "no token is set"
        return MissingError(
            f"{what} {name} is gated or private, or does not exist ({token}; offline mode is off)",
            "ask for access on its hub page, then run hf auth login",
        )
    if "connect" in text or "reach" in text:
        return MissingError(
            f"{what} {name} is not in the local cache, and the hub cannot be reached (offline mode is off)",
            f"check the network, or give a local folder or an embedded {what} (embedded:NAME)",
        )
    return MissingError(
        f"{what} {name} was not found: {_first_line(error)} (offline mode is off)",
        f"check the id and the network, or give a local folder or an embedded {what} (embedded:NAME)",
    )


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


# --- kinds --------------------------------------------------------------------------------------------------------------------


def _kind(config: Any, name: str) -> Kind:
    """By what the config says: an image size makes a vision model; of the text models those with masked-language or
    encoder-decoder pretraining are encoders, unless they were saved as a causal model."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        MODEL_MAPPING_NAMES,
    )

    kind, architecture = config.model_type, (getattr(config, "architectures", None) or [""])[0]
    causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if hasattr(config, "vision_config"):
        return "causal_lm" if causal else "vision"
    if hasattr(config, "image_size") or hasattr(config, "patch_size"):
        return "vision"
    if causal and (architecture.endswith(("ForCausalLM", "LMHeadModel")) or getattr(config, "is_decoder", False)):
        return "causal_lm"
    if config.is_encoder_decoder or kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "text_encoder"
    if causal:
        return "causal_lm"
    if kind in MODEL_MAPPING_NAMES:
        return "text_encoder"
    raise DataError(f"{name} is a {kind} model, which saekit cannot read", "choose a language or vision transformer")


def _check_input(module: nn.Module, kind: Kind, name: str) -> None:
    """Models of sound or video pass for text encoders by their config; what their forward pass takes tells them apart."""
    tower = module.get_submodule(tower_path(module))
    takes = inspect.signature(tower.forward).parameters
    if ("pixel_values" if kind == "vision" else "input_ids") not in takes:
        raise DataError(
            f"{name} ({type(module).__name__}) takes neither text nor images of one size: {', '.join(list(takes)[:3])}, ...",
            "choose a language or vision transformer",
        )


def _auto_class(kind: Kind) -> Any:
    from transformers import AutoModel, AutoModelForCausalLM

    return AutoModelForCausalLM if kind == "causal_lm" else AutoModel


def _tokenizer(where: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(where)
    except (OSError, ValueError, KeyError):
        return None  # LiveModel.tokenizer says so when it is first needed; --list-hooks needs none
