"""Every classic model on data that needs no network access, with several seeds, next to PCA.

    python benchmarks/classic.py [--quick] [--csv FILE] [--json] [--quiet]

Models of this size do not fill two cores, so several cases run at once, on one thread each; seconds
in the table are seconds of one thread.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import CASES, DATA, Case
from output import give, parser, reporter, run
from saekit_cli.screen import figure, table

from saekit.device import pick_device
from saekit.errors import check_choice
from saekit.measures.anomaly import one_class
from saekit.measures.classifier import as_classifier
from saekit.measures.codes import few_labels, knn_accuracy, map_2d, trustworthiness
from saekit.measures.denoising import psnr
from saekit.measures.segmentation import iou
from saekit.models.catalog import build, restore
from saekit.models.noise import Noise, step_generator
from saekit.store.memory import ArraySource
from saekit.store.reader import Store
from saekit.training.checkpoints import load
from saekit.training.config import TrainConfig
from saekit.training.defaults import resolved
from saekit.training.fit import fit
from saekit.training.run import train

SEEDS = 3
QUICK_EPOCHS = 12
COPY = "copy"  # not a model: the answer is the input
NOISE_SEED = 1234
FIGURES = {  # name -> its format in the table
    "sse": ".2f", "fvu": ".4f", "knn": ".3f", "elbo": ".1f", "psnr_in": ".2f", "psnr": ".2f",
    "auroc": ".3f",
    "auroc_worst": ".3f", "iou": ".3f", "trust": ".3f", "frozen": ".3f", "tuned": ".3f",
    "scratch": ".3f",
}  # fmt: skip
PER_CLASS = 10


@dataclass(frozen=True)
class ClassicResult:
    """One model on some data: the mean over seeds of each figure, and its spread (standard
    deviation; None for one seed)."""

    data: str
    name: str
    model: str
    task: str
    seeds: int
    epochs: int | None
    """None: the model's default (saekit.training.defaults)."""
    seconds: float
    figures: dict[str, float]
    """sse per row or image, fvu, knn (5 neighbours), elbo (nats), psnr_in, psnr (dB), auroc,
    auroc_worst, iou, trust (trustworthiness), frozen, tuned and scratch (accuracies with few
    labels), where they apply."""
    spread: dict[str, float | None]

    def flat(self) -> dict[str, Any]:
        """A row of a table: figures by name, their spreads as `<name>_spread`."""
        row = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in ("figures", "spread")
        }
        for name in FIGURES:
            row |= {name: self.figures.get(name), f"{name}_spread": self.spread.get(name)}
        return row


def bench_classic(
    quick: bool,
    progress: Callable[[str], None],
    cases: list[Case] | None = None,
    seeds: int | None = None,
) -> list[ClassicResult]:
    """Harvest, train and evaluate every case. Raises MissingError when the package of a data set is
    not installed."""
    cases = CASES if cases is None else cases
    seeds = seeds or (1 if quick else SEEDS)
    epochs = QUICK_EPOCHS if quick else None
    with tempfile.TemporaryDirectory(prefix="saekit-classic-") as folder:
        _harvest(Path(folder), cases, progress)
        runs: dict[int, list[dict[str, float]]] = {id(case): [] for case in cases}
        jobs = [(case, seed) for case in cases for seed in range(seeds if case.seeded else 1)]
        workers = max(os.cpu_count() or 1, 1)
        with ProcessPoolExecutor(
            workers, mp_context=get_context("spawn"), initializer=_one_thread
        ) as pool:
            running = {
                pool.submit(run_case, case, seed, folder, epochs): (case, seed)
                for case, seed in jobs
            }
            for done, future in enumerate(as_completed(running), 1):
                case, seed = running[future]
                figures = future.result()
                runs[id(case)].append(figures)
                text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
                progress(f"{done}/{len(jobs)}  {case.data}  {case.name}  seed {seed}  {text}")
    return [_summary(case, runs[id(case)], _epochs(case, epochs)) for case in cases]


def _harvest(folder: Path, cases: list[Case], progress: Callable[[str], None]) -> None:
    from saekit.harvesting.run import harvest

    for name in dict.fromkeys(
        name for case in cases for name in (case.data, case.options.get("target_store")) if name
    ):
        model, data, options = DATA[name]
        result = harvest(model, data, folder / name, device="cpu", **options)
        progress(f"{name}: {result.rows:,} rows of {data}")


def _epochs(case: Case, most: int | None) -> int | None:
    """Epochs of a case, at most `most`; None: the model's default."""
    return min(case.epochs or most, most) if most else case.epochs


def _one_thread() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this worker with its parent, which may have been killed; it would train on otherwise."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _summary(case: Case, runs: list[dict[str, float]], epochs: int | None) -> ClassicResult:
    names = [name for name in runs[0] if name != "seconds"]
    mean = {name: statistics.fmean(run[name] for run in runs) for name in names}
    spread = {
        name: statistics.stdev(run[name] for run in runs) if len(runs) > 1 else None
        for name in names
    }
    seconds = statistics.fmean(run["seconds"] for run in runs)
    return ClassicResult(
        case.data,
        case.name,
        case.model,
        case.task,
        len(runs),
        epochs,
        round(seconds, 1),
        mean,
        spread,
    )


# -- one case
# --------------------------------------------------------------------------------------------------


def run_case(case: Case, seed: int, folder: str, epochs: int | None) -> dict[str, float]:
    """The figures of one model with one seed, `seconds` among them."""
    store = Store(Path(folder) / case.data)
    if case.task in TRAINING_TASKS:
        return TRAINING_TASKS[case.task](case, seed, store, epochs)
    if case.model == COPY:
        return {"seconds": 0.0, **TASKS[case.task](None, store, case, folder, seed)}
    options = dict(case.options)
    if "target_store" in options:
        options["target_store"] = str(Path(folder) / options["target_store"])
    units = store.count("train", examples=store.spec.layout != "flat")
    out = Path(folder) / "runs" / f"{os.getpid()}"
    epochs = _epochs(case, epochs)
    rows = None if epochs is None else epochs * units
    result = train(
        store.path,
        out,
        model=case.model,
        seed=seed,
        rows=rows,
        overwrite=True,
        save_seconds=1e9,
        device="cpu",
        **options,
    )
    figures = {
        "seconds": result.rows / max(result.rows_per_s, 1e-9),
        "sse": result.metrics["mse"],
        "fvu": result.metrics["fvu"],
    }
    if "elbo" in result.metrics:
        figures["elbo"] = result.metrics["elbo"]
    return figures | TASKS[case.task](load(out), store, case, folder, seed)


def _reconstruct(model: Any, store: Store, case: Case, folder: str, seed: int) -> dict[str, float]:
    if not store.spec.is_raw:
        return {}
    (x, labels), (x_test, labels_test) = rows_of(store, "train"), rows_of(store, "holdout")
    return {"knn": knn_accuracy(model.encode(x), labels, model.encode(x_test), labels_test)}


def _denoise(model: Any, store: Store, case: Case, folder: str, seed: int) -> dict[str, float]:
    x, _ = rows_of(store, "holdout")
    noise = Noise.parse(case.noise or case.options["noise"])
    noisy = noise(x, step_generator(NOISE_SEED, 0, x.device))
    return {"psnr_in": psnr(x, noisy), "psnr": psnr(x, model(noisy).x_hat)}


def _colour(model: Any, store: Store, case: Case, folder: str, seed: int) -> dict[str, float]:
    grey, _ = rows_of(store, "holdout")
    colour, _ = rows_of(Store(Path(folder) / "colour"), "holdout")
    copied = grey.repeat_interleave(3, dim=1)
    return {
        "psnr_in": psnr(colour, copied),
        "psnr": psnr(colour, copied if model is None else model(grey).x_hat),
    }


def _segment(model: Any, store: Store, case: Case, folder: str, seed: int) -> dict[str, float]:
    x, _ = rows_of(store, "holdout")
    masks, _ = rows_of(Store(Path(folder) / "masks"), "holdout")
    return {"iou": iou(model(x).x_hat, masks).mean}


def _classify(model: Any, store: Store, case: Case, folder: str, seed: int) -> dict[str, float]:
    """Accuracy with 10 labels per class (saekit.measures.classifier); of a closed-form model, whose
    weights cannot be tuned, only that of a probe."""
    draws = tuple(range(3 * seed, 3 * seed + 3))
    (x, labels), (x_test, labels_test) = rows_of(store, "train"), rows_of(store, "holdout")
    if model.strategy == "closed_form":
        return {
            "frozen": (
                few_labels(
                    model.encode(x), labels, model.encode(x_test), labels_test, (PER_CLASS,), draws
                )[0].mean
            )
        }
    result = as_classifier(model, x, labels, x_test, labels_test, PER_CLASS, draws)
    return {
        name: statistics.fmean(getattr(result, name)) for name in ("frozen", "tuned", "scratch")
    }


TASKS: dict[str, Callable[[Any, Store, Case, str, int], dict[str, float]]] = {
    "reconstruct": _reconstruct,
    "denoise": _denoise,
    "colour": _colour,
    "segment": _segment,
    "classify": _classify,
}


def _one_class(case: Case, seed: int, store: Store, epochs: int | None) -> dict[str, float]:
    """AUROC of the reconstruction error with each class in turn as the normal one: the mean, and
    that of the worst class."""
    (x, labels), (x_test, labels_test) = rows_of(store, "train"), rows_of(store, "holdout")
    seconds = 0.0

    def fitted(x_normal) -> Callable[[Any], np.ndarray]:
        nonlocal seconds
        model, took = fit_rows(torch.as_tensor(x_normal), case, seed, epochs)
        seconds += took
        return lambda rows: (
            (torch.as_tensor(rows) - model(torch.as_tensor(rows)).x_hat).square().sum(1).numpy()
        )

    result = one_class(fitted, x, labels, x_test, labels_test)
    return {"seconds": seconds, "auroc": result.mean, "auroc_worst": result.worst[1]}


def _map(case: Case, seed: int, store: Store, epochs: int | None) -> dict[str, float]:
    """A map of `rows` rows in two dimensions, trained on all of them. knn looks up the neighbors of
    one half of the rows in the other half."""
    x, labels = rows_of(store, "train")
    x, labels = x[: case.rows], labels[: case.rows]
    began = time.monotonic()
    if case.model == "t-sne":
        codes = torch.from_numpy(map_2d(x, "tsne", seed))
    else:
        codes = fit_rows(x, case, seed, epochs)[0].encode(x)
    seconds, half = time.monotonic() - began, len(x) // 2
    knn = knn_accuracy(codes[:half], labels[:half], codes[half:], labels[half:])
    return {"seconds": seconds, "knn": knn, "trust": trustworthiness(x, codes)}


# tasks that train models themselves, on part of the rows
TRAINING_TASKS = {"one_class": _one_class, "map": _map}


def fit_rows(
    x_BD: torch.Tensor, case: Case, seed: int, epochs: int | None
) -> tuple[torch.nn.Module, float]:
    """(model that takes raw rows, seconds)."""
    source = ArraySource(x_BD)
    model = build(case.model, x_BD.shape[1], case.options)
    config = TrainConfig(
        case.model, case.options, seed=seed, rows=None if epochs is None else epochs * len(x_BD)
    )
    config = resolved(config, model, len(x_BD))
    fitted = fit(model, source, config, max(config.rows // config.batch, 1), pick_device("cpu"))
    return restore(case.model, dataclasses.asdict(model.config), fitted.tensors), fitted.seconds


def rows_of(store: Store, split: str) -> tuple[torch.Tensor, list[str | None]]:
    """(x (N,D) fp32, labels) of one side of the held-out split of a flat store."""
    x = torch.cat([batch.x.float() for batch in store.batches(8192, split=split)])
    return x, store.labels(split)


# -- the command
# --------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    flags = parser(__doc__)
    flags.add_argument(
        "--names", nargs="+", metavar="NAME", help="only the cases of these names, such as 'pca 8'"
    )
    asked = flags.parse_args(arguments)
    known = list(dict.fromkeys(case.name for case in CASES))
    for name in asked.names or []:
        check_choice("names", name, known)
    cases = [case for case in CASES if asked.names is None or case.name in asked.names]
    results = bench_classic(asked.quick, reporter(asked.quiet), cases)
    names = [name for name in FIGURES if any(name in r.figures for r in results)]
    rows = [
        [r.data, r.name, r.task, *(_with_spread(r, name) for name in names), f"{r.seconds:.0f}"]
        for r in results
    ]
    text = table(["data", "model", "task", *names, "s"], rows, left=(0, 1, 2))
    give(results, [r.flat() for r in results], asked, "mean and spread over seeds", text)


def _with_spread(result: ClassicResult, name: str) -> str:
    spread = result.spread.get(name)
    return figure(result.figures.get(name), FIGURES[name]) + (
        "" if spread is None else f" ±{figure(spread, FIGURES[name])}"
    )


if __name__ == "__main__":
    run(main)
