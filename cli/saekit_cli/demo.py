"""The main job end to end on real input: a language model and a vision transformer, an autoencoder
and a page of each, other models beside it in one table, and a sentence of the language model with a
latent added.

Every step resumes, so a demo that was interrupted goes on where it stopped. A page is written
before the models that are only compared are trained, and its path is printed at once.
"""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saekit.options import Doc
from saekit_cli.command import Given
from saekit_cli.demo_ending import steer
from saekit_cli.screen import Reporter, figure, message, table
from saekit_cli.settings import Quiet

if TYPE_CHECKING:
    from saekit.harvesting.models import LiveModel
    from saekit.training.run import TrainResult

NAME = "demo"
EXAMPLES = ["saekit demo --out demo", "saekit demo --no-image --text-model gemma-3-270m.gguf"]


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
    title: str = ""
    """Model and data in words."""

    @property
    def about(self) -> str:
        title = self.title or f"{self.model} on {self.data}"
        return f"{title}; hidden states at {self.harvest['hook']}"


TEXT = Part(
    "text",
    "embedded:smollm2-135m",
    "embedded:english",
    {"hook": "blocks.22", "rows": 40_000, "shard_mb": 16},
    {
        # at two rows per latent nothing is nudged unless that is asked for
        "topk": {"k": 32, "rows": 200_000, "revive": "nudge"},
        "jumprelu": {
            "sparsity": "jumprelu",
            "target_l0": 32,
            "bandwidth": 0.125,  # half the time of 0.5, at the same error (docs/variants.md)
            "rows": 200_000,
            "revive": "nudge",
        },
        "pca": {"model": "pca"},
    },
    "topk",
    "interesting:200",
    "SmolLM2-135M-Instruct (4-bit weights) reading tales, novels and Python's documentation",
)
IMAGE = Part(
    "image",
    "embedded:openmoji-vit",
    "embedded:openmoji",
    {"hook": "blocks.4", "batch": 64, "rows": 486_000, "shard_mb": 64},
    {
        # k falls from 32: fewer latents are left unused (docs/openmoji.md)
        "topk": {
            "k": 16, "k_start": 32, "k_anneal": 0.4, "lr": 1e-3, "batch": 2048, "rows": 1_500_000,
        },
        "gated": {
            "sparsity": "gated", "target_l0": 10, "lr": 1e-3, "batch": 2048, "rows": 750_000,
        },
        "pca": {"model": "pca", "latents": 16},
    },
    "topk",
    "interesting:80",
    "a small vision transformer looking at 6,000 pictures of emoji (OpenMoji, CC BY-SA 4.0)",
)  # fmt: skip
DEPTH = 0.75  # of a language model: where its hook is (docs/notes/log.md: which block)
HEADER = ("checkpoint", "model", "latents", "held-out fvu", "l0", "dead", "rows/s")
# What a model of the table is, by its variant or kind.
SENTENCES = {
    "topk": "A sparse autoencoder: each row is a sum of its k largest latents.",
    "l1": "A sparse autoencoder with a penalty on the sum of its latents.",
    "kl": "A sparse autoencoder with a penalty on how often each latent is active.",
    "gated": "A sparse autoencoder with a penalty on gates, which choose the latents of a row.",
    "jumprelu": "A sparse autoencoder: a latent counts above a threshold of its own; the penalty is"
    " on their number.",
    "pca": "Principal components, the linear floor: as many directions, the same for all rows.",
}
DEAD = "dead: the share of latents that no row activated in the last epoch of training."


def run(
    given: Given,
    out: Annotated[str | Path, Doc("Folder for stores, checkpoints and pages.")] = "demo",
    text: Annotated[bool, Doc("A language model reading tales, novels and documentation.")] = True,
    image: Annotated[bool, Doc("A vision transformer looking at emoji.")] = True,
    text_model: Annotated[
        str,
        Doc(
            "Language model: a hub id, a folder or a .gguf file, such as Gemma 3 270M (under the"
            " Gemma Terms of Use, ai.google.dev/gemma/terms).",
            metavar="MODEL",
        ),
    ] = TEXT.model,
    text_hook: Annotated[
        str | None,
        Doc(
            "Hook of the language model (default: the block at three quarters of its depth).",
            metavar="HOOK",
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Harvest, train and inspect a language model and a vision transformer, and steer the first."""
    began = time.monotonic()
    rows, pages, titles, kinds, folders = [], [], [], {}, []
    ending: list[str] = []
    for part in [p for p, wanted in ((IMAGE, image), (TEXT, text)) if wanted]:
        live_model = None
        if part is TEXT:
            part, live_model = _text_part(text_model, text_hook)
        folder = Path(out) / part.name
        page, figures = _run_part(part, folder, quiet, live_model)
        pages.append(page)
        rows += figures
        folders.append((folder, part))
        titles.append(f"{part.name}: {part.about}.")
        kinds |= {_kind(options): None for options in part.runs.values()}
        if live_model is not None:
            ending = steer(live_model, folder, part.page, quiet)
    typer.echo("\n" + table(HEADER, rows, left=(0, 1)) + "\n")
    for line in (*titles, *(f"{kind}: {_sentence(kind)}" for kind in kinds), DEAD):
        typer.echo(line)
    typer.echo(f"\n{time.monotonic() - began:.0f} s")
    for page in pages:
        typer.echo(f"open    {page}")
    if ending:
        typer.echo("\n" + "\n".join(ending))
    typer.echo("\nand then")
    for folder, part in folders:
        for line in _next_commands(folder, part):
            typer.echo(f"  {line}")


def _next_commands(folder: Path, part: Part) -> list[str]:
    """What to type next, with the program as it was called."""
    saekit = sys.argv[0] if Path(sys.argv[0]).name == "saekit" else "saekit"
    run, rest = folder / part.page, f"--store {shlex.quote(str(folder / 'store'))}"
    program = f"{shlex.quote(saekit)} {{verb}} {shlex.quote(str(run))} {rest}"
    asked = "--sort score" if part.name == IMAGE.name else "--text 'The cat sat on the mat'"
    return [
        f"{program.format(verb='features')} {asked}",
        f"{program.format(verb='serve')} --page {shlex.quote(str(folder / 'page'))}",
    ]


def _text_part(model: str, hook: str | None) -> tuple[Part, LiveModel]:
    """The text half for a language model: the demo's own, or another at the same depth, in a folder
    of its own."""
    from saekit.harvesting.models import load_model

    live_model, other = load_model(model), model != TEXT.model
    name = "-".join([TEXT.name, *([Path(model).name] if other else []), *([hook] if hook else [])])
    hook = hook or f"blocks.{int(DEPTH * live_model.blocks)}"
    title = "" if other else TEXT.title
    harvest = TEXT.harvest | {"hook": hook}
    if other:  # hidden states of Gemma pass the largest float16
        harvest["dtype"] = "float32"
    return replace(TEXT, name=name, model=model, harvest=harvest, title=title), live_model


def _run_part(
    part: Part, out: Path, quiet: bool, live_model: LiveModel | None
) -> tuple[Path, list[tuple[str, ...]]]:
    """The page and the rows of the table. What the page needs comes first."""
    import saekit

    store = out / "store"
    with Reporter(quiet) as reporter:
        # the page
        message(part.name, part.about)
        saekit.harvest(
            live_model or part.model,
            part.data,
            store,
            resume=True,
            progress=reporter,
            **part.harvest,
        )
        results = {part.page: _train(store, out, part, part.page, reporter)}
        page = saekit.inspect(
            out / part.page,
            store,
            out / "page",
            features=part.features,
            live=None if live_model is None else live_model.module,
            progress=reporter,
        )
        index = Path(page.index_html).resolve()
        reporter.close()
        typer.echo(f"open    {index}")
        # what it is compared with
        for name in (name for name in part.runs if name != part.page):
            results[name] = _train(store, out, part, name, reporter)
    figures = []
    for e in saekit.evaluate([out / name for name in part.runs], store):
        m, result = e.metrics, results[Path(e.checkpoint).name]
        figures.append((
            e.checkpoint, e.model, f"{e.latents:,}", figure(m["fvu"]), figure(m["l0"], ".1f"),
            figure(m["dead_train"], ".1%"), f"{result.rows_per_s:,.0f}",
        ))  # fmt: skip
    return index, figures


def _train(store: Path, out: Path, part: Part, name: str, reporter: Reporter) -> TrainResult:
    import saekit
    from saekit.store.checkpoint import CONFIG

    finished = (out / name / CONFIG).exists()
    message("train", f"{name}: finished before, {out / name}" if finished else name)
    return saekit.train(store, out / name, resume=True, progress=reporter, **part.runs[name])


def _kind(options: dict[str, Any]) -> str:
    """The variant of a sparse autoencoder, or the kind of another model."""
    return str(options.get("sparsity", options.get("model", "topk")))


def _sentence(kind: str) -> str:
    from saekit.models.describe import describe

    return SENTENCES.get(kind) or describe(kind).line
