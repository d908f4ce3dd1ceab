"""Names of base models: short ones as hub ids, and whether two of them name one model."""

from __future__ import annotations

import re
from pathlib import Path

from saekit.types import IN_MEMORY

# owner on the hub -> models that TransformerLens calls by their name only
_OWNERS = {
    "openai-community": "gpt2 gpt2-medium gpt2-large gpt2-xl",
    "distilbert": "distilgpt2",
    "EleutherAI": (
        "pythia-14m pythia-31m pythia-70m pythia-160m pythia-410m pythia-1b pythia-1.4b"
        " pythia-2.8b pythia-6.9b pythia-12b pythia-70m-deduped pythia-160m-deduped"
        " pythia-410m-deduped pythia-1b-deduped pythia-1.4b-deduped pythia-2.8b-deduped"
        " pythia-6.9b-deduped pythia-12b-deduped gpt-neo-125M gpt-neo-1.3B gpt-neo-2.7B gpt-j-6B"
        " gpt-neox-20b"
    ),
    "google": (
        "gemma-2b gemma-2b-it gemma-7b gemma-7b-it gemma-2-2b gemma-2-2b-it gemma-2-9b"
        " gemma-2-9b-it gemma-2-27b gemma-2-27b-it gemma-3-270m gemma-3-270m-it gemma-3-1b-pt"
        " gemma-3-1b-it gemma-3-4b-pt gemma-3-4b-it gemma-3-12b-pt gemma-3-12b-it gemma-3-27b-pt"
        " gemma-3-27b-it"
    ),
    "meta-llama": (
        "Llama-2-7b-hf Llama-2-7b-chat-hf Llama-2-13b-hf Llama-2-13b-chat-hf Meta-Llama-3-8B"
        " Meta-Llama-3-8B-Instruct Llama-3.1-8B Llama-3.1-8B-Instruct Llama-3.2-1B"
        " Llama-3.2-1B-Instruct Llama-3.2-3B Llama-3.2-3B-Instruct Llama-3.3-70B-Instruct"
    ),
    "Qwen": (
        "Qwen2-0.5B Qwen2-1.5B Qwen2-7B Qwen2.5-0.5B Qwen2.5-1.5B Qwen2.5-3B Qwen2.5-7B"
        " Qwen2.5-14B Qwen2.5-32B Qwen2.5-0.5B-Instruct Qwen2.5-1.5B-Instruct Qwen2.5-3B-Instruct"
        " Qwen2.5-7B-Instruct Qwen3-0.6B Qwen3-1.7B Qwen3-4B Qwen3-8B Qwen3-14B Qwen3-0.6B-Base"
        " Qwen3-1.7B-Base Qwen3-4B-Base Qwen3-8B-Base"
    ),
    "mistralai": "Mistral-7B-v0.1 Mistral-7B-Instruct-v0.1",
    "microsoft": "phi-1 phi-1_5 phi-2",
    "openai": "gpt-oss-20b clip-vit-base-patch16 clip-vit-base-patch32 clip-vit-large-patch14",
    "HuggingFaceTB": "SmolLM2-135M SmolLM2-360M SmolLM2-1.7B",
}
# names of TransformerLens that are not the model's on the hub
_OTHER_NAMES = {
    "gpt2-small": "gpt2",
    "distillgpt2": "distilgpt2",
    "mistral-7b": "Mistral-7B-v0.1",
    "mistral-7b-instruct": "Mistral-7B-Instruct-v0.1",
    "llama-2-7b": "Llama-2-7b-hf",
    "llama-2-7b-chat": "Llama-2-7b-chat-hf",
    "llama-2-13b": "Llama-2-13b-hf",
    "llama-2-13b-chat": "Llama-2-13b-chat-hf",
    "llama-3-8b": "Meta-Llama-3-8B",
}
_HUB_IDS = {
    name.lower(): f"{owner}/{name}" for owner, names in _OWNERS.items() for name in names.split()
}
_QUANTIZED = re.compile(r"[-._](?:i?q\d\w*|f16|f32|bf16)$")  # in the name of a .gguf file


def hub_id(name: str) -> str:
    """`openai-community/gpt2` of `gpt2-small`; the name itself where it is not a short one."""
    name = name.removeprefix("https://huggingface.co/")
    key = _OTHER_NAMES.get(name.lower(), name).lower()
    return _HUB_IDS.get(key, name)


def same_model(one: str, other: str) -> bool:
    """Whether both names may be of one model: hub ids, short names, folders and .gguf files are
    compared without their owner or folder. A class name of a model in memory is not compared."""
    if one.endswith(IN_MEMORY) != other.endswith(IN_MEMORY):
        return True
    return _key(one) == _key(other)


def _key(name: str) -> str:
    name = hub_id(name.rstrip("/"))
    # a snapshot in the hub's cache
    if match := re.search(r"models--.+?--([^/]+)/snapshots/", f"{name}/"):
        return match[1].lower()
    name = name.removeprefix("embedded:")
    key = Path(name).name.lower()
    return _QUANTIZED.sub("", key.removesuffix(".gguf")) if key.endswith(".gguf") else key
