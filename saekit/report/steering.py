"""The verb `steer`, for texts and images, and the report that it writes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from saekit.errors import UsageError, opt
from saekit.harvesting.models import LiveModel
from saekit.intervention.steer import SteerResult, steer_text
from saekit.intervention.steer_image import ImageSteerResult, steer_image
from saekit.options import Doc
from saekit.report.steer_page import image_page, text_page
from saekit.store.files import write_bytes
from saekit.store.folder_kinds import STEERED
from saekit.store.run_folder import run_folder
from saekit.training.checkpoints import ModelLike, name_of, path_or_model
from saekit.types import Progress

Result = SteerResult | ImageSteerResult
PAGE = "report.html"
MOST_DOSES = 1000
_NUMBER = r"[+-]?(?:[0-9]{1,9}(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]{1,2})?"
_STRENGTH = re.compile(rf"([0-9]{{1,9}})=(raw:)?({_NUMBER})")
_DOSES = re.compile(rf"({_NUMBER}):({_NUMBER}):([0-9]{{1,4}})")


def steer(
    checkpoint: Annotated[
        ModelLike,
        Doc(
            "Checkpoint: a folder, or a published dictionary by its path or name.",
            metavar="CKPT",
            positional=True,
        ),
    ],
    *,
    prompt: Annotated[str | None, Doc("Text that the model continues.")] = None,
    image: Annotated[
        str | Path | torch.Tensor | None,
        Doc("Image to classify: a file, or embedded:NAME:IMAGE.", metavar="IMAGE"),
    ] = None,
    latents: Annotated[
        Sequence[str] | Mapping[int, float],
        Doc(
            "Add this to a latent: 1234=+4 in multiples of its largest activation on the indexed"
            " store, 1234=raw:4 in the code's own units. May be given again.",
            metavar="LATENT=STRENGTH...",
            flag="latent",
        ),
    ] = (),
    ablate: Annotated[tuple[int, ...], Doc("Latents that are set to 0.")] = (),
    dose: Annotated[
        str | Iterable[float],
        Doc(
            "Measure the latent at N strengths from A to B, beside random directions and random"
            " latents of the same norm.",
            metavar="A:B:N",
        ),
    ] = (),
    chat: Annotated[bool, Doc("The prompt is a user's message in the chat template.")] = False,
    max_new_tokens: Annotated[int, Doc("Length of the texts.")] = 40,
    temperature: Annotated[
        float, Doc("Sample the texts at this temperature; 0 writes greedily.")
    ] = 0.0,
    seeds: Annotated[
        int, Doc("Sampled texts per model and dose; the figures of a dose are their means.")
    ] = 1,
    positions: Annotated[
        Any,
        Doc(
            "Where the edits act. Text: all, prompt, generated, last. Image: all, cls, patches, or"
            " ROW,COLUMN of a patch, several joined by +.",
            metavar="WHERE",
        ),
    ] = "all",
    error: Annotated[
        bool, Doc("Keep the reconstruction error; otherwise the steered model loses it.")
    ] = True,
    raw: Annotated[bool, Doc("All strengths are in the code's own units.")] = False,
    model: Annotated[
        LiveModel | str | None, Doc("Model (default: that of the training).", metavar="MODEL")
    ] = None,
    hook: Annotated[
        str | Sequence[str] | None,
        Doc("Where the dictionary acts (default: where it was trained).", metavar="HOOK..."),
    ] = None,
    seed: Annotated[int, Doc("Seed of the controls, and of the first sampled text.")] = 0,
    out: Annotated[
        str | Path | None,
        Doc("Folder for report.html, one file that opens from disk.", metavar="DIR"),
    ] = None,
    overwrite: Annotated[bool, Doc("Replace what is in OUT.")] = False,
    targets: Annotated[
        Sequence[str] | Sequence[int],
        Doc(
            "Measure the doses on this token, such as ' King', or class of an image, in place of"
            " those that the largest dose raises most. Tokens may be given again.",
            metavar="TOKEN...",
            flag="target",
        ),
    ] = (),
    maxima: torch.Tensor | None = None,
    partial: Callable[[Any], None] = lambda _: None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> SteerResult | ImageSteerResult:
    """What a model writes, or which class it sees, with latents of a dictionary added or ablated.

        saekit.steer("runs/sae", prompt="My dog", latents={1234: 4.0}, dose="-8:8:9")

    Parameters
        checkpoint: as `attach` takes it.
        prompt, image: one of these. image: a file, an embedded image
            (`embedded:digits:8`), or pixel values (C,h,w) as the model takes them.
        latents: latent -> strength, or texts as on the command line.
        dose: strengths of the one latent in `latents`, or "A:B:N".
        positions: as for `attach`; for images also a mask of the grid (H,W).
        model: its name, or the model that `saekit.harvesting.models.load_model` returns (for images
            `saekit.harvesting.classifiers.load_classifier`).
        targets: tokens, written or by number, whose probability together is the effect of a dose;
            (): those that the largest dose raises most after the beginning of a text. For an
            image one class, by name or number.
        maxima: (F,), the largest activation of each latent; None: from the index.
        partial: called with the result so far before the doses and after each.

    When it is interrupted, the report in `out` has the doses that are done. Raises UsageError,
    DataError, MissingError.
    """
    # what the options say together
    if (prompt is None) == (image is None):
        raise UsageError(f"give exactly one of {opt('prompt')}, {opt('image')}")
    strengths, raw = parsed_strengths(latents, raw)
    doses = parsed_doses(dose)
    if not strengths and not ablate:
        raise UsageError("no latent to steer", f"{opt('latents')} or {opt('ablate')}")
    written: dict[str, Any] = dict(
        chat=chat, max_new_tokens=max_new_tokens, temperature=temperature, seeds=seeds
    )
    for_texts = dict(chat=chat, temperature=temperature, seeds=seeds > 1)
    if image is not None and (wrong := [name for name, value in for_texts.items() if value]):
        raise UsageError(f"{opt(wrong[0])} is for texts", f"{opt('prompt')}")
    source = path_or_model(checkpoint)
    common: dict[str, Any] = dict(
        ablate=ablate, dose=doses, model=model, hook=hook, error=error, raw=raw, maxima=maxima,
        positions=positions, seed=seed, targets=targets, progress=progress,
    )  # fmt: skip

    def measure(known: Callable[[Result], None]) -> Result:
        if image is not None:
            return steer_image(source, image, strengths, **common, partial=known)
        assert prompt is not None
        text: dict[str, Any] = common | written
        return steer_text(source, prompt, strengths, partial=known, **text)

    if out is None:
        return measure(partial)
    given = {
        "checkpoint": name_of(source) if isinstance(source, str) else None,
        "model": model if isinstance(model, str) else None,
        "hook": hook if hook is None or isinstance(hook, str) else list(hook),
        "prompt": prompt,
        "image": str(image) if isinstance(image, str | Path) else None,
        "latents": [f"{j}={'raw:' * raw}{value:+g}" for j, value in strengths.items()] or None,
        "ablate": list(ablate) or None,
        "dose": dose if isinstance(dose, str) else None,
        "targets": list(map(str, targets)) or None,
        **written,
        "positions": positions if isinstance(positions, str) else None,
        "error": error,
        "seed": seed,
    }
    with run_folder(Path(out), STEERED, resume=False, overwrite=overwrite) as folder:
        folder.begin({**given, "checkpoint": name_of(source)}, given)
        report = str(Path(out) / PAGE)
        result, stopped = _with_page(measure, partial, folder.path / PAGE, report, name_of(source))
    if stopped is not None:
        raise stopped
    return result


def _with_page(
    measure: Callable[[Callable[[Result], None]], Result],
    partial: Callable[[Result], None],
    path: Path,
    report: str,
    name: str,
) -> tuple[Result, KeyboardInterrupt | None]:
    """The result and its page at `path`; after Ctrl-C these of what was done, with the interrupt.
    `report`: the path that users will know it by."""
    known: list[Result] = []

    def keep(result: Result) -> None:
        known.append(result)
        partial(result)

    stopped: KeyboardInterrupt | None = None
    try:
        result = measure(keep)
    except KeyboardInterrupt as interrupt:
        if not known:
            raise
        result, stopped = known[-1], interrupt
    result = replace(result, report=report)
    page = text_page(result, name) if isinstance(result, SteerResult) else image_page(result, name)
    write_bytes(path, page.encode())
    if stopped is not None:  # with the page's path
        partial(result)
    return result, stopped


def parsed_strengths(
    latents: Sequence[str] | Mapping[int, float], raw: bool
) -> tuple[dict[int, float], bool]:
    """(latent -> strength, whether in the code's own units). Raises UsageError."""
    if isinstance(latents, Mapping):
        return dict(latents), raw
    texts = [latents] if isinstance(latents, str) else list(latents)
    strengths: dict[int, float] = {}
    units = set[bool]()
    for text in texts:
        match = _STRENGTH.fullmatch(text)
        if match is None:
            raise UsageError(
                f"{opt('latents')}: {text!r} is not LATENT=STRENGTH", "write 1234=+4 or 1234=raw:4"
            )
        if int(match[1]) in strengths:
            raise UsageError(f"latent {match[1]} is given twice", "give each once")
        strengths[int(match[1])] = float(match[3])
        units.add(raw or match[2] is not None)
    if len(units) > 1:
        raise UsageError(
            f"{opt('latents')}: some strengths are raw and others are not",
            "write raw: before all or none",
        )
    return strengths, raw or True in units


def parsed_doses(dose: str | Iterable[float]) -> tuple[float, ...]:
    """The strengths: "-8:8:9" is 9 from -8 to 8. Raises UsageError."""
    if isinstance(dose, str):
        match = _DOSES.fullmatch(dose)
        if match is None or not 1 <= int(match[3]) <= MOST_DOSES:
            raise UsageError(f"{opt('dose')}: {dose!r} is not A:B:N", "write -8:8:9")
        return tuple(np.linspace(float(match[1]), float(match[2]), int(match[3])).tolist())
    doses = tuple(float(value) for value in dose)
    if not all(map(math.isfinite, doses)):
        raise UsageError(f"{opt('dose')} has strengths that are not finite")
    return doses
