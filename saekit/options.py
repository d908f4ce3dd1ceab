"""Options, declared once: `k: Annotated[int, Doc("Active latents per row.")] = 32`.

A field of a config class, or a parameter of a public function, carries its type, its default and
its text. Flags, their help, choices, keys of config files, docs/options.md and the keyword
arguments that editors complete are made from that. None means: not set.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from saekit.errors import UsageError, check_choice, opt
from saekit.typed import MisfitError, as_type

REQUIRED = inspect.Parameter.empty
VAR_KEYWORD = inspect.Parameter.VAR_KEYWORD
F = TypeVar("F", bound=Callable[..., Any])
_KEYWORDS = "__saekit_keywords__"


@dataclass(frozen=True)
class Doc:
    """What an option means, as metadata of `Annotated`. A field without one is not an option."""

    text: str
    """One or two sentences: the unit, and the default where it depends on something."""
    panel: str = ""
    """Heading of the help under which its flag stands; "": that of the command itself."""
    metavar: str | None = None
    """What help shows in place of the value; None: the choices, or the name of the type. With
    dots, `STORE...`, the argument or flag may be given again."""
    flag: str | None = None
    """The flag, where it is not the name: `store` for `stores`."""
    positional: bool = False
    """An argument of the command line rather than a flag."""
    hidden: bool = False
    """Not in the help."""


@dataclass(frozen=True)
class Option:
    """One option of a config class or a function."""

    name: str
    hint: Any
    """As declared, without the Doc: `int | None`."""
    default: Any
    """`REQUIRED` where there is none."""
    doc: Doc

    @property
    def types(self) -> tuple[Any, ...]:
        """What a value may be besides None: (int,) for `int | None`."""
        return tuple(kind for kind in members(self.hint) if kind is not type(None))

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values of a Literal; () for any other type."""
        return tuple(value for kind in self.types for value in get_args(kind) if _is_literal(kind))

    @property
    def item(self) -> Any:
        """The type of the entries, where a value may be a tuple or sequence; else None."""
        sequences = [kind for kind in self.types if get_origin(kind) in (tuple, list, Sequence)]
        return get_args(sequences[0])[0] if sequences else None

    @property
    def several(self) -> bool:
        """Whether it is given once for each of its values."""
        return (self.doc.metavar or "").endswith("...")

    @property
    def flag(self) -> str:
        """As the command line spells it: `--target-rate`."""
        return "--" + (self.doc.flag or self.name).replace("_", "-")


COMMON = "Common options"  # panel of what most commands have
Resume = Annotated[bool, Doc("Continue what is in OUT.", COMMON)]
Overwrite = Annotated[bool, Doc("Replace what is in OUT.", COMMON)]
AnyStore = Annotated[
    bool,
    Doc("Also take a store of another model, hook or scope than that of the training."),
]
Device = Annotated[str, Doc("auto | cpu | cuda | cuda:N", metavar="DEVICE")]


@cache
def options_of(owner: type | Callable[..., Any]) -> dict[str, Option]:
    """The documented fields of a dataclass, or parameters of a function, in their order.

    A subclass that changes only the default of a field (`k: int = 16`) keeps its type and text.
    """
    # The nearest class that documents the field; the last ones in the dict are the nearest.
    sources = reversed(owner.__mro__[:-1]) if isinstance(owner, type) else [owner]
    documented = {name: item for source in sources for name, item in _documented(source).items()}
    return {
        name: Option(name, documented[name][0], default, documented[name][1])
        for name, default in _defaults(owner).items()
        if name in documented
    }


def members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union; the hint itself where it is none."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _is_literal(hint: Any) -> bool:
    return get_origin(hint) is Literal


def keywords(*owners: type, more: dict[str, Option] | None = None) -> Callable[[F], F]:
    """A decorator for a function with `**options` that become fields of `owners`: help() and
    inspect.signature show the fields as keyword arguments, with their defaults. `more`: further
    options; None is their default, and means that of whatever takes them."""

    def shown(function: F) -> F:
        signature = inspect.signature(function)
        named = [
            parameter
            for parameter in signature.parameters.values()
            if parameter.kind is not parameter.VAR_KEYWORD
        ]
        declared = {
            name: option
            for owner in owners
            for name, option in options_of(owner).items()
            if name not in signature.parameters
        }
        fields = {name: (option.default, option.hint) for name, option in declared.items()}
        fields |= {name: (None, option.hint) for name, option in (more or {}).items()}
        options = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=hint)
            for name, (value, hint) in fields.items()
        ]
        vars(function)["__signature__"] = signature.replace(parameters=[*named, *options])
        vars(function)[_KEYWORDS] = declared | (more or {})
        return function

    return shown


def documented_keywords(function: Callable[..., Any]) -> dict[str, Option]:
    """The options that `**options` of a function takes, by name, as `keywords` declared them."""
    return vars(function).get(_KEYWORDS, {})


def check(config: object) -> None:
    """Raise UsageError for an option of a config that is of another type than declared, or none of
    its choices: callers, config files and grids give anything."""
    owner = type(config)
    check_values(owner, {name: getattr(config, name) for name in options_of(owner)})


def check_values(owner: type, values: dict[str, Any]) -> None:
    """The same for values of some options of `owner`, by name."""
    options = options_of(owner)
    for name, value in values.items():
        choices = options[name].choices
        if choices and value is not None:
            check_choice(name, value, choices)
            continue
        if isinstance(value, float) and not math.isfinite(value):
            continue  # the option's own bounds say what it may be
        try:
            as_type(value, options[name].hint, opt(name))
        except MisfitError as error:
            hint = "write numbers without quotes and words with quotes"
            raise UsageError(str(error), hint) from None


@cache
def _documented(source: type | Callable[..., Any]) -> dict[str, tuple[Any, Doc]]:
    """(type, text) of each documented annotation of one class or function, by name."""
    annotations = inspect.get_annotations(source, eval_str=True)
    docs = {name: _doc(hint) for name, hint in annotations.items()}
    return {name: (get_args(annotations[name])[0], doc) for name, doc in docs.items() if doc}


def _defaults(owner: Any) -> dict[str, Any]:
    if not dataclasses.is_dataclass(owner):
        return {
            name: parameter.default
            for name, parameter in inspect.signature(owner).parameters.items()
        }
    return {field.name: _default(field) for field in dataclasses.fields(owner)}


def _default(field: dataclasses.Field[Any]) -> Any:
    """REQUIRED for a field without a default, and for one that is made anew each time."""
    return REQUIRED if field.default is dataclasses.MISSING else field.default


def _doc(hint: Any) -> Doc | None:
    metadata = getattr(hint, "__metadata__", ())
    return next((entry for entry in metadata if isinstance(entry, Doc)), None)
