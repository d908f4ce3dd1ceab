"""The interface of a model to trainer, evaluator, checkpoint, inspection and CLI: a torch module
with these members, most of which do nothing unless a model overrides them.

`encode` and `decode` act on rows in the units that the weights are in: the normalized training
input during training, raw activations once loaded from a checkpoint (`folded` gives the weights for
that). A model with the strategy `gradient` has `initialise_from` and `loss`; `layerwise` is the
same with several stages; `closed_form` has `fit` only; `adversarial` has a loss for each of two
players (saekit.models.adversarial.players).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from saekit.display import html_table
from saekit.errors import UsageError, opt
from saekit.models.from_arrays import takes_arrays
from saekit.types import FIRST, ActivationBatch, LossTerms, Output, Stage, Step, Strategy, Takes

if TYPE_CHECKING:
    from saekit.models.codes import Code
    from saekit.models.normalizer import Normalizer
    from saekit.models.sae.fused import Adam


EPOCHS, FEWEST_EPOCHS, MOST_ROWS = 60, 8, 8_000_000
STEPS_PER_EPOCH, MOST_BATCH = 32, 4096


@dataclass(frozen=True)
class Recipe:
    """How a model trains unless the user says otherwise."""

    batch: int
    """Rows or examples per step."""
    rows: int
    """Rows or examples to train on, counted with repetition."""
    lr: float
    """Peak learning rate."""
    weight_decay: float = 0.0


class Autoencoder(nn.Module):
    strategy: Strategy = "gradient"
    takes: ClassVar[Takes] = "rows"
    """Models that take `grid` or `sequence` see whole examples, (B,H,W,D) or (B,T,D), where the
    store has that layout."""
    active_above: float | None = None
    """An entry of the code above this value is active; None: a dense code, for which l0, dead and
    density are not defined."""
    resamples: bool = False
    """Whether dead latents are pointed at badly reconstructed rows (`resample`)."""
    nudges: bool = False
    """Whether dead latents are moved toward firing (`nudge`)."""
    needs_previous: ClassVar[bool] = False
    """Whether the loss uses the row before each row in its example."""
    encodes: ClassVar[bool] = True
    """Whether rows have codes; a generator without an encoder only draws and decodes them."""
    generates: ClassVar[bool] = False
    """Whether it draws rows that are not in the data (`sample`)."""
    sparse_kernels: ClassVar[bool] = False
    """Whether its training step runs on saekit_kernels, which choose the precision themselves."""
    lr: ClassVar[float] = 1e-3
    """Peak learning rate, and the weight decay below: measured on 4,000 images of 784 pixels
    (docs/notes/log.md)."""
    weight_decay: ClassVar[float] = 1e-2
    decay_share: ClassVar[float] = 0.2
    """Share of a stage's steps over which the learning rate falls to 0."""
    by_output: ClassVar[tuple[str, ...]] = ()
    """Parameters whose first dimension is the output's, not the latents'."""

    total_steps: int = 0
    dead_order: torch.Tensor | None = None
    """With `total_steps`: what `loss` assumes about the run if it is given only the number of a
    step (`at`)."""

    origin: str | None = None
    """The checkpoint folder or published dictionary that `saekit.load` read, all of it."""

    config: Any
    d_in: int
    latents: int

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """The map of every model takes arrays too (saekit.models.from_arrays)."""
        super().__init_subclass__(**kwargs)
        for name in ("encode", "decode", "forward"):
            if name in vars(cls):
                setattr(cls, name, takes_arrays(vars(cls)[name]))

    def extra_repr(self) -> str:
        """What `repr` shows besides the layers."""
        example = getattr(self, "example_shape", (self.d_in,))
        return f"{' x '.join(str(size or 'T') for size in example)} -> {self.latents}"

    def _repr_html_(self) -> str:
        """Its size, for a notebook."""
        figures = {name: getattr(self.config, name, None) for name in ("sparsity", "k")}
        size = {"d_in": self.d_in, "latents": self.latents}
        weights = sum(parameter.numel() for parameter in self.parameters())
        return html_table([{**size, **figures, "parameters": weights}], type(self).__name__)

    # -- the map

    def encode(self, x: torch.Tensor) -> Code:
        """The code (..., F) of x (..., D)."""
        raise NotImplementedError

    def decode(self, code: Code) -> torch.Tensor:
        """x_hat (..., D) of a code (..., F)."""
        raise NotImplementedError

    @takes_arrays
    def forward(self, x: torch.Tensor) -> Output:
        code = self.encode(x)
        return Output(self.decode(code), code)

    def sample(self, count: int, generator: torch.Generator, label: object = None) -> torch.Tensor:
        """(count, *example): rows drawn from the model, in the units of `decode`; `label`: of this
        class, where the model reads classes. Raises UsageError."""
        raise UsageError(
            f"{type(self).__name__} cannot draw rows: it learns no distribution of codes",
            f"train a model that does: {opt('model', 'vae', 'gan', 'dcgan', 'cgan', 'aae')}",
        )

    def no_label(self, label: object) -> None:
        """Raise UsageError for a label: for models that do not read classes."""
        if label is not None:
            raise UsageError(
                f"{opt('label', label)}: {type(self).__name__} does not read labels",
                f"train {opt('model', 'cgan')}",
            )

    # -- training

    def recipe(self, units: int) -> Recipe:
        """The defaults for `units` training rows, or examples. An SAE trains on millions of hidden
        states, other models also on a few thousand images: their steps are shares of the data."""
        batch = min(max(power_of_two(units / STEPS_PER_EPOCH), 32), MOST_BATCH, units)
        return Recipe(
            batch,
            min(EPOCHS * units, max(MOST_ROWS, FEWEST_EPOCHS * units)),
            self.lr,
            self.weight_decay,
        )

    def initialise_from(self, sample: torch.Tensor, generator: torch.Generator) -> None:
        """First weights that fit the data: a sample of normalized rows."""

    def initialise(self, sample: torch.Tensor, generator: torch.Generator) -> None:
        """The older name of `initialise_from`."""
        self.initialise_from(sample, generator)

    def start_at(
        self,
        mean_D: torch.Tensor,
        variance: float,
        target_BD: torch.Tensor,
        sample_BD: torch.Tensor,
    ) -> None:
        """Called after `initialise_from` with the mean (D_out) of what is reconstructed, the mean
        of
        ||x - mean||^2 of it, some of its rows, and the sample of the input."""

    def fit(self, batches: Iterable[torch.Tensor]) -> None:
        """Strategy `closed_form`: the whole training, from batches of x."""
        raise NotImplementedError

    def stages(self, total: int) -> list[Stage]:
        return [Stage(0, total)]

    def enter(self, stage: Stage, sample: torch.Tensor | None = None) -> None:
        """Called before the first step of a stage."""

    def loss(self, batch: ActivationBatch | torch.Tensor, step: Step | int = FIRST) -> LossTerms:
        raise NotImplementedError

    def at(self, step: Step | int) -> Step:
        """The step itself, or the one after so many steps."""
        return (
            step if isinstance(step, Step) else Step(step, self.total_steps, dead=self.dead_order)
        )

    def fused_step(self, batch: ActivationBatch, step: Step, adam: Adam) -> LossTerms | None:
        """Loss, gradients, Adam and constraints in one pass, or None where that does not apply."""
        return None

    def before_step(self) -> None:
        """Called when the gradients are computed: project them."""

    def after_step(self) -> None:
        """Called when the parameters have changed: project them onto their constraints."""

    def observe(self, l0: float, step: Step) -> None:
        """Called at every poll of the device, after `step.number` steps, with the mean L0 of recent
        rows."""

    @property
    def compares(self) -> bool:
        """Whether it is shown held-out rows from time to time (`compare`)."""
        return False

    def compare(self, x: torch.Tensor, step: Step) -> None:
        """Called with held-out rows, if `compares`."""

    def resample(
        self, dead: torch.Tensor, batch: ActivationBatch, generator: torch.Generator, step: Step
    ) -> None:
        """Give the latents `dead` new directions, from a batch."""

    def nudge(self, dead: torch.Tensor, batch: ActivationBatch, step: Step) -> None:
        """Move the latents `dead`, longest idle first, a little toward firing on these rows."""

    def run_state(self) -> dict[str, Any]:
        """What training has learned besides tensors, as JSON."""
        return {}

    def continue_from(self, state: dict[str, Any]) -> None:
        """Restore what `run_state` returned. Raises MisfitError."""

    def batch_bytes(self, batch: int) -> int:
        """An estimate of the bytes kept for the backward pass, on `batch` rows or examples."""
        return 0

    # -- saving

    @classmethod
    def for_weights(cls, config: Any) -> Autoencoder:
        """A model with the tensors of a checkpoint, to load them into."""
        return cls(config)

    def folded(
        self, inputs: Normalizer, targets: Normalizer | None = None
    ) -> dict[str, torch.Tensor]:
        """The tensors that act on raw x as these act on normalized x; `targets` normalizes what is
        reconstructed where that is another store."""
        raise NotImplementedError


def as_batch(batch: ActivationBatch | torch.Tensor) -> ActivationBatch:
    """Rows (B,D) that come from no store, as a batch."""
    if not isinstance(batch, torch.Tensor):
        return batch
    unknown = torch.zeros(len(batch), dtype=torch.int64)
    return ActivationBatch(batch, unknown, unknown, unknown.int())


def power_of_two(value: float) -> int:
    """The largest power of two up to `value`; at least 1."""
    return 1 << max(int(value).bit_length() - 1, 0)
