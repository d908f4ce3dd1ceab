"""The main job end to end on real input: two models, six autoencoders, two pages, one table.

Every step resumes, so a demo that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from saekit.options import Doc
from saekit_cli.command import Given
from saekit_cli.screen import Reporter, figure, message, table
from saekit_cli.settings import Quiet

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
    "top:1000",
)
IMAGE = Part(
    "image",
    "embedded:digits-vit",
    "embedded:digits",
    {"hook": "blocks.2", "batch": 128},
    {
        "topk": {"k": 16},
        "l1": {"sparsity": "l1"},
        "kl": {"sparsity": "kl", "target_l0": 16},
        "pca": {"model": "pca", "latents": 16},
    },
    "topk",
    "all",
)


def run(
    given: Given,
    out: Annotated[str | Path, Doc("Folder for stores, checkpoints and pages.")] = "demo",
    text: Annotated[bool, Doc("SmolLM2-135M-Instruct on Python's documentation.")] = True,
    image: Annotated[bool, Doc("A vision transformer on handwritten digits.")] = True,
    quiet: Quiet = False,
) -> None:
    """Harvest, train and inspect a language model and a vision transformer."""
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
