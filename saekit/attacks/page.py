"""The page of `attack`, and its pictures as PNG files.

The difference is shown tenfold around gray: 0.5 + 10 (after - before), clipped.
"""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image

from saekit.attacks.pixels import LEVELS
from saekit.attacks.results import AttackedImage, AttackResult, State, VisualizeResult
from saekit.embedded import PREFIX, credit
from saekit.report.charts import lines
from saekit.report.images import sheet
from saekit.report.page import Panel, cell, document, figure, note, number, picture, table
from saekit.store.files import write_bytes

TIMES = 10
SIDE = 168
"""Pixels of a picture's side on the page, at least."""
DOTS = 64  # of a chart
LEAD_ATTACK = "Pictures changed within a budget, and what the model makes of them."
LEAD_NOISE = "Pictures made from noise for a latent, beside those on which it is strongest."
BUDGET = (
    "eps, linf and l2 are in units of the pixel range, black 0 to white 1. Difference: 0.5 + 10"
    " (after - before), clipped: changes above 12.75/255 look alike."
)
ROUNDED = "Rounded: the changed picture in 8 bits, as its PNG file holds it."
JUDGED = (
    "Activation: in the code, the largest over the positions. Pre-activation: before competition"
    " and threshold."
)


def difference(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """(C,h,w) in [0,1]: the tenfold change around gray."""
    return (0.5 + TIMES * (after - before)).clamp(0, 1)


def attack_page(result: AttackResult) -> str:
    """One HTML file. Equal results give equal bytes."""
    panels = []
    for image, (before, after) in zip(result.images, result.pixels):
        shown = torch.stack([before, after, difference(before, after)])
        captions = ["before", "after", f"difference x {TIMES}"]
        drawn = picture(_sheet(shown, captions), f"{image.image} before and after")
        panels.append(Panel(image.image, figure(drawn) + _states(image, result) + _latents(image)))
    panels[0] = dataclasses.replace(panels[0], html=panels[0].html + note(f"{BUDGET} {ROUNDED}"))
    levels = f" ({result.eps * LEVELS:.3g}/{LEVELS})" * (result.norm == "linf")
    facts = [
        ("objective", result.objective),
        ("method", f"{result.method}, {_counted(result.steps, 'step')}"),
        ("starts", str(result.restarts)),
        ("budget", f"{result.norm} {result.eps:.4g}{levels}"),
        ("outcome", result.summary),
        *_credits([image.image for image in result.images]),
    ]
    return document(
        f"Attack · {result.model}", LEAD_ATTACK, facts, panels, {"attack": numbers(result)}
    )


def visualize_page(result: VisualizeResult) -> str:
    """The same for pictures from noise."""
    captions = [f"{image.activation:.3g}" for image in result.images]
    made = _sheet(torch.stack(result.pixels), captions)
    panels = [Panel("From noise", figure(picture(made, "made pictures"), JUDGED) + _made(result))]
    if result.top:
        real = _sheet(torch.stack(result.top_pixels), [f"{value:.3g}" for _, value in result.top])
        names = ", ".join(name for name, _ in result.top)
        panels.append(
            Panel("Strongest in the store", figure(picture(real, "real pictures"), names))
        )
    steps = list(range(0, len(result.curve), max(len(result.curve) // DOTS, 1)))
    chart = lines(
        {"largest so far": ([step + 1 for step in steps], [result.curve[step] for step in steps])},
        title="Score reached", x_label="step", y_label="score",
    )  # fmt: skip
    panels.append(Panel("Steps", figure(chart)))
    maximum = "not known" if result.maximum is None else f"{result.maximum:.4g}"
    share = "" if result.share is None else f" ({result.share:.2f} times)"
    facts = [
        ("latent", str(result.latent)),
        ("activation", f"{result.images[0].activation:.4g}{share}"),
        ("maximum in the store", maximum),
        *_credits([PREFIX + "openmoji"] if "openmoji" in result.model else []),
    ]
    title = f"Latent {result.latent} from noise · {result.model}"
    return document(title, LEAD_NOISE, facts, panels, {"attack": numbers(result)})


def write_pictures(result: AttackResult | VisualizeResult, folder: Path) -> None:
    """before-N.png, after-N.png and difference-N.png, or made-N.png, one pixel per pixel."""
    if isinstance(result, VisualizeResult):
        for index, pixels in enumerate(result.pixels):
            write_bytes(folder / f"made-{index}.png", png(pixels))
        return
    for index, (before, after) in enumerate(result.pixels):
        shown = {"before": before, "after": after, "difference": difference(before, after)}
        for name, pixels in shown.items():
            write_bytes(folder / f"{name}-{index}.png", png(pixels))


def png(pixels: torch.Tensor) -> bytes:
    """(C,h,w) in [0,1] as a PNG file of the nearest of 256 levels."""
    levels_hwC = rearrange((pixels.float() * LEVELS).round(), "c h w -> h w c").byte().numpy()
    image = Image.fromarray(levels_hwC[..., 0] if levels_hwC.shape[2] == 1 else levels_hwC)
    encoded = io.BytesIO()
    image.save(encoded, "PNG", optimize=True)
    return encoded.getvalue()


def numbers(result: AttackResult | VisualizeResult) -> dict[str, Any]:
    """The result as JSON holds it: without pixels."""
    fields = dataclasses.asdict(dataclasses.replace(result, pixels=[]))
    return {
        name: value for name, value in fields.items() if name not in ("pixels", "top_pixels")
    } | ({"share": result.share} if isinstance(result, VisualizeResult) else {})


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number > 1)}"


def _sheet(images_NChw: torch.Tensor, captions: list[str]) -> Image.Image:
    """One row, each pixel a square."""
    images = np.asarray(rearrange(images_NChw.float(), "n c h w -> n h w c"))
    return sheet(images, len(images), captions, zoom=max(SIDE // images.shape[1], 1))


def _states(image: AttackedImage, result: AttackResult) -> str:
    on_latent = result.latent is not None
    rows = [
        ("", [cell(name, "left"), *_state(state, on_latent)])
        for name, state in (
            ("before", image.before), ("after", image.after), ("rounded", image.rounded),
        )
    ]  # fmt: skip
    header = ("", "class", "probability", *(["activation"] if on_latent else []))
    wanted = f"target {image.target}" if image.target else f"away from {image.label}"
    aim = result.objective if on_latent else wanted
    sizes = f"linf {image.linf:.4f}, l2 {image.l2:.4f}"
    verdict = {True: "succeeded", False: "failed", None: "already so"}[image.success]
    return table(header, rows, 2) + note(f"{aim}: {verdict}; {sizes}")


def _state(state: State, on_latent: bool) -> list[str]:
    return [
        cell(state.label or "–", "left"),
        cell("–" if state.probability is None else f"{state.probability:.2%}"),
        *([cell(number(state.activation, ".3f"))] if on_latent else []),
    ]


def _latents(image: AttackedImage) -> str:
    rows = [
        ("", [cell(str(c.index), "left"), cell(f"{c.before:.3f}"), cell(f"{c.after:.3f}")])
        for c in image.latents
    ]
    return table(("latent that changes most", "before", "after"), rows) if rows else ""


def _made(result: VisualizeResult) -> str:
    rows = [
        ("", [
            cell(str(index), "left"), cell(image.label or "–", "left"),
            cell("–" if image.probability is None else f"{image.probability:.2%}"),
            cell(f"{image.activation:.3f}"), cell(f"{image.preactivation:.3f}"),
        ])
        for index, image in enumerate(result.images)
    ]  # fmt: skip
    return table(("picture", "class", "probability", "activation", "pre-activation"), rows, 2)


def _credits(names: list[str]) -> list[tuple[str, str]]:
    """The attributions that the licenses of embedded data sets require."""
    sets = {PREFIX + name.removeprefix(PREFIX).partition(":")[0] for name in names}
    owed = [text for name in sorted(sets) if (text := credit(name)) is not None]
    return [("pictures", text) for text in owed]
