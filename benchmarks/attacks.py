"""Adversarial examples, the defense against them, and pictures from noise.

    python benchmarks/attacks.py [--quick] [--csv benchmarks/results/attacks.csv]
        [--seeds N] [--dictionary demo/image/topk] [--charts docs/img]

1. defense: a small classifier of MNIST-5k (4,000 pictures to train on, 500 to test), trained
   without an adversary, with FGSM and with PGD in L-infinity 0.2, and attacked: FGSM, PGD with one
   start and with five, and pictures transferred from a network of another seed that was trained
   without an adversary. Signs of a masked gradient: FGSM or transfer beats PGD, more starts find
   much more, or a budget of 0.5, which turns every picture gray, leaves accuracy.
2. classifier: embedded classifiers, FGSM and PGD by budget.
3. raise, silence, noise (with --dictionary): latents chosen at random among those with a scan's
   maximum. `raise`: of a picture in which the latent is silent, within 8/255, value is the
   activation reached. `silence`: of the latent's strongest picture. `noise`: a picture from noise.

`--quick`: one seed, fewer epochs, budgets, pictures and latents. About 5 minutes of one core
(1 with `--quick`). Rows are on the disk once they are measured, and those that the file has are
skipped, so an interrupted benchmark continues.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from itertools import chain, product
from pathlib import Path
from typing import Any

import torch
from output import give, parser, reporter, run
from saekit_cli.screen import table

from saekit.attacks.balls import Ball, Norm
from saekit.attacks.defense import DefenseConfig, accuracy, train_classifier
from saekit.attacks.measured import visualized
from saekit.attacks.perturb import fgsm, pgd
from saekit.attacks.pixels import pixels_of, pixels_of_image
from saekit.attacks.target import Target, target_of
from saekit.attacks.top import top_pictures
from saekit.bench.timing import CsvFile, machine
from saekit.device import pick_device
from saekit.embedded import data_set, mnist
from saekit.intervention.subject import borrowed
from saekit.report.charts import lines

BUDGETS: dict[Norm, tuple[float, ...]] = {"linf": (0.1, 0.2, 0.3, 0.5), "l2": (1.0, 2.0)}
BOTH_NORMS_EPS = (0.2, 2.0)  # at which transferred pictures and several starts are measured
VIT_BUDGETS = {
    "embedded:digits-vit": (4 / 255, 8 / 255, 16 / 255, 32 / 255),
    "embedded:openmoji-vit": (1 / 255, 2 / 255, 4 / 255, 8 / 255),
}
DATA = {"embedded:digits-vit": "embedded:digits", "embedded:openmoji-vit": "embedded:openmoji"}
ADVERSARIES = ("none", "fgsm", "pgd")
LATENT_EPS = 8 / 255
GRAY = "#7a7a7a"  # of text and axes, on white and on black


@dataclass(frozen=True)
class Row:
    part: str
    name: str
    """Of the data or model; of part 3 the latent."""
    adversary: str
    """In training."""
    attack: str
    norm: str
    eps: float
    seed: int
    count: int
    """Pictures."""
    value: float
    """Accuracy; of part 3 the activation."""
    reference: float | None
    """Of part 3: the latent's largest activation on the store."""
    cpu_s: float


Say = Callable[[str], None]
Known = set[tuple[Any, ...]]
"""(part, name, adversary, attack, norm, eps, seed) of the rows that a file has."""


def read(path: Path | None) -> list[Row]:
    """The rows of a file of an earlier run."""
    if path is None or not path.exists():
        return []
    kinds = {"eps": float, "seed": int, "count": int, "value": float, "cpu_s": float}
    with path.open(newline="") as lines:
        return [
            Row(**{
                field.name: (float(row["reference"]) if row["reference"] else None)
                if field.name == "reference"
                else kinds.get(field.name, str)(row[field.name])
                for field in fields(Row)
            })
            for row in csv.DictReader(lines)
        ]  # fmt: skip


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    began = time.process_time()
    value = call()
    return value, round(time.process_time() - began, 2)


def mnist_split() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x, y of 4,000 pictures, x, y of 500 others)."""
    images, labels = mnist.arrays()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(images).float()[order, None] / 255
    y = torch.from_numpy(labels)[order]
    return x[:4000], y[:4000], x[4000:4500], y[4000:4500]


def attacks_of(other: Any) -> dict[str, Callable[[Ball], Any]]:
    """name -> budget -> attack. `other`: the network that transferred pictures are made for."""

    def starts(count: int, steps: int) -> Callable[[Ball], Any]:
        return lambda ball: lambda score, x: pgd(score, x, ball, steps, None, count).x

    return {
        "fgsm": lambda ball: lambda score, x: fgsm(score, x, ball).x,
        "pgd": starts(1, 20),
        "pgd, 5 starts": starts(5, 20),
        "transfer": lambda ball: (
            lambda score, x: pgd(type(score)(other, score.classes_B), x, ball, 20).x
        ),
    }


def jobs(quick: bool) -> list[tuple[str, Norm, float]]:
    """(attack, norm, eps) of part 1."""
    names = ("fgsm", "pgd", "transfer", "pgd, 5 starts")
    return [
        (name, norm, eps)
        for norm, budgets in BUDGETS.items()
        for eps in budgets
        for name in names
        if name in ("fgsm", "pgd") or (eps in BOTH_NORMS_EPS and not quick)
    ]


def defense(quick: bool, seeds: int, known: Known, say: Say) -> Iterator[Row]:
    """Part 1."""
    x, y, x_test, y_test = mnist_split()
    x_test, y_test = (x_test[:200], y_test[:200]) if quick else (x_test, y_test)
    epochs = 4 if quick else 12
    other: Any = None
    for seed, adversary in product(range(seeds), ADVERSARIES):
        common = ("defense", "mnist-5k", adversary)
        every: list[tuple[str, Any, float]] = [("clean", "-", 0.0), *jobs(quick)]
        missing = [job for job in every if (*common, *job, seed) not in known]
        if not missing:
            continue
        other = other or train_classifier(x, y, DefenseConfig("none", epochs=epochs), seed=1000)
        config = DefenseConfig(adversary, epochs=epochs)
        network, seconds = timed(lambda: train_classifier(x, y, config, seed))  # noqa: B023
        say(f"{adversary}, seed {seed}: trained in {seconds:.0f} s")
        for name, norm, eps in missing:
            its = None if name == "clean" else attacks_of(other)[name](Ball(norm, eps))
            value, took = timed(lambda: accuracy(network, x_test, y_test, its))  # noqa: B023
            took = seconds if name == "clean" else took
            yield Row(*common, name, norm, eps, seed, len(x_test), value, None, took)


def classifiers(quick: bool, known: Known, say: Say) -> Iterator[Row]:
    """Part 2: pictures that the model names rightly or wrongly alike."""
    for name, budgets in VIT_BUDGETS.items():
        if any(key[:2] == ("classifier", name) for key in known):
            continue
        aim, data = target_of(name), data_set(DATA[name])
        generator = torch.Generator().manual_seed(0)
        count = 20 if quick else 50
        chosen = torch.randperm(len(list(data.names)), generator=generator)[:count].tolist()
        x = torch.cat([pixels_of(f"{DATA[name]}:{index}", aim.live, aim.scale) for index in chosen])
        labels = [str(data.label(index)) for index in chosen]
        wanted = [label if label in aim.names else f"LABEL_{label}" for label in labels]
        y = torch.tensor([aim.names.index(label) for label in wanted])
        ways = {k: v for k, v in attacks_of(None).items() if k in ("fgsm", "pgd")}
        with borrowed(aim.live.module):
            value, took = timed(lambda: accuracy(aim.logits, x, y))  # noqa: B023
            common = ("classifier", name, "none")
            yield Row(*common, "clean", "-", 0.0, 0, len(x), value, None, took)
            for eps in budgets[::2] if quick else budgets:
                for way, attack in ways.items():
                    its = attack(Ball("linf", eps))
                    value, took = timed(lambda: accuracy(aim.logits, x, y, its))  # noqa: B023
                    say(f"{name}, {way}, {eps * 255:.0f}/255: {value:.3f}")
                    yield Row(*common, way, "linf", eps, 0, len(x), value, None, took)


def latents(path: Path, quick: bool, known: Known, say: Say) -> Iterator[Row]:
    """Part 3."""
    aim = target_of(path)
    assert aim.dictionary is not None and aim.dictionary.maxima is not None
    firing = (aim.dictionary.maxima > 0).nonzero().flatten()
    generator = torch.Generator().manual_seed(0)
    drawn = firing[torch.randperm(len(firing), generator=generator)[: 3 if quick else 4]].tolist()
    silent = torch.cat(
        [pixels_of(f"embedded:openmoji:{j}", aim.live, aim.scale) for j in range(0, 3000, 300)]
    )
    with borrowed(aim.live.module):
        for latent in drawn:
            if any(key[1] == str(latent) for key in known):
                continue
            maximum = aim.dictionary.maximum(latent)
            for name, value, took in _of_latent(aim, latent, silent, quick):
                eps = 0.0 if name.startswith("noise") else LATENT_EPS
                norm = "-" if name.startswith("noise") else "linf"
                part = name.split()[0]
                yield Row(
                    part, str(latent), "none", name, norm, eps, 0, 1, value, maximum, took
                )  # fmt: skip
            say(f"latent {latent}")


def _of_latent(
    aim: Target, latent: int, silent: torch.Tensor, quick: bool
) -> Iterator[tuple[str, float, float]]:
    """(attack, activation reached, CPU seconds)."""
    assert aim.dictionary is not None
    ball = Ball("linf", LATENT_EPS)
    raised, silenced = (aim.latent_score(latent, way) for way in ("raise", "silence"))
    quiet = silent[raised.activations(silent).amax(1) == 0][:1]
    _, _, image = top_pictures(aim.dictionary, None, latent, lambda _: None)[0]
    strongest = pixels_of_image(image, aim.live, aim.scale)
    for way in ("fgsm", "pgd"):
        for name, score, x in (("raise", raised, quiet), ("silence", silenced, strongest)):
            if not len(x):
                continue
            call = (
                (lambda: fgsm(score, x, ball))  # noqa: B023
                if way == "fgsm"
                else (lambda: pgd(score, x, ball, 20))  # noqa: B023
            )
            found, took = timed(call)
            yield f"{name} {way}", float(score.activations(found.x).max()), took
    for name, options in (
        ("noise", {}), ("noise without jitter", {"jitter": 0}), ("noise without tv", {"tv": 0.0}),
        ("noise of pixels", {"fourier": False}),
    ):  # fmt: skip
        asked = {"steps": 40 if quick else 100, **options}
        made, took = timed(
            lambda: visualized(aim, latent, asked, 1, 0, None, lambda _: None)  # noqa: B023
        )
        yield name, made.images[0].activation, took


def lines_of(rows: list[Row]) -> str:
    """Means over seeds and latents, as a table."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        name = row.name if row.reference is None else "latents"
        key = (row.part, name, row.adversary, row.attack, row.norm, f"{row.eps:.4g}")
        groups.setdefault(key, []).append(row)
    cells = [
        [
            *key,
            str(len(own)),
            f"{sum(row.value / (row.reference or 1) for row in own) / len(own):.3f}",
            f"{sum(row.cpu_s for row in own) / len(own):.1f}",
        ]
        for key, own in groups.items()
    ]
    header = ["part", "data", "adversary", "attack", "norm", "eps", "runs", "value", "cpu s"]
    return table(header, cells, left=(0, 1, 2, 3, 4))


def chart(rows: list[Row]) -> str:
    """Accuracy by budget of each way of training, under PGD with one start."""
    series = {}
    for adversary in ADVERSARIES:
        for attack in ("fgsm", "pgd"):
            own = [
                row for row in rows
                if (row.part, row.adversary) == ("defense", adversary)
                and (row.attack == "clean" or (row.attack, row.norm) == (attack, "linf"))
            ]  # fmt: skip
            budgets = sorted({row.eps for row in own})
            means = [
                sum(row.value for row in own if row.eps == eps) / sum(row.eps == eps for row in own)
                for eps in budgets
            ]
            series[f"{adversary}: {attack}"] = (budgets, means)
    return lines(series, "Accuracy under attack, by training", "L-infinity budget", "accuracy")


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--seeds", type=int, default=2, help="of part 1 (default: 2)")
    flags.add_argument("--dictionary", type=Path, help="checkpoint of part 3")
    flags.add_argument("--charts", type=Path, metavar="DIR", help="write attack-defense.svg")
    asked = flags.parse_args()
    say = reporter(asked.quiet)
    rows = read(asked.csv)
    known = {
        (r.part, r.name, r.adversary, r.attack, r.norm, r.eps, r.seed) for r in rows
    }  # fmt: skip
    file = None if asked.csv is None else CsvFile(asked.csv, machine(pick_device("cpu")))
    if file is not None:
        file.lines = len(rows)
    parts = [classifiers(asked.quick, known, say)]
    if asked.dictionary is not None:
        parts.append(latents(asked.dictionary, asked.quick, known, say))
    parts.append(defense(asked.quick, 1 if asked.quick else asked.seeds, known, say))
    for row in chain.from_iterable(parts):
        rows.append(row)
        if file is not None:
            file.write(asdict(row))
    if asked.charts is not None:
        drawn = chart(rows).replace("<svg ", f'<svg color="{GRAY}" ', 1)
        (asked.charts / "attack-defense.svg").write_text(drawn)
    asked.csv = None  # which is written
    flat = [asdict(row) for row in rows]
    give(flat, flat, asked, "accuracy, or activation over the largest in the store", lines_of(rows))


if __name__ == "__main__":
    run(main)
