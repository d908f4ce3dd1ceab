"""The data types that all parts of saekit share. Shapes, in name suffixes throughout the project:

B rows of a batch, T tokens of a context, H W patch grid, D model width (d_in), F latents, K code
capacity, V vocabulary.

A *row* is one stored hidden-state vector. An *example* is one model input (a context of tokens, or
an image); a *document* consists of examples (for images the two are the same). Every row can be
traced to its token or patch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from saekit.display import Shape, brief, feature_html
from saekit.errors import spelled
from saekit.typed import MisfitError, build

if TYPE_CHECKING:
    import torch
    from saekit_kernels import SparseCodes

SPEC_SCHEMA = 1
# the end of the names of data and models that were objects: they cannot be opened by name
IN_MEMORY = " in memory"
LARGEST_SIZE = 2**32  # of any count in a spec

Layout = Literal["flat", "sequence", "grid"]
Scope = Literal["content", "cls", "all"]
Split = Literal["train", "holdout", "all"]
Strategy = Literal["gradient", "closed_form", "layerwise", "adversarial"]
Takes = Literal["rows", "grid", "sequence"]

# Positions of rows that are not patches of an image: the class token, and registers, counted down
# from here.
CLS_POSITION = -1
FIRST_REGISTER_POSITION = -2


@dataclass(frozen=True)
class ActivationSpec:
    """What a store holds: which vectors, of which model, on which data. Equal specs have equal
    fingerprints."""

    model: str
    # hub commit, or hash of the content of the weights; None when it is not known
    revision: str | None
    hook: str  # canonical module path, `:in` for a module's input
    modality: str  # text | image
    d_in: int
    dtype: str  # float16 | bfloat16 | float32
    layout: Layout
    scope: Scope
    grid: tuple[int, int] | None  # patches (H, W) of an image
    dataset: str
    context: int | None  # tokens in a context, special tokens included
    seed: int
    pack: bool = False  # contexts filled across document boundaries
    max_norm: float | None = None  # rows above this multiple of the median norm were dropped
    column: str | None = None
    schema_version: int = SPEC_SCHEMA

    @property
    def fingerprint(self) -> str:
        """sha256 (64 hex digits) of the canonical JSON."""
        return hashlib.sha256(canonical_json(dataclasses.asdict(self)).encode()).hexdigest()

    @property
    def is_raw(self) -> bool:
        """Whether the rows are data itself (`raw:pixels` ...), not a model's hidden states."""
        return self.model.startswith("raw:")

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The shape of one example as models see it: (D,), or (H,W,C) for a flat row that is an
        image; (H,W,D) for a grid; (T,D) for a sequence, with T None."""
        if self.layout == "sequence":
            return (None, self.d_in)
        if self.layout == "grid":
            assert self.grid is not None
            return (*self.grid, self.d_in)
        if self.is_raw and self.grid:
            return (*self.grid, self.d_in // (self.grid[0] * self.grid[1]))
        return (self.d_in,)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any], where: str = "spec") -> ActivationSpec:
        """Raises MisfitError (a ValueError) for missing, unknown or wrong fields."""
        spec = build(cls, data, where)
        for name, value, least in (
            ("d_in", spec.d_in, 1),
            ("seed", spec.seed, 0),
            ("context", spec.context or 1, 1),
        ):
            if not least <= value <= LARGEST_SIZE:
                raise MisfitError(
                    f"{where}.{name} is {value}; it must be between {least} and {LARGEST_SIZE:,}"
                )
        if spec.grid is not None and not all(1 <= side <= LARGEST_SIZE for side in spec.grid):
            raise MisfitError(
                f"{where}.grid is {list(spec.grid)}; both sides must be between 1 and"
                f" {LARGEST_SIZE:,}"
            )
        return spec


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces. Tuples are written as lists."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


@dataclass
class ActivationBatch:
    """Rows with their origin. x is (B,D), (B,T,D) or (B,H,W,D) by layout; mask is x's shape without
    D (None: all valid).

    doc_id and example_id are (B,) int64. position is (B,) int32 on flat batches: the index into the
    example's token ids, or the row-major patch index; class token and registers count down from -1.
    On other layouts it is the first row's position.
    """

    x: torch.Tensor
    doc_id: torch.Tensor
    example_id: torch.Tensor
    position: torch.Tensor
    mask: torch.Tensor | None = None
    # (B,) int64: row numbers in the store, so that a bad value can name its shard and row
    rows: torch.Tensor | None = None
    target: torch.Tensor | None = None  # what to reconstruct, from another store; None: x itself
    # (B,D): the row before each row in its example, for models that need it
    previous: torch.Tensor | None = None
    has_previous: torch.Tensor | None = None  # (B,) bool: whether there is one
    # (B,) int64: the class of each row or example, for models that read it (saekit.store.labels)
    label: torch.Tensor | None = None

    def __repr__(self) -> str:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return brief(self, {n: Shape(value) for n, value in fields.items() if value is not None})

    def on(self, device: torch.device) -> ActivationBatch:
        """The same batch with everything that a model reads on a device."""
        return self.changed(lambda _, value: value.to(device))

    def changed(self, change: Callable[[str, torch.Tensor], torch.Tensor]) -> ActivationBatch:
        """The same batch with everything that a model reads replaced by change(name, tensor); what
        says where the rows come from stays as it is."""
        names = ("x", "mask", "target", "previous", "has_previous", "label")
        values = {name: getattr(self, name) for name in names}
        changed = {n: change(n, value) for n, value in values.items() if value is not None}
        return dataclasses.replace(self, **changed)


@dataclass
class Output:
    """A forward pass: x_hat in the shape of x, the code, and other values that the model computed
    on the way."""

    x_hat: torch.Tensor
    code: torch.Tensor | SparseCodes
    extras: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        extras = {"extras": tuple(self.extras) or None}
        return brief(self, {"x_hat": Shape(self.x_hat), "code": Shape(self.code), **extras})


@dataclass
class LossTerms:
    """`total` equals the sum of terms[name] * weights[name]; only it has to be differentiable.
    `metrics` are not part of the loss."""

    total: torch.Tensor
    terms: dict[str, torch.Tensor]  # before weighting, scalars
    weights: dict[str, float]
    # (F,) integers: in how many rows of the batch each latent is active; None for dense codes
    fired: torch.Tensor | None = None
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """Steps [start, stop) of a run, trained on one loss. `layer` counts from the input; None: the
    whole model."""

    start: int
    stop: int
    layer: int | None = None


@dataclass(frozen=True)
class Step:
    """What the loss of a model knows about the run: its progress, and how to compute."""

    number: int = 0
    """Steps done before this one."""
    total: int = 0
    """Steps of the whole run; schedules of the loss are fractions of it. 0: not known."""
    seed: int = 0
    """Seed of noise and samples."""
    dead: torch.Tensor | None = None
    """(n,) int64: dead latents, longest idle first; None when there are none."""
    backend: str = "torch"
    """torch | triton: what the sparse kernels run on."""
    encoder_plan: str = "auto"
    """filter | gemm | auto: how the torch backend encodes; all give the same codes."""

    def longest_dead(self, most: int) -> torch.Tensor | None:
        """Indices of at most `most` dead latents, or None when none is dead."""
        return None if self.dead is None or len(self.dead) == 0 else self.dead[:most]


FIRST = Step()


@dataclass
class Example:
    """One row where a latent fired, with its surroundings.

    Text: `tokens` and `values` (same length) are a window of the context around `tokens[centre]`.
    Image: `values` are the latent's activations on all patches, row-major over `grid`; `image` is
    the key of a thumbnail.
    """

    group: Literal["top", "interval", "random", "quantile", "median"]
    act: float  # the latent's activation at this row, with its sign
    doc_id: int
    example_id: int
    position: int
    values: list[float]
    source: str = ""  # document name or image reference
    # number of the record's band or of the quantile, 0 the lowest; None for the other groups
    interval: int | None = None
    tokens: list[str] | None = None
    centre: int | None = None
    grid: tuple[int, int] | None = None
    image: str | None = None
    label: str | None = None  # from the data
    # text: [position, value] of every token of the whole context where the latent is not 0
    context_values: list[list[float]] | None = None


@dataclass
class FeatureRecord:
    """All that is known about one latent. Pure data: page, CLI, explanation and interop read it."""

    index: int
    density: float | None  # share of the rows where the latent is active
    active_rows: int
    max: float  # the largest |value|
    # {"edges": [n + 1], "counts": [n]} of the values: up to 100 bins from 0, or from the smallest
    # value if some are negative, to max
    histogram: dict[str, list[float]]
    examples: list[Example]
    # {"index", "cosine"}: nearest decoder rows
    neighbours: list[dict[str, float]] = field(default_factory=list)
    # {"index", "together", "jaccard", "pmi"}: latents on the same rows, and on the next token
    coactivation: list[dict[str, float]] = field(default_factory=list)
    following: list[dict[str, float]] = field(default_factory=list)
    # {"top", "bottom"}: [{"token", "value"}], direct path only
    logits: dict[str, list[dict[str, Any]]] | None = None
    label: str | None = None
    # crosscoders only: every hook's share of the decoder norms, which sum to 1
    hook_shares: dict[str, float] | None = None
    # [{"low", "high", "rows"}] x 5: intervals of |value| from 0 to max, and the rows in them
    bands: list[dict[str, float]] | None = None
    # how far the most raised and lowered logits stand out, in standard deviations, and what 99 % of
    # random directions stay below: {"raised", "lowered", "raised_chance", "lowered_chance"} of ten
    # together, the same with "_one" of the strongest only; "raised_beyond", "lowered_beyond": how
    # many of the ten do so by themselves
    logit_test: dict[str, float] | None = None
    # {"edges": [51], "counts": [50]}: how many tokens of the vocabulary the decoder row raises or
    # lowers by how much; None where neither end stands out
    logit_histogram: dict[str, list[float]] | None = None
    # saekit.inspection.score; None where it does not apply
    score: float | None = None
    # the commonest word of its rows: {"kind", "text", "count", "of", "coherence",
    # "lift"}
    meaning: dict[str, Any] | None = None
    # rows of all sizes: at random, of each fifth of the rows by size, and the one of median size
    samples: list[Example] = field(default_factory=list)
    # text: {"tokens": [{"token", "rows", "lift"}], "different", "position", "first"}
    tokens: dict[str, Any] | None = None
    # {"labels": [{"label", "examples", "strongest", "lift"}], "examples", "strongest", "least"}:
    # labels of the data that its images (contexts) have more often than others, none below `least`
    # of these (saekit.inspection.labels)
    data_labels: dict[str, Any] | None = None
    # [{"low", "high", "rows"}] x 5: the smallest and the largest |value| of each fifth of its rows
    # by size, of equal numbers of rows, and that number
    fifths: list[dict[str, float]] | None = None
    # {"count", "of", "lift"}: of all its rows, or for labels and names all its images (contexts),
    # those with the word of `meaning` (saekit.inspection.word_lift)
    word: dict[str, float] | None = None

    def __repr__(self) -> str:
        values = {name: getattr(self, name) for name in ("density", "active_rows", "max", "label")}
        shown = {**values, "examples": len(self.examples)}
        return brief(self, shown, f"index={self.index}")

    def _repr_html_(self) -> str:
        """Its figures and its strongest examples, the token in bold."""
        return feature_html(repr(self), self.examples)

    def to_json(self) -> dict[str, Any]:
        """The fields by name. Lists inside are not copied: dataclasses.asdict takes as long as all
        the rest of a page."""
        lists = {"examples": self.examples, "samples": self.samples}
        return {**vars(self), **{n: [dict(vars(e)) for e in shown] for n, shown in lists.items()}}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> FeatureRecord:
        lists = {
            name: [
                Example(**{**e, "grid": tuple(e["grid"]) if e.get("grid") else None})
                for e in data.get(name, ())
            ]
            for name in ("examples", "samples")
        }
        return cls(**{**data, **lists})


@dataclass(frozen=True)
class Progress:
    """A report to the caller's callback; the CLI displays it. `figures` holds what the phase
    measures (loss, fvu, rows_per_s...)."""

    phase: str  # harvest | train | index ...
    done: int
    total: int
    unit: str = "rows"
    figures: Mapping[str, float | None] = field(default_factory=dict)
    message: str | None = None  # a line for the user, shown once; names options as Python does
    # the same with its options marked (saekit.errors.opt), for other front ends
    raw_message: str | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.message is not None:
            object.__setattr__(self, "raw_message", self.message)
            object.__setattr__(self, "message", spelled(self.message))
