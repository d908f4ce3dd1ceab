"""The page of `steer`: clean and steered side by side, and the dose-response chart with its
controls."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from html import escape
from statistics import fmean

import numpy as np

from saekit.intervention.steer import Dose, SteerResult
from saekit.intervention.steer_image import ImageSteerResult
from saekit.intervention.steered_text import Continuation, TokenChange
from saekit.report.axes import PAPER, Frame, color, padded
from saekit.report.images import sheet
from saekit.report.page import Panel, cell, document, figure, note, number, picture, table

LEAD = "A model with latents of a dictionary added or ablated, beside the same model without."
CONTROLS_NOTE = (
    "Effect: mean change of the log-probability of the target tokens together, in nats, over the"
    " clean text. Controls have the latent's norm: an effect that they have too is none of this"
    " latent."
)
MOST_CLASSES = 20
HUES = {"latent": 0, "random directions": 1, "random latents": 2}


def text_page(result: SteerResult, name: str) -> str:
    """One HTML file. Equal results give equal bytes."""
    rows = [
        _text_row("clean", result.clean.text, result.clean.kl, result.clean.perplexity),
        _text_row("steered", result.steered.text, result.steered.kl, result.steered.perplexity),
    ]
    about = (
        "KL(clean || steered) per token, in nats. Perplexity: of the text under the clean model."
    )
    header = ("", "text", "mean KL", "perplexity")
    panels = [
        Panel("Texts", note(f"Prompt: {result.prompt}") + table(header, rows, 2) + note(about)),
        Panel("KL per token", _kl("clean", result.clean) + _kl("steered", result.steered)),
        Panel(
            "Next token", _changes(result.raised, "raised") + _changes(result.lowered, "lowered")
        ),
    ]
    if result.doses:
        panels.insert(1, Panel("Dose and response", _doses(result)))
    facts = [("edits", "; ".join(result.edits)), ("doses", str(len(result.doses)))]
    numbers = {"steer": dataclasses.asdict(result) | {"report": None}}
    return document(f"Steering · {name}", LEAD, facts, panels, numbers)


def image_page(result: ImageSteerResult, name: str) -> str:
    """The same for an image: classes, and which patch matters."""
    shown = result.classes[:MOST_CLASSES]
    rows = [
        ("", [cell(c.label, "left"), cell(f"{c.clean:.2%}"), cell(f"{c.steered:.2%}")])
        for c in shown
    ]
    left_out = len(result.classes) - len(shown)
    more = note(f"{left_out:,} less probable classes are in the numbers of this file.")
    kl_HW = np.asarray(result.patches)
    largest = float(kl_HW.max())
    map_HW = kl_HW / largest if largest > 0 else kl_HW
    drawn = picture(sheet(map_HW[None], 1, zoom=32), "KL by the patch that is edited")
    caption = f"KL(clean || steered) where only this patch is edited; white is {largest:.3g} nats."
    classes = table(("class", "clean", "steered"), rows) + (more if left_out else "")
    panels = [Panel("Classes", classes), Panel("Patches", figure(drawn, caption))]
    facts = [("edits", "; ".join(result.edits)), ("KL", f"{result.kl:.4f} nats")]
    numbers = {"steer": dataclasses.asdict(result) | {"report": None}}
    return document(f"Steering · {name}", LEAD, facts, panels, numbers)


def _text_row(name: str, text: str, kl: list[float], perplexity: float) -> tuple[str, list[str]]:
    words = f'<td class="left text">{escape(text)}</td>'
    return "", [cell(name, "left"), words, cell(number(fmean(kl))), cell(number(perplexity, ".2f"))]


def _kl(name: str, part: Continuation) -> str:
    """The tokens of a text with their KL(clean || steered)."""
    rows = [
        ("", [cell(repr(token), "left"), cell(number(kl))])
        for token, kl in zip(part.tokens, part.kl)
    ]
    return table((f"{name} text", "KL"), rows)


def _changes(changes: Sequence[TokenChange], title: str) -> str:
    rows = [
        ("", [
            cell(repr(change.token), "left"),
            cell(number(change.clean, ".3f")),
            cell(number(change.steered, ".3f")),
            cell(number(change.steered - change.clean, "+.3f")),
        ])
        for change in changes
    ]  # fmt: skip
    return table((f"most {title}", "clean log p", "steered log p", "change"), rows)


def _doses(result: SteerResult) -> str:
    header = (
        "strength",
        "effect",
        "random directions",
        "random latents",
        "KL",
        "perplexity",
        "text",
    )
    rows = [
        ("", [
            cell(f"{dose.strength:+g}", "left"),
            cell(f"{dose.effect:+.3f}"),
            cell(spread(dose.random_directions)),
            cell(spread(dose.random_latents)),
            cell(number(dose.kl)),
            cell(number(dose.perplexity, ".2f")),
            f'<td class="left text">{escape(dose.text)}</td>',
        ])
        for dose in sorted(result.doses, key=lambda dose: dose.strength)
    ]  # fmt: skip
    targets = note("Target tokens: " + ", ".join(map(repr, result.targets)))
    verdict = f"<p><strong>{escape(result.verdict)}</strong></p>" if result.verdict else ""
    return verdict + _chart(result.doses) + targets + table(header, rows) + note(CONTROLS_NOTE)


def spread(values: Sequence[float]) -> str:
    """Smallest to largest effect of the controls of one kind."""
    return f"{min(values):+.3f} to {max(values):+.3f}" if values else "-"


def _chart(doses: Sequence[Dose]) -> str:
    """The effect of the latent as a line, each control as a point."""
    drawn = sorted(doses, key=lambda dose: dose.strength)
    series = {
        "latent": [[dose.effect] for dose in drawn],
        "random directions": [dose.random_directions for dose in drawn],
        "random latents": [dose.random_latents for dose in drawn],
    }
    values = [value for rows in series.values() for row in rows for value in row]
    strengths = [dose.strength for dose in drawn]
    frame = Frame(
        "Dose and response",
        "strength",
        "effect (nats)",
        padded(strengths[0], strengths[-1]),
        padded(min(values), max(values)),
        [(name, color(hue)) for name, hue in HUES.items()],
    )
    # the controls below the latent
    for name in ("random latents", "random directions", "latent"):
        hue, radius = color(HUES[name]), 4.5 if name == "latent" else 2.5
        for strength, row in zip(strengths, series[name]):
            frame.marks += [
                f'<circle cx="{float(frame.x(strength)):.1f}" cy="{float(frame.y(value)):.1f}"'
                f' r="{radius}" fill="{hue}" stroke="{PAPER}"/>'
                for value in row
            ]
    points = " ".join(
        f"{float(frame.x(dose.strength)):.1f},{float(frame.y(dose.effect)):.1f}" for dose in drawn
    )
    frame.draw(f'<polyline points="{points}" stroke="{color(0)}" stroke-width="1.5"/>')
    described = "; ".join(f"{dose.strength:+g}: {dose.effect:+.3f}" for dose in drawn)
    return figure(frame.svg(described), "The latent, and eight controls of each kind per strength.")
