"""What adversarial.py measures of the samples of a model: of images with a classifier as the judge,
of hidden states with a probe and a sparse autoencoder. None in place of a model: training rows
stand in for samples."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from classic import rows_of

from saekit.measures.frechet import frechet_distance
from saekit.measures.hidden_samples import latent_use, told_apart
from saekit.measures.judge import STEPS, Judge, coverage, train_judge
from saekit.measures.samples import diversity, memorization, precision_recall
from saekit.report.sheets import class_sheet, path_sheet
from saekit.store.reader import Store
from saekit.training.run import train

SEED = 0
MOST = 2000  # samples and real rows: distances are taken between all of them
# the dictionary of hidden states
SAE = {"model": "sae", "latents": 512, "k": 16, "batch": 1024}
SAE_ROWS = 200_000
PER_CLASS, ENDS, PATH = 10, 7, 10  # pictures: samples per class; ends of paths, images per path

Figures = dict[str, Any]
Measure = Callable[[str, Any], Figures]
"""(name of the case, model or None) -> figures by their names in AdversarialResult."""


@dataclass(frozen=True)
class Sides:
    """Training rows (N,D), and as many held-out rows (M,D) and draws of training rows (M,D) as
    samples are compared with."""

    store: Store
    train: torch.Tensor
    train_labels: list[str]
    held_out: torch.Tensor
    labels: list[str]
    copied: torch.Tensor

    @classmethod
    def of(cls, store: Store) -> Sides:
        (x, y), (new, new_labels) = rows_of(store, "train"), rows_of(store, "holdout")
        # drawn, since a store is in the order of its data
        generator = torch.Generator().manual_seed(SEED)
        count = min(MOST, len(x), len(new))
        some, other = (torch.randperm(len(part), generator=generator)[:count] for part in (new, x))
        return cls(store, x, y, new[some], [new_labels[i] for i in some], x[other])

    def samples(self, model: Any) -> torch.Tensor:
        """(M,D)"""
        if model is None:
            return self.copied
        drawn = model.sample(len(self.held_out), torch.Generator().manual_seed(SEED))
        return drawn.flatten(1).float()

    def beside_real(self, drawn: torch.Tensor) -> Figures:
        """Distances to rows in the rows' own values."""
        found = memorization(self.train, self.held_out, drawn)
        return {
            "memory": found.ratio,
            "nearer": found.nearer,
            "copies": found.copies,
            "diversity": diversity(self.held_out, drawn),
        }


def judge_images(sides: Sides, pictures: Path | None, steps: int = STEPS) -> Measure:
    """Measures of images of a store; `pictures`: a folder for sheets of samples, `steps` of the
    judge's training."""
    judge = train_judge(
        sides.train,
        sides.train_labels,
        sides.held_out,
        sides.labels,
        sides.store.spec.shape,
        steps=steps,
    )
    real = judge.features(sides.held_out)

    def measure(name: str, model: Any) -> Figures:
        drawn = sides.samples(model)
        features, predicted = judge.features(drawn), judge.predict(drawn)
        covered = coverage(predicted, sides.train_labels)
        overlap = precision_recall(real, features)
        if pictures is not None and model is not None:
            _pictures(pictures, name, model, drawn, predicted, judge, sides)
        return {
            "classes": covered.found,
            "of_classes": len(judge.names),
            "entropy": covered.entropy,
            "recognized": _recognized(model, judge, len(drawn)),
            "judge": judge.accuracy,
            "frechet": frechet_distance(real, features),
            "precision": overlap.precision,
            "recall": overlap.recall,
            **sides.beside_real(drawn),
        }

    return measure


def judge_hidden(sides: Sides, rows: int = SAE_ROWS) -> Measure:
    """Measures of hidden states of a store; `rows` train the dictionary."""
    sae: Any = train(sides.store.path, None, rows=rows, **SAE).model
    code = sae.encode(sides.held_out)

    def measure(name: str, model: Any) -> Figures:
        drawn = sides.samples(model)
        use = latent_use(code, sae.encode(drawn), sae.active_above)
        overlap = precision_recall(sides.held_out, drawn)
        return {
            "frechet": frechet_distance(sides.held_out, drawn),
            "precision": overlap.precision,
            "recall": overlap.recall,
            **sides.beside_real(drawn),
            "apart": told_apart(sides.held_out, drawn),
            "density": use.density,
            "coactivation": use.coactivation,
            "silent": use.silent,
            "silent_real": use.silent_real,
        }

    return measure


def by_class(model: Any, names: np.ndarray, count: int) -> tuple[torch.Tensor, np.ndarray]:
    """(samples (M,D), the class that each was asked for), `count` in all."""
    each = -(-count // len(names))
    generator = torch.Generator().manual_seed(SEED)
    drawn = [model.sample(each, generator, label=name).flatten(1) for name in names]
    return torch.cat(drawn).float(), names.repeat(each)


def _is_conditional(model: Any) -> bool:
    return bool(getattr(model.config, "classes", ()))


def _recognized(model: Any, judge: Judge, count: int) -> float | None:
    if model is None or not _is_conditional(model):
        return None
    return judge.recognized(*by_class(model, judge.names, count))


def _pictures(
    folder: Path,
    name: str,
    model: Any,
    drawn: torch.Tensor,
    predicted: np.ndarray,
    judge: Judge,
    sides: Sides,
) -> None:
    """samples-NAME.png, in lines by the class asked for, else by the judge's; paths-NAME.png."""
    folder.mkdir(parents=True, exist_ok=True)
    shape, stem = sides.store.spec.shape, "-".join(re.findall(r"\w+", name))
    if _is_conditional(model):
        drawn, predicted = by_class(model, judge.names, PER_CLASS * len(judge.names))
    picture = class_sheet(drawn, predicted, judge.names, shape, PER_CLASS)
    # digits are gray
    picture.convert("LA").save(folder / f"samples-{stem}.png", optimize=True)
    z_BF = torch.randn(ENDS, model.latents, generator=torch.Generator().manual_seed(SEED))
    decode = model.decode
    if _is_conditional(model):
        # one class per path; path_sheet decodes each path at once
        names = itertools.cycle(judge.names)
        decode = lambda z: model.decode(z, label=next(names))
    paths = path_sheet(decode, z_BF, shape, PATH)
    paths.convert("LA").save(folder / f"paths-{stem}.png", optimize=True)
