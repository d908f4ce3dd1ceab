"""What a run has to beat: simple models of the same code size, fitted on the store's training rows.

| control | what its code keeps of a row | why |
|---|---|---|
| pca | code-size numbers, linear | the best linear code of that size |
| k-means | the nearest of as many centroids as the run has latents | a code that only looks up |
| untrained sae | code-size latents of a random dictionary | what sparsity gives without learning |
| ridge | the whole input, linear map to the target | runs with a target store: the linear floor |

Caps are part of a control's name or notes, never silent. A model of whole examples is compared with
PCA and the others on whole examples as flat rows, where all examples have the same size of at most
FLAT_WIDTH values; otherwise on single rows, with the same number of values per example.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from torch import nn

from saekit.evaluation.models import EvaluatedModel, WholeExamples
from saekit.evaluation.passes import chosen_batches
from saekit.models.autoencoder import Autoencoder
from saekit.models.catalog import build, restore
from saekit.rows import Adapter, Rows
from saekit.training.config import TrainConfig
from saekit.training.defaults import resolve
from saekit.training.fit import fit
from saekit.training.inputs import estimate
from saekit.types import ActivationBatch, ActivationSpec, Output, Progress, Split

MOST_CENTROIDS, ROWS_PER_CENTROID = 1024, 4
# an untrained SAE is 32 times as wide as its input, if its decoder stays within 256 MB
EXPANSION, SAE_NUMBERS = 32, 2**26
FLAT_WIDTH = 4096  # PCA takes the covariance of the flat examples: 128 MB in fp64
RIDGE_ROWS = 8192

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Sized:
    """A run, and how many numbers its code keeps per row (or example)."""

    run: EvaluatedModel
    code_size: int


class FlatExamples(Adapter):
    """A store of equally large examples, each as one flat row."""

    def __init__(self, store: Rows, width: int) -> None:
        super().__init__(store)
        self.width = width

    @property
    def spec(self) -> ActivationSpec:
        return dataclasses.replace(super().spec, layout="flat", d_in=self.width, grid=None)

    def count(self, split: Split = "all", examples: bool = False) -> int:
        return super().count(split, examples=True)

    def batches(
        self,
        batch_size: int,
        seed: int | None = None,
        start: int = 0,
        split: Split = "all",
        examples: bool = False,
    ) -> Iterator[ActivationBatch]:
        return super().batches(batch_size, seed, start, split, examples=True)

    def combine(self, *batches: ActivationBatch) -> ActivationBatch:
        return dataclasses.replace(batches[0], x=batches[0].x.flatten(1))


class LinearMap(Autoencoder):
    """Rows -> target rows, x W^T + b. Its code is the input itself."""

    takes = "rows"
    active_above = None

    def __init__(self, W: np.ndarray, b: np.ndarray) -> None:
        super().__init__()
        self.W, self.b = (nn.Buffer(torch.from_numpy(array).float()) for array in (W, b))
        self.latents = W.shape[1]

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def forward(self, x: torch.Tensor) -> Output:
        return Output(x @ self.W.T + self.b, x)


def controls_for(
    runs: Sequence[Sized],
    store: Rows,
    seed: int,
    progress: Callable[[Progress], None] = lambda _: None,
) -> tuple[list[EvaluatedModel], list[str]]:
    """(controls, notes on what was capped), each distinct setting fitted once; `control_of` names
    all runs that it is compared with."""
    planned, taken = _Planned(store, seed), {sized.run.name for sized in runs}
    for sized in runs:
        planned.add(sized)
    controls = []
    for done, (key, (make, names)) in enumerate(planned.makers.items()):
        progress(Progress("controls", done, len(planned.makers), "models"))
        name = f"{key[0]} (control)" if key[0] in taken else key[0]
        controls.append(dataclasses.replace(make(), name=name, control_of=tuple(names)))
    progress(Progress("controls", len(controls), len(controls), "models"))
    return controls, list(dict.fromkeys(planned.notes))


class _Planned:
    """The distinct settings: key -> (function that fits the control, names of the runs)."""

    def __init__(self, store: Rows, seed: int) -> None:
        self.store, self.seed = store, seed
        self.makers: dict[tuple, tuple[Callable[[], EvaluatedModel], list[str]]] = {}
        self.notes: list[str] = []
        self._width: int | None = None

    def add(self, sized: Sized) -> None:
        run = sized.run
        # A run with a target has a linear map to it as its control.
        if run.target is not None:
            path = run.target.path
            name = f"ridge to {Path(path).name}" if self._several_targets(path) else "ridge"
            self._plan((name, path), run, lambda: _ridge(run.source, self.seed))
            return
        source, whole, size = self._unit(sized)
        n, width = source.count("train"), source.spec.d_in
        mark = " of examples" if whole else ""
        # PCA with as many numbers per code, at most the width.
        if run.kind != "pca":
            components = min(size, width)
            if components < size:
                self.notes.append(
                    f"PCA has at most {width:,} components: the code of {run.name} keeps {size:,}"
                    " numbers, so it reconstructs all."
                )
            self._fit(f"pca {components}{mark}", run, "pca", {"latents": components}, source, whole)
        # k-means with as many centroids as latents, as far as the rows allow.
        if run.kind != "kmeans":
            centroids = max(min(run.model.latents, MOST_CENTROIDS, n // ROWS_PER_CENTROID), 1)
            if centroids < run.model.latents:
                self.notes.append(
                    f"k-means has {centroids:,} centroids, {run.name} {run.model.latents:,}"
                    f" latents: there are at most {MOST_CENTROIDS:,}, and at least"
                    f" {ROWS_PER_CENTROID} of the {n:,} training {run.unit if whole else 'row'}s to"
                    " each."
                )
            self._fit(
                f"k-means {centroids}{mark}",
                run,
                "kmeans",
                {"latents": centroids},
                source,
                whole,
            )
        # An untrained SAE.
        options = self._dictionary(run, size, width)
        name = f"untrained sae {options['latents']}, k {options['k']}{mark}"
        self._plan((name,), run, lambda: self._untrained(options, source, whole))

    def _several_targets(self, path: str | Path) -> bool:
        return any(key[0].startswith("ridge") and key[1] != path for key in self.makers)

    def _plan(self, key: tuple, run: EvaluatedModel, make: Callable[[], EvaluatedModel]) -> None:
        self.makers.setdefault(key, (make, []))[1].append(run.name)

    def _fit(
        self,
        name: str,
        run: EvaluatedModel,
        model: str,
        options: dict[str, Any],
        source: Rows,
        whole: bool,
    ) -> None:
        self._plan((name,), run, lambda: self._fitted(model, options, source, whole))

    def _unit(self, sized: Sized) -> tuple[Rows, bool, int]:
        """(rows to fit on, whether these are whole examples, numbers to keep per row)."""
        run, store = sized.run, self.store
        if not run.examples:
            return store, False, sized.code_size
        if width := self._example_width():
            return FlatExamples(store, width), True, sized.code_size
        per_row = max(round(sized.code_size * store.count(examples=True) / store.count()), 1)
        self.notes.append(
            f"Controls of {run.name} work on single rows, with {per_row:,} numbers each: its"
            f" examples differ in size or hold more than {FLAT_WIDTH:,} values, and {per_row:,} a"
            f" row are about {sized.code_size:,} an example."
        )
        return store, False, per_row

    def _example_width(self) -> int:
        """Values of one example; 0 where they differ or are too many."""
        if self._width is None:
            sizes = set()
            for batch in self.store.batches(256, split="all", examples=True):
                size = batch.x[0].numel()
                sizes |= {size, size if batch.mask is None else 0}
                if len(sizes) > 1 or max(sizes) > FLAT_WIDTH:
                    break
            self._width = sizes.pop() if len(sizes) == 1 and max(sizes) <= FLAT_WIDTH else 0
        return self._width

    def _dictionary(self, run: EvaluatedModel, size: int, width: int) -> dict[str, Any]:
        latents = (
            run.model.latents
            if run.kind.startswith("sae")
            else min(EXPANSION * width, max(SAE_NUMBERS // width, size))
        )
        if not run.kind.startswith("sae") and latents < EXPANSION * width:
            self.notes.append(
                f"The untrained SAE has {latents:,} latents, not {EXPANSION} times the width of"
                f" {width:,}, to stay in memory."
            )
        return {"latents": latents, "k": min(size, latents)}

    # -- making
    # ----------------------------------------------------------------------------------------------

    def _fitted(
        self, name: str, options: dict[str, Any], source: Rows, whole: bool
    ) -> EvaluatedModel:
        config = TrainConfig(name, options, normalize="none", seed=self.seed)
        run = resolve(config, source)
        fitted = fit(run.model, source, run.config, 1, CPU)
        settings = dataclasses.asdict(run.model.config)
        return self._control(name, restore(name, settings, fitted.tensors), whole)

    @torch.no_grad()
    def _untrained(self, options: dict[str, Any], source: Rows, whole: bool) -> EvaluatedModel:
        """As training begins: on rows of mean 0 and scale 1, folded."""
        normalize, rows_SD = estimate(source, "center+scale", self.seed, CPU)
        model = build("sae", source.spec.d_in, options)
        model.initialise_from(rows_SD, torch.Generator().manual_seed(self.seed))
        tensors = model.folded(normalize.inputs)
        return self._control(
            "sae topk", restore("sae", dataclasses.asdict(model.config), tensors), whole
        )

    def _control(self, kind: str, model: Autoencoder, whole: bool) -> EvaluatedModel:
        return EvaluatedModel(
            "", kind, "control", WholeExamples(model).eval() if whole else model, self.store
        )


def _ridge(source: Rows, seed: int) -> EvaluatedModel:
    """The penalty is chosen by leave-one-out error, between a millionth of the input's variance and
    ten times that variance."""
    inputs, targets = [], []
    for batch in chosen_batches(source, "train", RIDGE_ROWS, seed, examples=False):
        assert batch.target is not None
        inputs.append(batch.x.double().numpy())
        targets.append(batch.target.double().numpy())
    x, y = np.concatenate(inputs), np.concatenate(targets)
    penalties = len(x) * max(float(x.var(0).mean()), 1e-12) * np.logspace(-6, 1, 8)
    model = RidgeCV(penalties).fit(x, y)
    W = np.asarray(model.coef_).reshape(y.shape[1], -1)
    b = np.broadcast_to(model.intercept_, y.shape[1]).copy()
    return EvaluatedModel("", "ridge", "control", LinearMap(W, b).eval(), source)
