"""The verb `attack`: pictures that deceive a classifier or a latent, or that are made for one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from saekit.attacks.balls import Ball, Norm
from saekit.attacks.measured import attacked, visualized
from saekit.attacks.page import attack_page, visualize_page, write_pictures
from saekit.attacks.perturb import Method
from saekit.attacks.pixels import Picture
from saekit.attacks.results import AttackResult, VisualizeResult
from saekit.attacks.scores import Direction
from saekit.attacks.target import target_of
from saekit.errors import UsageError, check_choice, opt
from saekit.harvesting.models import LiveModel
from saekit.intervention.subject import borrowed
from saekit.options import Doc
from saekit.store.files import write_bytes
from saekit.store.folder_kinds import ATTACKED
from saekit.store.run_folder import run_folder
from saekit.training.checkpoints import ModelLike
from saekit.types import Progress

Start = Literal["image", "noise"]
Result = AttackResult | VisualizeResult
PAGE = "report.html"
DEFAULT_EPS = {"linf": 8 / 255, "l2": 0.5}
STEPS = {"image": 20, "noise": 256}
FROM_NOISE = "pictures from noise"
PANEL = "Pictures from noise"


def attack(
    source: Annotated[
        ModelLike | LiveModel,
        Doc(
            "An image classifier (embedded:NAME, a folder or hub id), or the checkpoint of a"
            " dictionary of a vision model.",
            metavar="MODEL_OR_CKPT",
            positional=True,
        ),
    ],
    *,
    image: Annotated[
        Sequence[str] | Picture,
        Doc(
            "Picture to change: a file, or embedded:NAME:NUMBER. May be given again.",
            metavar="FILE...",
        ),
    ] = (),
    target: Annotated[
        str | int | None,
        Doc("Class to drive the prediction to (default: any other one).", metavar="CLASS"),
    ] = None,
    label: Annotated[
        str | int | None,
        Doc("True class of the picture (default: what the model predicts).", metavar="CLASS"),
    ] = None,
    latent: Annotated[
        int | None, Doc("Attack this latent of the dictionary in place of a class.")
    ] = None,
    direction: Annotated[Direction, Doc("Raise the latent, or silence it everywhere.")] = "raise",
    method: Annotated[Method, Doc("One step (fgsm), or projected gradient (pgd).")] = "pgd",
    norm: Annotated[
        Norm, Doc("Budget of the largest change of a value (linf) or of the Euclidean norm (l2).")
    ] = "linf",
    eps: Annotated[
        str | float | None,
        Doc(
            "Budget in units of the pixel range, black 0 to white 1 (default: 8/255 for linf, 0.5"
            " for l2).",
            metavar="X",
        ),
    ] = None,
    steps: Annotated[
        int | None, Doc("Steps of pgd, or of the optimizer (default: 20, or 256 from noise).")
    ] = None,
    step_size: Annotated[
        float | None, Doc("Step of pgd in the units of eps (default: 2.5 eps / steps).")
    ] = None,
    restarts: Annotated[
        int, Doc("Starts of pgd: the picture, then random points of the ball; pictures from noise.")
    ] = 1,
    start: Annotated[
        Start,
        Doc("Start from the image, or make a picture for the latent from noise.", flag="from"),
    ] = "image",
    jitter: Annotated[
        int | None,
        Doc("Pixels by which a picture is moved at each step (default: half a patch).", PANEL),
    ] = None,
    tv: Annotated[float | None, Doc("Weight of the total variation (default: 50).", PANEL)] = None,
    lr: Annotated[float | None, Doc("Learning rate of Adam (default: 0.05).", PANEL)] = None,
    fourier: Annotated[
        bool | None, Doc("Optimize frequencies (default); otherwise pixels.", PANEL)
    ] = None,
    store: Annotated[
        str | Path | None,
        Doc(
            "Store with the latent's real top pictures (default: that of the training).",
            PANEL,
            metavar="STORE",
        ),
    ] = None,
    seed: Annotated[int, Doc("Seed of random starts.")] = 0,
    hook: Annotated[
        str | None,
        Doc("Where the dictionary reads (default: where it was trained).", metavar="HOOK"),
    ] = None,
    model: Annotated[
        LiveModel | str | None,
        Doc("Model of a dictionary (default: that of the training).", metavar="MODEL"),
    ] = None,
    out: Annotated[
        str | Path | None,
        Doc("Folder for report.html and the pictures as PNG files.", metavar="DIR"),
    ] = None,
    overwrite: Annotated[bool, Doc("Replace what is in OUT.")] = False,
    progress: Callable[[Progress], None] = lambda _: None,
) -> AttackResult | VisualizeResult:
    """Change pictures within a budget so that a classifier errs or a latent of a dictionary fires
    or falls silent; or make pictures from noise for a latent.

        saekit.attack("embedded:digits-vit", image="embedded:digits:5", eps="16/255")

    Parameters
        source: a name or a LiveModel with its head, as
            `saekit.harvesting.classifiers.load_classifier` returns it; or a dictionary of one hook:
            a checkpoint, a published dictionary or a model in memory, whose classes are attacked
            where `latent` is None.
        image: one or several: files, images of embedded data sets by number or name, or pixels
            (C,h,w) in [0,1] of the size that the model takes.
        target, label: names or numbers of classes, for all images. At most one of them.
        direction: of an attack on a latent.
        eps: a number, or a fraction as a text.
        start: "image" | "noise". "noise" needs `latent`, takes no image, and makes `restarts`
            pictures.
        jitter, tv, lr, fourier, store: only from noise.

    Raises UsageError, DataError, MissingError, NumericsError.
    """
    # what the options say together
    for name, value, choices in (
        ("method", method, ("fgsm", "pgd")),
        ("direction", direction, ("raise", "silence")),
        ("start", start, ("image", "noise")),
    ):
        check_choice(name, value, choices)
    pictures = as_pictures(image)
    made: dict[str, Any] = dict(jitter=jitter, tv=tv, lr=lr, fourier=fourier)
    made = {name: value for name, value in made.items() if value is not None}
    _check_start(start, pictures, latent, target, label, made, store)
    count = STEPS[start] if steps is None else steps
    ball = Ball(norm, DEFAULT_EPS.get(norm, 1.0) if eps is None else parsed_eps(eps))
    aim = target_of(source, model, hook)
    layout = aim.live.image_tokens
    assert layout is not None, "a vision model"
    if start == "image":
        ball.check_fits(layout.channels * math.prod(layout.size))

    def measure() -> Result:
        with borrowed(aim.live.module):
            if start == "noise":
                assert latent is not None
                options = {"steps": count, **made}
                return visualized(aim, latent, options, restarts, seed, store, progress)
            return attacked(
                aim, pictures, target, label, latent, direction, method, ball, count, step_size,
                restarts, seed, progress,
            )  # fmt: skip

    if out is None:
        return measure()
    its = aim.dictionary
    given = {
        "source": aim.live.name if its is None else its.name,
        "image": [str(picture) for picture in pictures if not isinstance(picture, torch.Tensor)]
        or None,
        "target": target, "label": label, "latent": latent, "direction": direction,
        "method": method, "norm": norm, "eps": ball.eps, "steps": count,
        "step_size": step_size, "restarts": restarts,
        "start": start, **made, "store": None if store is None else str(store), "seed": seed,
        "hook": hook, "model": model if isinstance(model, str) else None,
    }  # fmt: skip
    return _written(measure, Path(out), given, overwrite)


def as_pictures(image: Sequence[Any] | Picture) -> list[Picture]:
    """One picture or several as a list."""
    if isinstance(image, (str, Path, torch.Tensor)):
        return [image]
    return list(image)


def parsed_eps(eps: str | float) -> float:
    """0.03 of "0.03"; 8 / 255 of "8/255". Raises UsageError."""
    try:
        if isinstance(eps, str) and "/" in eps:
            above, below = (float(part) for part in eps.split("/"))
            value = above / below
        else:
            value = float(eps)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{opt('eps', eps)} is not a number", "write 8/255 or 0.03")
    return value


def _check_start(
    start: Start,
    pictures: Sequence[Picture],
    latent: int | None,
    target: str | int | None,
    label: str | int | None,
    made: Mapping[str, Any],
    store: str | Path | None,
) -> None:
    """Raise UsageError for options that do not go together."""
    if latent is not None and (target is not None or label is not None):
        wrong = opt("target") if target is not None else opt("label")
        raise UsageError(f"{opt('latent')} and {wrong} are two attacks", "give one of them")
    if target is not None and label is not None:
        raise UsageError(
            f"{opt('target')} says where to, {opt('label')} away from which class",
            "give one of them",
        )
    if start == "noise":
        if latent is None:
            raise UsageError(f"{opt('start', 'noise')} needs {opt('latent')}", "give one")
        if pictures:
            raise UsageError(f"{opt('start', 'noise')} takes no {opt('image')}", "drop one of them")
        return
    if not pictures:
        raise UsageError(
            "there is no picture to change", f"{opt('image')}, or {opt('start', 'noise')}"
        )
    if made or store is not None:
        name = next(iter(made), "store")
        raise UsageError(f"{opt(name)} is for {FROM_NOISE}", f"{opt('start', 'noise')}")


def _written(
    measure: Callable[[], Result], out: Path, given: dict[str, Any], overwrite: bool
) -> Result:
    """The result with its page and pictures in `out`."""
    with run_folder(out, ATTACKED, resume=False, overwrite=overwrite) as folder:
        folder.begin({"attacked": given["source"], "latent": given["latent"]}, given)
        result = replace(measure(), report=str(out / PAGE))
        is_attack = isinstance(result, AttackResult)
        page = attack_page(result) if is_attack else visualize_page(result)
        write_pictures(result, folder.path)
        write_bytes(folder.path / PAGE, page.encode())
    return result
