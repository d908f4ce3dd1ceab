"""What a harvest is asked for, and what it answers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from saekit.display import brief
from saekit.errors import UsageError, did_you_mean, opt
from saekit.options import Device, Doc, check
from saekit.store.split import HOLDOUT_SHARE
from saekit.types import ActivationBatch

if TYPE_CHECKING:
    import torch

RAW = "raw:"
INPUT, ROWS = "Input", "Rows"  # panels of the help
AUTO = "auto"  # dtype
# data that is stored as it is, in the place of a MODEL
RAW_KINDS = ("raw:pixels", "raw:array", "raw:tfidf")
# what raw data has no use for
_OF_MODELS = ("hooks", "scope", "ctx", "pack", "max_norm", "trust_remote_code")


def is_raw(model: str) -> bool:
    return model.startswith(RAW)


def check_raw_kind(model: str) -> None:
    if model not in RAW_KINDS:
        raise UsageError(
            f"{model} is not a kind of raw data",
            f"{did_you_mean(model, RAW_KINDS)}choose {', '.join(RAW_KINDS)}",
        )


@dataclass(frozen=True)
class HarvestConfig:
    """The settings of a harvest."""

    hooks: tuple[str, ...] = ()
    rows: Annotated[int | None, Doc("Vectors to store, in every layout (default: all).")] = None
    scope: Annotated[
        Literal["content", "cls", "all"],
        Doc("Positions: text without special tokens or patches; the class token; all.", ROWS),
    ] = "content"
    layout: Annotated[
        Literal["flat", "sequence", "grid"],
        Doc("How rows lie in the store: single, whole contexts, or images of patches.", ROWS),
    ] = "flat"
    ctx: Annotated[int, Doc("Tokens per context, including special tokens.", INPUT)] = 128
    batch: Annotated[int, Doc("Contexts or images per forward pass.", INPUT)] = 32
    dtype: Annotated[
        Literal["float16", "bfloat16", "float32", "auto"] | None,
        Doc(
            "Stored dtype (default: float16, raw data float32). auto: the smallest that costs less"
            " than 5 % of any dimension's spread.",
            ROWS,
        ),
    ] = None
    shard_mb: Annotated[
        int,
        Doc("Size of a shard: what a kill can lose; memory grows to about twice it.", ROWS),
    ] = 256
    max_norm: Annotated[
        float | None, Doc("Drop rows above this multiple of the median norm.", ROWS)
    ] = None
    column: Annotated[str | None, Doc("Column of a table that holds the text or image.", INPUT)] = (
        None
    )
    pack: Annotated[bool, Doc("Fill contexts across documents.", INPUT)] = False
    seed: Annotated[int, Doc("Seed of the order of the documents and of the held-out part.")] = 0
    holdout: Annotated[
        float, Doc("Share of the rows kept from training, in whole documents.", ROWS)
    ] = HOLDOUT_SHARE
    vocabulary: Annotated[int, Doc("Most frequent words that raw:tfidf counts.", INPUT)] = 2000
    skip_broken: Annotated[
        bool, Doc("Skip and count inputs that cannot be read; else the first is an error.", INPUT)
    ] = False
    device: Device = "auto"
    trust_remote_code: Annotated[
        bool, Doc("Run Python code that comes with MODEL; never stored in a config file.")
    ] = False

    def __post_init__(self) -> None:
        check(self)
        for name in ("rows", "ctx", "batch", "shard_mb", "vocabulary"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{opt(name, value)} must be at least 1")
        if not 0 < self.holdout < 1:
            raise UsageError(
                f"{opt('holdout', self.holdout)} must be in (0, 1)",
                f"{opt('holdout', 0.05)} keeps one row in twenty from training",
            )
        if self.seed < 0:
            raise UsageError(f"{opt('seed', self.seed)} must not be negative")
        if self.max_norm is not None and self.max_norm <= 0:
            raise UsageError(f"{opt('max_norm', self.max_norm)} must be above 0")
        if self.layout != "flat" and self.max_norm is not None:
            raise UsageError(
                f"{opt('max_norm')} drops single rows, which {opt('layout', self.layout)} cannot"
                " have",
                opt("layout", "flat"),
            )

    def check_for(self, model: str) -> None:
        """Raise UsageError for what `model` needs and is not there, or has no use for: said before
        a model loads."""
        raw = is_raw(model)
        if raw:
            check_raw_kind(model)
        elif not self.hooks:
            raise UsageError(
                f"{opt('hook')} is missing",
                f"{opt('hook', 'blocks.2')}, or another of those that saekit harvest MODEL DATA OUT"
                " --list-hooks prints",
            )
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        given = [
            opt(name.removesuffix("s"))
            for name in _OF_MODELS
            if raw and getattr(self, name) != defaults[name]
        ]
        if given:
            raise UsageError(
                f"{', '.join(given)} with {model}: there is no model to read from",
                f"drop {', '.join(given)}",
            )
        if model != "raw:tfidf" and self.vocabulary != defaults["vocabulary"]:
            raise UsageError(
                f"{opt('vocabulary')} with {model}: it counts the words of raw:tfidf",
                f"drop {opt('vocabulary')}",
            )


@dataclass(frozen=True)
class HarvestResult:
    path: str | None
    """None where no folder was given: then the rows are in `batches`."""
    rows: int
    """How many rows, of each hook."""
    asked: int | None
    fingerprint: str | None
    """Of the one store; None when several hooks were harvested (see stores)."""
    seconds: float
    rows_per_s: float
    stores: dict[str, str]
    """Canonical hook path (the kind of raw data) -> store folder."""
    dropped: int
    """Rows left out by max_norm; documents without a word of the vocabulary; array entries with NaN
    or inf (skip_broken)."""
    skipped: int = 0
    """Inputs that could not be read and were left out (skip_broken)."""
    self_check: dict[str, str] | None = None
    """What was shown on the first contexts (saekit.harvesting.selfcheck); None for raw data."""
    batches: dict[str, ActivationBatch] | None = field(default=None, repr=False)
    """Of a harvest without a folder: canonical hook path -> all its rows, x (N,D), with doc_id,
    example_id and position (N,)."""

    def __repr__(self) -> str:
        named = {name: getattr(self, name) for name in ("path", "rows", "asked", "rows_per_s")}
        hooks = tuple(self.stores) or tuple(self.batches or ())
        lost = {"dropped": self.dropped or None, "skipped": self.skipped or None}
        return brief(self, {**named, "hooks": hooks, **lost, "seconds": self.seconds})

    @property
    def x(self) -> torch.Tensor:
        """The rows (N,D) of a harvest of one hook without a folder, in its dtype. Raises UsageError
        for any other harvest."""
        if self.batches is None:
            raise UsageError(
                "the rows of this harvest are on disk", "saekit.open_store(result.path)"
            )
        if len(self.batches) > 1:
            raise UsageError(
                "several hooks were harvested",
                f"result.batches[HOOK].x, HOOK one of {', '.join(self.batches)}",
            )
        return next(iter(self.batches.values())).x


@dataclass(frozen=True)
class HarvestPlan:
    """What a harvest would write. rows, bytes and shards are None when all of the data is taken and
    its size is not known before."""

    hooks: dict[str, int]
    """Canonical hook path (the kind of raw data) -> d_in."""
    rows: int | None
    bytes: int | None
    shards: int | None
    disk_free: int
