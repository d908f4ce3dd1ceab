"""How good are generated rows: every adversarial model beside a VAE, and beside real rows.

    python benchmarks/adversarial.py [--quick] [--csv FILE] [--names NAME ...] [--pictures FOLDER]
    [--json] [--quiet]

Images are judged by a classifier of the real training split, hidden states by a linear probe and a
sparse autoencoder of the real rows. The first line of each kind of data has training rows in place
of samples: what the best figures are, and how copies show. One thread, one case after the other;
each appends its line to the CSV file as it ends. `--quick`: 8x8 digits and short runs.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer
from cases import DATA as CLASSIC
from cases import Case
from judging import Measure, Sides, judge_hidden, judge_images
from output import parser, reporter, run
from saekit_cli.screen import figure, print_json, table

from saekit.bench.memory import peak_mb
from saekit.bench.timing import CsvFile, machine
from saekit.device import pick_device
from saekit.errors import check_choice
from saekit.harvesting.run import harvest
from saekit.store.reader import Store
from saekit.training.run import TrainResult, train

REAL = "training rows"  # not a model: what one that copies would give
BERNOULLI = {"output": "bernoulli"}
VIT, DIGITS, HOOK = CLASSIC["hidden"]
# a fifth is held out: patches of a few images would be easy to tell from those of all others
DATA = {**CLASSIC, "hidden": (VIT, DIGITS, {**HOOK, "holdout": 0.2})}
# for convolutions, whose discriminator wins otherwise; a dense generator collapses with it
PACE = {"lr": 8e-4, "discriminator_rate": 0.25}
CASES = [
    Case("mnist", REAL, REAL),
    Case("mnist", "vae 512-256-30", "vae", {"latents": 30, **BERNOULLI}, epochs=30),
    Case("mnist", "cgan", "cgan", PACE, epochs=30),
    Case("mnist", "dcgan", "dcgan", PACE, epochs=30),
    Case("mnist", "aae", "aae", BERNOULLI, epochs=20),
    Case("mnist", "gan", "gan", {"lr": 5e-4}, epochs=30),
    Case("mnist", "gan, slow discriminator", "gan", PACE, epochs=30),
    Case("hidden", REAL, REAL),
    Case("hidden", "vae 256-16", "vae", {"latents": 16, "hidden": (256,)}, epochs=6),
    Case("hidden", "gan", "gan", {"lr": 5e-4}, epochs=16),
    Case("hidden", "gan, slow discriminator", "gan", PACE, epochs=8),
    Case("hidden", "aae", "aae", {"latents": 16, "hidden": (256,)}, epochs=6),
]
SMALL = {"latents": 8, "hidden": (128,)}
QUICK = [
    Case("digits", REAL, REAL),
    Case("digits", "vae 128-8", "vae", {**SMALL, **BERNOULLI}),
    Case("digits", "dcgan", "dcgan", {"latents": 8}),
    Case("digits", "cgan", "cgan", {"latents": 8}),
    Case("digits", "gan", "gan", SMALL),
    Case("digits", "aae", "aae", {**SMALL, **BERNOULLI}),
]


@dataclass(frozen=True)
class AdversarialResult:
    """One model on some data; None where a measure does not apply. Figures are of samples drawn
    with seed 0, beside as many held-out rows."""

    data: str
    name: str
    model: str
    passes: float
    """Training rows with repetition over training rows."""
    cpu_s: float
    """Of the training, on one thread."""
    peak_mb: float | None
    """What the training took at most beyond what the process held (1e6 bytes)."""
    classes: int | None = None
    """Found among the samples by the judge, of `of_classes`."""
    of_classes: int | None = None
    entropy: float | None = None
    """Of the classes' shares, over that of the real rows'."""
    recognized: float | None = None
    """Share of samples of a wanted class that the judge gives that class."""
    judge: float | None = None
    """The judge's accuracy on held-out rows."""
    frechet: float | None = None
    """In the judge's features; of hidden states, in their own values."""
    of_vae: float | None = None
    """The Frechet distance over that of the VAE on the same data."""
    precision: float | None = None
    recall: float | None = None
    memory: float | None = None
    """saekit.measures.samples.Memorization.ratio, as the next two."""
    nearer: float | None = None
    copies: float | None = None
    diversity: float | None = None
    apart: float | None = None
    """AUROC of the probe that tells real from generated hidden states."""
    density: float | None = None
    """saekit.measures.hidden_samples.LatentUse, as the next three."""
    coactivation: float | None = None
    silent: float | None = None
    silent_real: float | None = None


SHOWN = {  # figure -> its format in the table
    "classes": "d", "entropy": ".3f", "recognized": ".3f", "judge": ".3f", "frechet": ".2f",
    "of_vae": ".2f", "precision": ".3f", "recall": ".3f", "memory": ".2f", "nearer": ".2f",
    "copies": ".3f", "diversity": ".2f", "apart": ".3f", "density": ".3f", "coactivation": ".3f",
    "silent": ".3f", "silent_real": ".3f", "passes": ".0f", "cpu_s": ".0f", "peak_mb": ".0f",
}  # fmt: skip


def bench_adversarial(
    cases: Sequence[Case],
    ended: Callable[[AdversarialResult], None],
    pictures: Path | None = None,
) -> list[AdversarialResult]:
    """Harvest, train, sample and judge every case; `ended` gets each result at once. Raises
    MissingError when the package of a data set is not installed."""
    results: list[AdversarialResult] = []
    with tempfile.TemporaryDirectory(prefix="saekit-adversarial-") as folder:
        for data in dict.fromkeys(case.data for case in cases):
            model, source, options = DATA[data]
            harvest(model, source, Path(folder) / data, device="cpu", **options)
            sides = Sides.of(Store(Path(folder) / data))
            is_raw = sides.store.spec.is_raw
            measure = judge_images(sides, pictures) if is_raw else judge_hidden(sides)
            for case in cases:
                if case.data == data:
                    results.append(_beside_vae(run_case(case, sides, measure), results))
                    ended(results[-1])
    return results


def run_case(case: Case, sides: Sides, measure: Measure) -> AdversarialResult:
    """Train one model, and measure its samples."""
    if case.model == REAL:
        return AdversarialResult(
            case.data, case.name, case.model, 0.0, 0.0, None, **measure(case.name, None)
        )
    units = len(sides.train)
    trained: list[TrainResult] = []

    def training() -> None:
        rows = None if case.epochs is None else case.epochs * units
        result = train(
            sides.store.path, None, model=case.model, rows=rows, device="cpu", **case.options
        )
        trained.append(result)

    began = time.process_time()
    peak = peak_mb(training, pick_device("cpu"))
    seconds = round(time.process_time() - began, 1)
    (result,) = trained
    figures = measure(case.name, result.model)
    passes = round(result.rows / units, 1)
    return AdversarialResult(case.data, case.name, case.model, passes, seconds, peak, **figures)


def _beside_vae(result: AdversarialResult, earlier: Sequence[AdversarialResult]) -> Any:
    """With its Frechet distance over that of the VAE on the same data, where there is one."""
    for vae in (r for r in [*earlier, result] if (r.model, r.data) == ("vae", result.data)):
        if result.frechet is not None and vae.frechet:
            return dataclasses.replace(result, of_vae=result.frechet / vae.frechet)
    return result


def main(arguments: list[str] | None = None) -> None:
    flags = parser(__doc__)
    flags.add_argument(
        "--names", nargs="+", metavar="NAME", help="only the cases of these models, such as vae"
    )
    flags.add_argument("--pictures", type=Path, metavar="FOLDER", help="write sheets of samples")
    asked = flags.parse_args(arguments)
    torch.set_num_threads(1)
    cases = QUICK if asked.quick else CASES
    for name in asked.names or []:
        check_choice("names", name, list(dict.fromkeys(case.model for case in cases)))
    cases = [case for case in cases if asked.names is None or case.model in asked.names]
    about, report = machine(pick_device("cpu")), reporter(asked.quiet)
    file = CsvFile(asked.csv, about) if asked.csv else None

    def ended(result: AdversarialResult) -> None:
        report(f"{result.data}  {result.name}  {result.cpu_s:.0f} s of CPU")
        if file:
            file.write(dataclasses.asdict(result))

    results = bench_adversarial(cases, ended, asked.pictures)
    if asked.json:
        print_json(results)
        return
    names = [name for name in SHOWN if any(getattr(r, name) is not None for r in results)]
    lines = [
        [r.data, r.name, *(figure(getattr(r, name), SHOWN[name]) for name in names)]
        for r in results
    ]
    typer.echo(f"{about['device']}, torch {about['torch']}, {about['date']}; one seed")
    typer.echo(table(["data", "model", *names], lines, left=(0, 1)))


if __name__ == "__main__":
    run(main)
