"""The main job end to end on real input: two models, six autoencoders, two pages, one table, and a
sentence of the language model with a latent added.

Every step resumes, so a demo that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saekit.options import Doc
from saekit_cli.command import Given
from saekit_cli.screen import Reporter, figure, message, table
from saekit_cli.settings import Quiet

if TYPE_CHECKING:
    from saekit.intervention.steer import SteerResult

NAME = "demo"
EXAMPLES = ["saekit demo --out demo"]


@dataclass(frozen=True)
class Part:
    """One half of the demo: what is harvested, which models are trained on it, which of them gets
    the page."""

    name: str
    model: str
    data: str
    harvest: dict[str, Any]
    runs: dict[str, dict[str, Any]]
    page: str
    features: str


TEXT = Part(
    "text",
    "embedded:smollm2-135m",
    "embedded:pydocs",
    {"hook": "blocks.9", "rows": 120_000, "shard_mb": 16},
    {"topk": {"k": 32}, "pca": {"model": "pca"}},
    "topk",
    "interesting:1000",
)
IMAGE = Part(
    "image",
    "embedded:openmoji-vit",
    "embedded:openmoji",
    {"hook": "blocks.4", "batch": 64, "rows": 486_000, "shard_mb": 64},  # 6,000 pictures
    {
        "topk": {"k": 16, "lr": 1e-3, "batch": 2048, "rows": 2_000_000},
        "gated": {
            "sparsity": "gated", "target_l0": 8, "lr": 1e-3, "batch": 2048, "rows": 2_000_000,
        },
        "pca": {"model": "pca", "latents": 16},
    },
    "topk",
    "interesting:300",
)  # fmt: skip
# The latent that is added is not chosen by hand: the first of these, in the order of
# `next_token_latents`, that is monotone in the dose and beyond its controls.
TRIES = 3
PROMPT = "When the rain stopped, the children"
DOSES = (1.0, 2.0)
NEW_TOKENS = 16


def run(
    given: Given,
    out: Annotated[str | Path, Doc("Folder for stores, checkpoints and pages.")] = "demo",
    text: Annotated[bool, Doc("SmolLM2-135M-Instruct on Python's documentation.")] = True,
    image: Annotated[bool, Doc("A small vision transformer looking at emoji.")] = True,
    quiet: Quiet = False,
) -> None:
    """Harvest, train and inspect a language model and a vision transformer, and steer the first."""
    began = time.monotonic()
    rows, pages = [], []
    for part in [p for p, wanted in ((TEXT, text), (IMAGE, image)) if wanted]:
        page, figures = _run_part(part, Path(out) / part.name, quiet)
        pages.append(page)
        rows += figures
    header = (
        "checkpoint",
        "model",
        "latents",
        "held-out fvu",
        "l0",
        "dead",
        "dead in training",
        "rows/s",
    )
    typer.echo(table(header, rows, left=(0, 1)))
    typer.echo(f"\n{time.monotonic() - began:.0f} s")
    for page in pages:
        typer.echo(f"open    {page}")
    if text:
        typer.echo("\n" + "\n".join(steer_part(TEXT, Path(out) / TEXT.name, quiet)))


def steer_part(part: Part, folder: Path, quiet: bool = False) -> list[str]:
    """Steer a part's language model by the first latent that holds; the lines to print. The report
    is in `folder`/steered."""
    import saekit
    from saekit.harvesting.models import load_model
    from saekit.inspection.next_token import next_token_latents
    from saekit.intervention.dose_response import holds
    from saekit.intervention.steer import SteerResult

    # the latents in order
    checkpoint, live_model = folder / part.page, load_model(part.model)
    latents = next_token_latents(checkpoint, folder / "store", live_model)[:TRIES]
    message("steer", f"at most {TRIES} latents, up to one with an effect of its own")
    # one after the other
    about, result = "no latent is followed by one token often enough to be steered", None
    for tried, latent in enumerate(latents, 1):
        with Reporter(quiet) as reporter:
            result = saekit.steer(
                checkpoint,
                prompt=PROMPT,
                latents={latent.latent: max(DOSES)},
                dose=DOSES,
                targets=[latent.token],
                model=live_model,
                max_new_tokens=NEW_TOKENS,
                out=folder / "steered",
                overwrite=True,
                progress=reporter,
            )
        assert isinstance(result, SteerResult), "of a text"
        about = (
            f"latent {latent.latent}, number {tried} by the rule: {latent.text!r} follows"
            f" {latent.share:.0%} of its strongest rows"
        )
        if holds(result.doses):
            break
        about += f"; none of the {tried} tried has an effect of its own"
    return [about] if result is None else [about, *_steered_lines(result)]


def _steered_lines(result: SteerResult) -> list[str]:
    """The texts, the largest dose beside its controls, and the verdict."""
    largest = max(result.doses, key=lambda dose: dose.strength)
    controls = largest.random_directions + largest.random_latents
    target = repr(result.targets[0])
    return [
        f"prompt  {result.prompt!r}",
        f"clean   {result.clean.text!r}",
        f"steered {result.steered.text!r}",
        f"effect  {largest.effect:+.2f} nats on {target} at dose {largest.strength:+g}; the largest"
        f" of {len(controls)} controls has {max(controls, key=abs):+.2f}",
        f"verdict {result.verdict}",
        f"open    {Path(result.report or '').resolve()}",
    ]


def _run_part(part: Part, out: Path, quiet: bool) -> tuple[Path, list[tuple[str, ...]]]:
    import saekit

    store = out / "store"
    reporter = Reporter(quiet)
    message(part.name, f"{part.model} on {part.data}")
    saekit.harvest(part.model, part.data, store, resume=True, progress=reporter, **part.harvest)
    results = {}
    for name, options in part.runs.items():
        message("train", name)
        results[name] = saekit.train(store, out / name, resume=True, progress=reporter, **options)
    page = saekit.inspect(
        out / part.page,
        store,
        out / "page",
        features=part.features,
        overwrite=True,
        progress=reporter,
    )
    reporter.close()
    figures = []
    for e in saekit.evaluate([out / name for name in part.runs], store):
        m, result = e.metrics, results[Path(e.checkpoint).name]
        figures.append((
            e.checkpoint, e.model, f"{e.latents:,}", figure(m["fvu"]), figure(m["l0"], ".1f"),
            figure(m["dead"], ".1%"),
            figure(m["dead_train"], ".1%"), f"{result.rows_per_s:,.0f}",
        ))  # fmt: skip
    return Path(page.index_html).resolve(), figures
