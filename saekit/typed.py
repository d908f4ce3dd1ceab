"""Check values from a file or a caller against the types that a dataclass declares.

JSON, TOML and keyword arguments may hold anything. Code that reads them checks here once, and needs
no list of exceptions afterwards.
"""

from __future__ import annotations

import dataclasses
import numbers
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
INT64 = 2**63
_NAMES = {
    int: "a whole number", float: "a number", str: "text", bool: "true or false",
    type(None): "null", dict: "an object", list: "a list",
    tuple: "a list",
}  # fmt: skip


class MisfitError(ValueError):
    """A value does not have the expected type; the message names the value and the type."""


def as_type(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint`: lists become tuples and whole numbers floats if necessary. Raises
    MisfitError, with `where` in its message."""
    if hint is Any:
        return value
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _as_one_of(value, arguments, hint, where)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            raise MisfitError(
                f"{where} is {_short(value)}; it must be {' or '.join(map(str, arguments))}"
            )
        return value
    if origin is tuple:
        return _as_tuple(value, arguments, hint, where)
    if origin is list:
        _need(isinstance(value, list), value, hint, where)
        return [as_type(item, arguments[0], f"{where}[{n}]") for n, item in enumerate(value)]
    if origin is dict:
        _need(
            isinstance(value, dict) and all(isinstance(key, str) for key in value),
            value,
            hint,
            where,
        )
        return {key: as_type(item, arguments[1], f"{where}.{key}") for key, item in value.items()}
    if hint is float:
        # numbers.Real: NumPy's too
        _need(isinstance(value, numbers.Real) and not isinstance(value, bool), value, hint, where)
        size: Any = abs(value)
        if not size < 1e300:  # also for NaN
            raise MisfitError(f"{where} {_short(value)} is not a finite number")
        return float(value)
    if hint is int:
        fits = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        _need(fits and -INT64 <= int(value) < INT64, value, hint, where)
        return int(value)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return build(hint, value, where)
    _need(isinstance(value, hint), value, hint, where)
    return value


def build(cls: type[T], data: Any, where: str) -> T:
    """An instance of the dataclass `cls` from a mapping of its fields. Raises MisfitError for a
    field that is missing, unknown or of another type."""
    assert dataclasses.is_dataclass(cls)
    _need(isinstance(data, dict), data, dict, where)
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    if unknown := data.keys() - fields.keys():
        raise MisfitError(f"{where} has an unknown field {min(map(str, unknown))!r}")
    required = [
        n
        for n, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing := [name for name in required if name not in data]:
        raise MisfitError(f"{where} has no {missing[0]}")
    return cls(
        **{name: as_type(value, hints[name], f"{where}.{name}") for name, value in data.items()}
    )


def _as_one_of(value: Any, arguments: tuple, hint: Any, where: str) -> Any:
    for argument in arguments:
        try:
            return as_type(value, argument, where)
        except MisfitError:
            continue
    _need(False, value, hint, where)


def _as_tuple(value: Any, arguments: tuple, hint: Any, where: str) -> tuple:
    _need(isinstance(value, (list, tuple)), value, hint, where)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    _need(len(value) == len(arguments), value, hint, where)
    return tuple(
        as_type(item, argument, f"{where}[{n}]")
        for n, (item, argument) in enumerate(zip(value, arguments))
    )


def _need(fits: bool, value: Any, hint: Any, where: str) -> None:
    if not fits:
        raise MisfitError(f"{where} is {_short(value)}; it must be {_described(hint)}")


def _described(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_described(argument) for argument in get_args(hint))
    if get_origin(hint) in (tuple, list):
        item = _described(get_args(hint)[0])
        return "a list of " + item.removeprefix("a ").removeprefix("an ") + "s"
    return _NAMES.get(
        get_origin(hint) or hint,
        "an object" if dataclasses.is_dataclass(hint) else getattr(hint, "__name__", str(hint)),
    )


def _short(value: Any) -> str:
    if isinstance(value, (dict, list, tuple)):
        return f"{_NAMES[dict if isinstance(value, dict) else list]} of {len(value)}"
    try:
        text = repr(value)
    except ValueError:  # an integer with more digits than Python prints
        return "a very long number"
    return text if len(text) <= 60 else text[:57] + "..."
