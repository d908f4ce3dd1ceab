"""Any transformers model, ready to be read from: weights, tokenizer or image processor, and the
layout of its tokens.

Text decoders are loaded with their head (AutoModelForCausalLM: the loss is needed later), text
encoders and vision models without (AutoModel: SAE work needs the hidden states). Only the image
tower of a dual model (CLIP, SigLIP) is run, and only the encoder of an encoder-decoder; hook paths
stay relative to the loaded module (`vision_model.encoder.layers.9`), so that they mean the same
module outside saekit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from saekit.embedded.silence import quiet_transformers
from saekit.embedded.weights import check_weights, load_weights, output_embeddings
from saekit.errors import DataError, MissingError, SaekitError
from saekit.harvesting.blocks import tower_path
from saekit.harvesting.hooks import block_count
from saekit.harvesting.images import ImageTokens, image_processor, image_tokens, ordered_noise
from saekit.harvesting.kinds import Kind, auto_class, check_input, kind_of
from saekit.harvesting.layout import check_layout
from saekit.harvesting.location import locate_model
from saekit.harvesting.probe import hook_widths
from saekit.harvesting.reading import check_sizes, forward_pass, model_reading, not_found

__all__ = ["Kind", "LiveModel", "MissingHead", "load_model", "not_found"]


@dataclass(frozen=True)
class LiveModel:
    """A loaded model: eval mode, no parameter requires a gradient.

    `processor` is the tokenizer of a text model or the image processor of a vision model; None when
    the folder has none. `revision` is the hub commit, `files:<digest>` for local weights, or the
    package of an embedded model.
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
    # False when the file of a causal model has no output head: then `module` returns no logits
    has_head: bool = True
    processor_fault: SaekitError | None = None  # why `processor` is None, with its cause

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
        """The tokenizer. Raises MissingError when the model has none, DataError on an image model
        or a damaged file."""
        if self.modality != "text":
            raise DataError(
                f"{self.name} is an image model and has no tokenizer", "give it images (DATA)"
            )
        if self.processor is None:
            raise self.processor_fault or MissingError(
                f"{self.name} has no tokenizer", "give one with tokenizer="
            )
        return self.processor

    @property
    def output_head(self) -> nn.Module | None:
        """The module from hidden states to logits, if its weights are in the file; None for
        encoders, vision models and files without a head."""
        has_head = self.kind == "causal_lm" and self.has_head
        return output_embeddings(self.module) if has_head else None

    def forward(self, inputs: dict[str, torch.Tensor]) -> Any:
        """Run `tower` on a batch's `inputs`, which are moved to the model's device; images also to
        its dtype."""
        moved: dict[str, Any] = {
            name: value.to(
                self.device,
                self.dtype if value.is_floating_point() else value.dtype,
                non_blocking=True,
            )
            for name, value in inputs.items()
        }
        if self.kind == "causal_lm":
            # one pass per context: a key-value cache would only cost memory
            moved["use_cache"] = False
        tower, known = self.module.get_submodule(self.tower), None
        if self.image_tokens is not None:
            moved |= ordered_noise(tower, self.image_tokens, moved)
            known = self.image_tokens.size_conflict(self.name)
        with forward_pass(self.name, inputs, known):
            return tower(**moved)

    def probe(self, hooks: Sequence[str]) -> dict[str, int]:
        """The width d_in of each hook (see `saekit.harvesting.probe`)."""
        return hook_widths(self, hooks)


def load_model(
    name: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    *,
    processor: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> LiveModel:
    """Load a hub id, a local folder, a .gguf file or `embedded:NAME`.

    dtype None is float32 on the CPU and that of the checkpoint elsewhere. `processor` is a
    tokenizer or image processor to use instead of the model's own. `revision` is a commit, branch
    or tag of a hub id; local weights have none. `trust_remote_code` lets Python code that comes
    with the model run; without it such a model is refused, and there is never a prompt on stdin.

    Raises MissingError when there is nothing to load (the message says whether offline mode is on),
    DataError for a folder without a model, for weights that do not fit the config (transformers
    would fill them with random numbers), damaged files and a kind that is not supported.
    """
    from transformers import AutoConfig

    device = torch.device(device)
    with model_reading("model", name, name):
        where, known = locate_model(name)
    revision = None if known else revision  # what lies on the disk is what it is
    # Config and weights, each checked against the other.
    with quiet_transformers(), model_reading("model", name, where):
        config = AutoConfig.from_pretrained(
            where, revision=revision, trust_remote_code=trust_remote_code
        )
        check_sizes(config, name, where)
        kind = kind_of(config, name)
        number_type = dtype or (torch.float32 if device.type == "cpu" else "auto")
        module, report = load_weights(
            auto_class(kind),
            where,
            dtype=number_type,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        check_input(module, kind, name)
        running = module.get_submodule(path) if (path := tower_path(module)) else None
        has_head = check_weights(module, report, name, running, head=kind == "causal_lm")
        module = module.to(device).eval().requires_grad_(False)
    # What is missing, and what comes with the model.
    notes = []
    if kind == "causal_lm" and not has_head:
        _remove_head(module)
        notes.append(
            "the file has no output head: the hidden states are correct, but there are no logits"
        )
    known = known or getattr(config, "_commit_hash", None)
    if processor is None:
        processor = FromFolder(where, trust_remote_code, revision)
    return assemble(module, kind, name, known, processor, notes, has_head=has_head)


@dataclass(frozen=True)
class FromFolder:
    """A tokenizer or image processor to be read from `where`, a folder or a hub id."""

    where: str
    trust_remote_code: bool = False
    revision: str | None = None


def assemble(
    module: nn.Module,
    kind: Kind,
    name: str,
    revision: str | None,
    processor: Any,
    notes: Sequence[str] = (),
    *,
    has_head: bool = True,
) -> LiveModel:
    """The LiveModel of a module, on its device and in its mode. `processor`: a tokenizer, an image
    processor, a Processor that holds one, or FromFolder.

    For a text model whose tokenizer cannot be read, the error is raised when the tokenizer is first
    needed; an image model is refused. Raises DataError and MissingError.
    """
    from transformers import ProcessorMixin

    # The tokenizer or image processor.
    more, fault, layout, where = (), None, None, name
    if isinstance(processor, FromFolder):
        where = processor.where
        try:
            processor, more = _processor(kind, processor, name)
        except SaekitError as error:
            if kind == "vision":
                raise
            # raised when text is first read; list_hooks needs no tokenizer
            processor, fault = None, error
    elif isinstance(processor, ProcessorMixin):
        processor = getattr(processor, "image_processor" if kind == "vision" else "tokenizer", None)
    if kind == "vision":
        with model_reading("image processor", name, where):
            layout = image_tokens(module, processor, name)
    # The model, whose image layout is checked.
    is_whole = kind == "causal_lm" and not getattr(module.config, "is_encoder_decoder", False)
    live = LiveModel(
        name=name,
        module=module,
        kind=kind,
        processor=processor,
        revision=revision,
        device=next(module.parameters()).device,
        tower="" if is_whole else tower_path(module),
        image_tokens=layout,
        notes=(*notes, *more),
        has_head=has_head,
        processor_fault=fault,
    )
    check_layout(live)
    return live


def _processor(kind: Kind, folder: FromFolder, name: str) -> tuple[Any, tuple[str, ...]]:
    """(tokenizer or image processor, notes)."""
    with (
        quiet_transformers(),
        model_reading("image processor" if kind == "vision" else "tokenizer", name, folder.where),
    ):
        if kind == "vision":
            return image_processor(folder.where, folder.trust_remote_code, folder.revision)
        from transformers import AutoTokenizer

        return (
            AutoTokenizer.from_pretrained(
                folder.where, revision=folder.revision, trust_remote_code=folder.trust_remote_code
            ),
            (),
        )


def _remove_head(module: nn.Module) -> None:
    """Replace the output head by its path: set_output_embeddings may have side effects (BERT reads
    the bias of the new head)."""
    output = output_embeddings(module)
    path = next((path for path, part in module.named_modules() if part is output), None)
    if path:
        module.set_submodule(path, MissingHead())


class MissingHead(nn.Module):
    """Takes the place of the output head in a model whose file has none. It returns logits over
    zero tokens, so that a whole forward pass runs and its output cannot be used by mistake. Code
    that needs logits checks `LiveModel.has_head`."""

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD.new_empty(*x_BTD.shape[:-1], 0)
