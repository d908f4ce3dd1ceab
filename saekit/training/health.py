"""What a generator draws while it trains: how diverse that is, which classes it has, and whether
the discriminator has won. Two warnings come from this, named collapse and won discriminator.

Shapes: N samples, M rows, D values of a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from saekit.errors import opt
from saekit.models.adversarial.players import TwoPlayers
from saekit.models.autoencoder import Autoencoder
from saekit.models.metrics import ROW_METRICS, Figures
from saekit.rows import Rows
from saekit.store.labels import labels_of
from saekit.training.inputs import BatchNormalizer
from saekit.types import Split

POLLS = 20  # in a run, at least
SAMPLES, LABELED = 256, 2000  # drawn at each; rows of the classifier
WARNS_FROM = 0.25  # share of the steps before which nothing is said: every generator starts flat
COLLAPSED = 0.35
"""Diversity below which a generator has collapsed. Over a run of gan on MNIST of 120,000 rows, seed
0, it is never below 0.41; with discriminator_rate=0.25, 40,000 rows, all samples are the same snow,
and it is 0.28 to 0.33 from a quarter of the run on."""
WON = 0.99
"""Share of rows that a discriminator is right about, over the last some 20 steps, above which it
has won."""
AT_ONCE = 1024  # samples per pass of the generator
JUDGED = 1000  # rows and samples that the figures of a trained model are of, at most
FOUND = 0.2  # of the samples that its share of the rows would give: a class is found
SPANNED, AXES = 0.9, 64  # of the rows' variance, on the axes of distances; so many axes at most
NEAR = 0.9  # of the rows are as near to their nearest other one as a sample of a class to a row


class Reference:
    """Training rows to compare samples with, and the few axes on which they are compared.

    All distances are measured on the first principal axes of the rows: as many as hold SPANNED of
    their variance, at most AXES. Noise in single pixels is spread over all D directions, and little
    of it is left on these axes.

    `labels`: one for each of the M rows, None where a row has none."""

    def __init__(self, rows_MD: torch.Tensor, labels: Sequence[str | None]) -> None:
        rows_MD = rows_MD.flatten(1).float()
        self.mean_D = rows_MD.mean(0)
        self.axes_DA = _principal_axes(rows_MD - self.mean_D)
        self.rows_MA = self._on_axes(rows_MD)
        labeled = [(number, label) for number, label in enumerate(labels) if label is not None]
        self.labels = [label for _, label in labeled]
        self.labeled_LA = self.rows_MA[[number for number, _ in labeled]]
        self.reach = torch.inf
        """Distance to the nearest row up to which a sample has that row's label."""
        if len(labeled) > 1:
            self.reach = float(_nearest(self.labeled_LA).quantile(NEAR))

    def _on_axes(self, x_ND: torch.Tensor) -> torch.Tensor:
        return (x_ND.flatten(1).float() - self.mean_D) @ self.axes_DA

    def diversity(self, samples_ND: torch.Tensor) -> float | None:
        """The mean distance of a sample to the nearest other one, over the same of as many rows:
        near 1 they are as different from each other as rows are, 0 all equal. None where rows do
        not differ, or there are fewer than two."""
        count = min(len(samples_ND), len(self.rows_MA))
        if count < 2:
            return None
        drawn = float(_nearest(self._on_axes(samples_ND[:count])).mean())
        real = float(_nearest(self.rows_MA[:count]).mean())
        return drawn / real if real > 0 else None

    def classes_found(self, samples_ND: torch.Tensor) -> float | None:
        """The share of the rows' classes that samples have. A sample has the label of the nearest
        labeled row if it is as near to it as rows are to each other: no farther than a share NEAR
        of the labeled rows are from their nearest other one. All other samples, such as noise, have
        no class. A class is found where it has at least a fifth of the samples that its share of
        the rows would give. None where no row has a label."""
        if not self.labels or not len(samples_ND):
            return None
        nearest = torch.cdist(self._on_axes(samples_ND), self.labeled_LA).min(1)
        pairs = zip(nearest.indices.tolist(), nearest.values.tolist(), strict=True)
        in_samples = Counter(self.labels[row] for row, far in pairs if far <= self.reach)
        in_rows = Counter(self.labels)
        share = len(samples_ND) / len(self.labels)
        found = [name for name in in_rows if in_samples[name] >= FOUND * share * in_rows[name]]
        return len(found) / len(in_rows)


def _principal_axes(centered_MD: torch.Tensor) -> torch.Tensor:
    """(D, A), orthonormal, from the smaller of the covariance and the Gram matrix."""
    rows, width = centered_MD.shape
    wide = width > rows
    square = centered_MD @ centered_MD.T if wide else centered_MD.T @ centered_MD
    variances, vectors = torch.linalg.eigh(square)  # ascending
    variances, vectors = variances.flip(0).clamp(min=0), vectors.flip(1)
    before = variances.cumsum(0) - variances
    count = min(int((before < SPANNED * variances.sum()).sum()), AXES)
    axes = vectors[:, :count]
    return torch.nn.functional.normalize(centered_MD.T @ axes, dim=0) if wide else axes


def _nearest(x_NA: torch.Tensor) -> torch.Tensor:
    """(N,): the distance of each to its nearest other one."""
    return torch.cdist(x_NA, x_NA).fill_diagonal_(torch.inf).min(1).values


@torch.no_grad()
def drawn(
    model: Autoencoder, n: int, generator: torch.Generator, label: object = None
) -> torch.Tensor:
    """(n, *example) on the CPU, AT_ONCE at a time."""
    parts = []
    for first in range(0, n, AT_ONCE):
        parts.append(model.sample(min(AT_ONCE, n - first), generator, label).cpu())
    return torch.cat(parts)


def generated_figures(
    model: Autoencoder,
    source: Rows,
    split: Split,
    rows: int | None,
    examples: bool = False,
) -> Figures:
    """Of a model that encodes nothing: `diversity` and `classes` of as many samples as rows of the
    split, at most JUDGED; the metrics of reconstructions are None."""
    count = min(JUDGED if rows is None else max(rows, 2), JUDGED, source.count(split, examples))
    batch = next(iter(source.batches(count, 0, split=split, examples=examples)))
    assert batch.rows is not None
    of_rows = labels_of(source)
    labels = [of_rows[row] for row in batch.rows.tolist()]
    samples, x = drawn(model, count, torch.Generator().manual_seed(0)), batch.x.float()
    values: dict[str, float | None] = dict.fromkeys(metric.name for metric in ROW_METRICS)
    real = Reference(x, labels)
    values |= {"diversity": real.diversity(samples), "classes": real.classes_found(samples)}
    return Figures(count, values, None)


def is_due(step: int, total: int, log_every: int) -> bool:
    """Whether a line of metrics has these figures: about POLLS of a run, and the last."""
    return step % (log_every * max(total // (log_every * POLLS), 1)) == 0 or step == total


@dataclass
class Health:
    """Of one run. `seed` and the step decide what is drawn, so that a resumed run measures the
    same."""

    model: TwoPlayers
    real: Reference
    """Of normalized training rows, or examples."""
    seed: int
    low: int = 0
    """Measurements in a row that were below COLLAPSED."""
    said: set[str] = field(default_factory=set)

    @classmethod
    def of(
        cls,
        model: TwoPlayers,
        store: Rows,
        normalize: BatchNormalizer,
        seed: int,
        examples: bool,
    ) -> Health:
        """Compared with the first LABELED training rows in the order of `seed`."""
        count = min(LABELED, store.count("train", examples))
        batch = normalize(next(iter(store.batches(count, seed, 0, "train", examples))))
        labels: list[str | None] = [None] * count
        if batch.rows is not None:
            of_rows = labels_of(store)
            labels = [of_rows[row] for row in batch.rows.tolist()]
        return cls(model, Reference(batch.x, labels), seed)

    def figures(self, step: int) -> dict[str, float | None]:
        """`diversity` of SAMPLES samples, and `classes` where rows have labels."""
        training = self.model.training
        generator = torch.Generator().manual_seed(self.seed + step)
        samples = self.model.eval().sample(SAMPLES, generator)
        self.model.train(training)
        figures: dict[str, float | None] = {"diversity": self.real.diversity(samples)}
        found = self.real.classes_found(samples)
        if found is not None:
            figures["classes"] = found
        self.noted(figures)
        return figures

    def noted(self, figures: dict[str, float | None]) -> None:
        """Count measurements in a row that were too low."""
        low = figures["diversity"]
        self.low = self.low + 1 if low is not None and low < COLLAPSED else 0

    def warnings(
        self, done: float, told_apart: float, figures: dict[str, float | None]
    ) -> list[str]:
        """What is wrong once a share `done` of the run is over, each said once: a collapse after
        two measurements in a row, and a discriminator that is right about a share `told_apart` of
        the rows."""
        found = {}
        if self.low >= 2:
            found["collapse"] = (
                f"collapse: the samples are {figures['diversity']:.2f} times as far from each other"
                f" as rows are (below {COLLAPSED:g}); {opt('instance_noise', 0.1)} or a lower"
                f" {opt('lr')} may help"
            )
        if told_apart > WON:
            slower = opt("discriminator_rate", self.model.discriminator_rate / 2)
            found["won"] = (
                f"won discriminator: it is right about {told_apart:.1%} of the rows"
                f" (above {WON:.0%}), and the generator learns little from it;"
                f" {slower}, {opt('instance_noise', 0.1)} or {opt('spectral_norm', True)} may help"
            )
        if done < WARNS_FROM:
            return []
        new = [text for name, text in found.items() if name not in self.said]
        self.said |= found.keys()
        return new
