"""The functions of the package `saekit` as users meet them: with a progress bar in an interactive
session, a signature that can be read, and a help that explains every keyword.

The functions themselves, in their modules, know nothing of this.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args, get_origin

from saekit.errors import ALIKE, nearest
from saekit.options import Option, documented_keywords, options_of
from saekit.progress import reporter

HELP_WIDTH = 96
PROGRESS = (
    "progress: is called with a Progress from time to time. None: a bar in a notebook or at an"
    " interactive prompt, otherwise nothing; True: a bar; False: nothing."
)


class _Source(str):
    """Text of a type that a signature shows without quotes."""

    def __repr__(self) -> str:
        return str(self)


def public(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` for users. It keeps name, source and types; `saekit` is its module."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        if not documented_keywords(function):  # those functions name what they do not know
            _check_names(function.__name__, kwargs, signature)
        reports = "progress" in signature.parameters
        with reporter(kwargs.pop("progress", None) if reports else None) as progress:
            if reports:
                kwargs["progress"] = progress
            return function(*args, **kwargs)  # what only downloads shows that

    called.__module__ = "saekit"
    called.__doc__ = explained(function, signature)
    parameters = [_readable(parameter) for parameter in signature.parameters.values()]
    returned = _bare(signature.return_annotation)
    vars(called)["__signature__"] = signature.replace(
        parameters=parameters, return_annotation=returned
    )
    return called


def _check_names(name: str, given: Iterable[str], signature: inspect.Signature) -> None:
    """Raise TypeError, with a guess, for a keyword that the function does not have."""
    known = signature.parameters
    for word in given:
        if word not in known:
            near = nearest(word, known, ALIKE)
            guess = f". Did you mean {near!r}?" if near else ""
            raise TypeError(f"{name}() got an unexpected keyword argument {word!r}{guess}")


def _readable(parameter: inspect.Parameter) -> inspect.Parameter:
    """Its type as it is written, without the text of the option; None where the default is chosen
    later."""
    if parameter.name == "progress":
        kind = _Source("Callable[[Progress], None] | bool | None")
        return parameter.replace(annotation=kind, default=None)
    default = _Source("...") if inspect.isfunction(parameter.default) else parameter.default
    return parameter.replace(annotation=_bare(parameter.annotation), default=default)


def _bare(annotation: Any) -> Any:
    """A type from a source file, without Annotated; other types stay."""
    if not isinstance(annotation, str):
        return annotation
    tree = ast.parse(annotation.strip(), mode="eval").body
    if isinstance(tree, ast.Subscript) and ast.unparse(tree.value) == "Annotated":
        assert isinstance(tree.slice, ast.Tuple)
        tree = tree.slice.elts[0]
    return _Source(ast.unparse(tree))


def explained(function: Callable[..., Any], signature: inspect.Signature) -> str:
    """The docstring with what it does not explain: the options among the parameters, and those that
    `**options` takes, with types and defaults."""
    docstring = inspect.getdoc(function) or ""
    said = re.findall(r"^ *((?:\w+, )*\w+): ", docstring, re.MULTILINE)
    names = {name for group in said for name in group.split(", ")}
    more = [_entry(o) for name, o in _options(function).items() if name not in names]
    if "progress" in signature.parameters:
        more.append(_indented(PROGRESS))
    options = [_entry(option) for option in documented_keywords(function).values()]
    sections = {"More parameters": more, "Options": options}
    texts = [f"{heading}\n" + "\n".join(lines) for heading, lines in sections.items() if lines]
    return "\n\n".join([docstring, *texts])


def _options(function: Callable[..., Any]) -> dict[str, Option]:
    try:
        return options_of(function)
    except NameError:  # of a type that only type checkers import: such functions have no options
        return {}


def _entry(option: Option) -> str:
    """`    k (int, default 32): Active latents per row.`"""
    kinds = " | ".join(_kind(kind) for kind in option.types)
    known = option.default not in (inspect.Parameter.empty, None)
    default = f", default {option.default!r}" if known else ""
    return _indented(f"{option.name} ({kinds}{default}): {option.doc.text}")


def _kind(kind: Any) -> str:
    """A type as it is written: the values of a Literal, `tuple[int, ...]`."""
    if get_origin(kind) is Literal:
        return " | ".join(map(repr, get_args(kind)))
    return re.sub(r"\b(?:\w+\.)+(?=[A-Za-z])", "", inspect.formatannotation(kind))


def _indented(text: str) -> str:
    return textwrap.fill(
        text,
        HELP_WIDTH,
        initial_indent=" " * 4,
        subsequent_indent=" " * 8,
        break_long_words=False,
        break_on_hyphens=False,
    )
