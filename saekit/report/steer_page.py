"""The page of `steer`: clean and steered side by side, and the dose-response chart with its
controls."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from html import escape
from statistics import fmean

import numpy as np

from saekit.intervention.doses import Response
from saekit.intervention.steer import SteerResult
from saekit.intervention.steer_image import ImageSteerResult
from saekit.intervention.steered_text import Continuation, TokenChange
from saekit.report.axes import PAPER, Frame, color, padded
from saekit.report.images import sheet
from saekit.report.page import Panel, cell, document, figure, note, number, picture, table

LEAD = "A model with latents of a dictionary added or ablated, beside the same model without."
CONTROLS_NOTE = (
    "Controls have the latent's norm: an effect that they have too is none of this latent."
)
EFFECT_ON_TEXT = (
    "Effect: mean change of the log-probability of the target tokens together, in nats, over the"
    " clean text. "
)
EFFECT_ON_CLASS = (
    "Effect: change of the log-probability of the target class, in nats. It is the class that the"
    " largest dose raises most on an image of the mean color. "
)
SEEDS_NOTE = "Figures are means over the sampled texts; small points are single texts. "
MOST_DOSED = 5  # classes with their probabilities at each dose
MOST_CLASSES = 20
HUES = {"latent": 0, "random directions": 1, "random latents": 2}


def text_page(result: SteerResult, name: str) -> str:
    """One HTML file. Equal results give equal bytes."""
    several = len(result.seeds) > 1
    pairs = zip(result.seeds, result.clean_texts, result.steered_texts)
    rows = [
        _text_row(f"{name}, seed {seed}" if several else name, part)
        for seed, *both in pairs
        for name, part in zip(("clean", "steered"), both)
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
        panels.insert(1, Panel("Dose and response", _text_doses(result)))
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
    if result.doses:
        panels.insert(1, Panel("Dose and response", _image_doses(result)))
    facts = [("edits", "; ".join(result.edits)), ("KL", f"{result.kl:.4f} nats")]
    numbers = {"steer": dataclasses.asdict(result) | {"report": None}}
    return document(f"Steering · {name}", LEAD, facts, panels, numbers)


def _text_row(name: str, part: Continuation) -> tuple[str, list[str]]:
    words = f'<td class="left text">{escape(part.text)}</td>'
    figures = [cell(number(fmean(part.kl))), cell(number(part.perplexity, ".2f"))]
    return "", [cell(name, "left"), words, *figures]


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


def _text_doses(result: SteerResult) -> str:
    several = len(result.seeds) > 1
    header = ("perplexity", *(["over seeds"] if several else []), "text")
    more = [
        [
            cell(number(dose.perplexity, ".2f")),
            *([cell(spread(dose.effects))] if several else []),
            f'<td class="left text">{escape(dose.text)}</td>',
        ]
        for dose in result.doses
    ]
    singles = [dose.effects for dose in result.doses] if several else None
    about = "Target tokens: " + ", ".join(map(repr, result.targets))
    drawn = _doses(result.doses, (result.verdict, result.scope), header, more, about, singles)
    return drawn + note(EFFECT_ON_TEXT + SEEDS_NOTE * several + CONTROLS_NOTE)


def _image_doses(result: ImageSteerResult) -> str:
    labels, probabilities = result.by_dose(MOST_DOSED)
    more = [[cell(f"{value:.2%}") for value in row] for row in probabilities]
    about = "Target class: " + ", ".join(result.targets)
    drawn = _doses(result.doses, (result.verdict, result.scope), labels, more, about)
    return drawn + note(EFFECT_ON_CLASS + CONTROLS_NOTE)


def _doses(
    doses: Sequence[Response],
    verdict: tuple[str, str],
    header: Sequence[str],
    more: Sequence[list[str]],
    about: str,
    singles: Sequence[Sequence[float]] | None = None,
) -> str:
    """Verdict, with what it tests, chart and table. `more`: further cells of each dose, below
    `header`; `singles`: the effects that each effect is the mean of."""
    columns = ("strength", "effect", "random directions", "random latents", "KL", *header)
    rows = [
        ("", [
            cell(f"{dose.strength:+g}", "left"),
            cell(f"{dose.effect:+.3f}"),
            cell(spread(dose.random_directions)),
            cell(spread(dose.random_latents)),
            cell(number(dose.kl)),
            *cells,
        ])
        for dose, cells in sorted(zip(doses, more), key=lambda pair: pair[0].strength)
    ]  # fmt: skip
    shown = f"<p><strong>{escape(verdict[0])}</strong></p>{note(verdict[1])}" if verdict[0] else ""
    return shown + _chart(doses, singles) + note(about) + table(columns, rows)


def spread(values: Sequence[float]) -> str:
    """Smallest to largest effect of the controls of one kind."""
    return f"{min(values):+.3f} to {max(values):+.3f}" if values else "-"


def _chart(doses: Sequence[Response], singles: Sequence[Sequence[float]] | None) -> str:
    """The effect of the latent as a line, each control and single effect as a point."""
    order = sorted(range(len(doses)), key=lambda number: doses[number].strength)
    drawn = [doses[number] for number in order]
    # the controls below the latent
    series = [
        ("random latents", 2.5, [dose.random_latents for dose in drawn]),
        ("random directions", 2.5, [dose.random_directions for dose in drawn]),
        ("latent", 2.5, [singles[number] for number in order] if singles else []),
        ("latent", 4.5, [[dose.effect] for dose in drawn]),
    ]
    values = [value for _, _, rows in series for row in rows for value in row]
    frame = Frame(
        "Dose and response",
        "strength",
        "effect (nats)",
        padded(drawn[0].strength, drawn[-1].strength),
        padded(min(values), max(values)),
        [(name, color(hue)) for name, hue in HUES.items()],
    )
    for name, radius, rows in series:
        for dose, row in zip(drawn, rows):
            frame.marks += [
                f'<circle cx="{float(frame.x(dose.strength)):.1f}"'
                f' cy="{float(frame.y(value)):.1f}" r="{radius}" fill="{color(HUES[name])}"'
                f' stroke="{PAPER}"/>'
                for value in row
            ]
    points = " ".join(
        f"{float(frame.x(dose.strength)):.1f},{float(frame.y(dose.effect)):.1f}" for dose in drawn
    )
    frame.draw(f'<polyline points="{points}" stroke="{color(0)}" stroke-width="1.5"/>')
    described = "; ".join(f"{dose.strength:+g}: {dose.effect:+.3f}" for dose in drawn)
    return figure(frame.svg(described), "The latent, and eight controls of each kind per strength.")
