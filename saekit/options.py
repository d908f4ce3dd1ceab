"""Options, declared once: `k: Annotated[int, Doc("Active latents per row.")] = 32`.

A field of a config class or a parameter of a public function carries its type, its default and its
text. Flags, help, choices, keys of config files and docs/options.md are made from that.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin


@dataclass(frozen=True)
class Doc:
    """What an option means, as metadata of `Annotated`. Only options that users set have one."""

    text: str
    """One or two sentences: unit, and the default where it depends on something."""
    panel: str = ""
    """Heading of the help under which its flag stands; "": that of the command itself."""
    metavar: str | None = None
    """What help shows for the value; None: the name of its type, or its choices."""
    flag: str | None = None
    """The flag, where it is not the name: `store` for `stores`, which may be given again."""
    positional: bool = False
    """An argument of the command line rather than a flag."""


@dataclass(frozen=True)
class Option:
    """One option of a config class or function."""

    name: str
    type: Any
    """Without None and without Annotated: int, float, str, bool, Literal[...], tuple[int, ...]."""
    default: Any
    """`REQUIRED` where there is none."""
    doc: Doc

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values of a Literal; () for any other type."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    @property
    def flag(self) -> str:
        """As the command line spells it: `--target-rate`."""
        return "--" + (self.doc.flag or self.name).replace("_", "-")


REQUIRED = inspect.Parameter.empty


def options_of(owner: type | Callable[..., Any]) -> dict[str, Option]:
    """The documented fields of a dataclass, or parameters of a function, in their order."""
    hints = typing.get_type_hints(owner, include_extras=True)
    return {
        name: Option(name, bare(hints[name]), default, doc)
        for name, default in _defaults(owner).items()
        if (doc := _doc(hints.get(name))) is not None
    }


def bare(hint: Any) -> Any:
    """A type without None and Annotated: int for `Annotated[int | None, Doc(...)]`."""
    if get_origin(hint) is Annotated:
        return bare(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        others = [each for each in get_args(hint) if each is not type(None)]
        return bare(others[0]) if len(others) == 1 else Union[tuple(others)]  # noqa: UP007
    return hint


def _defaults(owner: type | Callable[..., Any]) -> dict[str, Any]:
    if not dataclasses.is_dataclass(owner):
        return {name: each.default for name, each in inspect.signature(owner).parameters.items()}
    return {
        field.name: REQUIRED if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(owner)
    }


def _doc(hint: Any) -> Doc | None:
    metadata = getattr(hint, "__metadata__", ())
    return next((each for each in metadata if isinstance(each, Doc)), None)
