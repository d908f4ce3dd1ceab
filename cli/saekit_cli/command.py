"""A verb's module as a command: its flags come from the options that the library declares.

A module has NAME, EXAMPLES (lines that can be pasted), `run(given, ...)`, and where the library
declares options (saekit.options) `takes(arguments)`, which returns them. KEY names the options of
the short help, where not all are in it; `values()` gives what a shell completes where an option
does not declare its choices. `given` holds those that
the user set, by name. The documented parameters of `run` itself are flags that only the command
line has. A verb is built when it is run, so that `saekit --help` imports nothing heavy.
"""

from __future__ import annotations

import inspect
import re
import shutil
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Protocol, cast

import typer

from saekit.errors import UsageError, opt
from saekit.options import REQUIRED, Option, options_of
from saekit_cli.downloads import downloads
from saekit_cli.help_page import Command, help_all
from saekit_cli.settings import expand, read_settings

SHORT = {"quiet": "-q"}
ITEMS = {int: "N,...", float: "X,..."}


class Verb(Protocol):
    """The module of a verb."""

    @property
    def NAME(self) -> str: ...

    @property
    def EXAMPLES(self) -> list[str]: ...

    run: Callable[..., None]


class Given(dict[str, Any]):
    """The library's options that the user set, by flags or in the config file."""

    def __init__(self, values: dict[str, Any], from_file: set[str]) -> None:
        super().__init__(values)
        self.from_file = from_file
        """The names of those that the config file set."""


def options(verb: Verb, arguments: list[str]) -> dict[str, Option]:
    """All options of a verb: the library's, then those that only the command line has."""
    takes: Callable[[list[str]], dict[str, Option]] | None = getattr(verb, "takes", None)
    library = {} if takes is None else takes(arguments)
    own = options_of(verb.run)
    return {name: option for name, option in library.items() if name not in own} | own


def build(verb: Verb, arguments: list[str]) -> Command:
    """The command of a verb, to be run with `arguments`, which may change what it takes."""
    # Options: the library's, and those of the command line itself.
    every = options(verb, arguments)
    own = options_of(verb.run)
    library = {name: option for name, option in every.items() if name not in own}

    # What runs once the command line is parsed.
    def callback(context: typer.Context, **raw: Any) -> None:
        written = {name: raw[name] for name in every if raw[name] is not None}
        values = {name: _value(every[name], value) for name, value in written.items()}
        from_file = {
            name
            for name in values.keys() & library.keys()
            if _source(context, name) == "DEFAULT_MAP"
        }
        given = Given({name: values[name] for name in library if name in values}, from_file)
        with downloads(bool(values.get("quiet"))):
            verb.run(given, **{name: values[name] for name in own if name in values})

    # Its signature, from which typer makes the flags.
    values: dict[str, Sequence[str]] = getattr(verb, "values", dict)()
    parameters = [_parameter(o, values.get(name, o.choices)) for name, o in every.items()]
    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    vars(callback)["__signature__"] = inspect.Signature([context, *parameters, _help_all()])
    callback.__doc__ = verb.run.__doc__
    # The command.
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(
        verb.NAME,
        cls=Command,
        epilog="\n".join(verb.EXAMPLES),
        context_settings={"max_content_width": shutil.get_terminal_size().columns},
    )(callback)
    command = cast(Command, typer.main.get_command(single))
    # What its short help shows.
    command.key = getattr(verb, "KEY", None)
    if command.key is not None and (more := getattr(verb, "key_options", None)) is not None:
        command.key = {*command.key, *more(arguments)}
    command.hint_of_choice = getattr(verb, "CHOICE", None)
    return command


def _help_all() -> inspect.Parameter:
    kind = Annotated[bool, help_all()]
    return inspect.Parameter(
        "help_all", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind
    )


def _source(context: typer.Context, name: str) -> str | None:
    source = context.get_parameter_source(name)
    return source.name if source is not None else None


def _parameter(option: Option, values: Sequence[str] = ()) -> inspect.Parameter:
    """An option as typer takes it. All are None until the user sets them: defaults are the
    library's. `values`: those that a shell completes."""

    def starting_with(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    completed = starting_with if values else None
    doc, kind = option.doc, _kind(option)
    if doc.positional:
        info = typer.Argument(
            metavar=doc.metavar or option.name.upper(), help=doc.text, autocompletion=completed
        )
    else:
        info = typer.Option(
            *_spelling(option),
            metavar=metavar(option),
            help=doc.text + _default(option),
            show_default=False,
            rich_help_panel=doc.panel or None,
            hidden=doc.hidden,
            is_eager=option.name == "config",
            callback=read_settings if option.name == "config" else None,
            parser=PARSERS.get(kind),
            autocompletion=completed,
        )
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=REQUIRED if option.default is REQUIRED else None,
        annotation=Annotated[kind if option.default is REQUIRED else kind | None, info],
    )


def metavar(option: Option) -> str:
    """What help shows in place of a flag's value."""
    if option.doc.metavar:
        return option.doc.metavar.removesuffix("...")
    kind = next((kind for kind in (int, float) if option.types == (kind,)), str)
    return (
        "|".join(option.choices)
        or ITEMS.get(option.item)
        or {int: "N", float: "X"}.get(kind, "TEXT")
    )


def _kind(option: Option) -> Any:
    """What typer reads: lists of numbers are one text with commas, choices are checked later."""
    if option.several:
        return list[str]
    for kind in (bool, int, float):
        if option.types == (kind,):
            return kind
    return str


def _whole_number(value: Any) -> int | float:
    return _number(int, value)


def _any_number(value: Any) -> int | float:
    return _number(float, value)


PARSERS = {int: _whole_number, float: _any_number}  # with names, which typer before 0.26 asks for


def _number(kind: type[int] | type[float], value: Any) -> int | float:
    """A value of a flag or a config file. Raises typer.BadParameter."""
    try:
        if isinstance(value, str) and "_" in value:
            raise ValueError
        if isinstance(value, bool) or (kind is int and isinstance(value, float)):
            raise ValueError
        return kind(value)
    except (TypeError, ValueError):
        what = "whole number" if kind is int else "number"
        raise typer.BadParameter(f"{value} is not a {what}") from None


def _spelling(option: Option) -> list[str]:
    if option.types == (bool,) and option.default is not False:
        return [f"{option.flag}/--no-{option.flag.removeprefix('--')}"]
    return [option.flag, *([SHORT[option.name]] if option.name in SHORT else [])]


def _default(option: Option) -> str:
    """What help says after the text. A default that depends on something stands in the text."""
    default = option.default
    if default is None or default is False or default is REQUIRED or default in ((), ""):
        return ""
    if default is True:
        return " [default: on]"
    values = default if isinstance(default, tuple) else (default,)
    shown = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return f" [default: {','.join(shown)}]"


def _value(option: Option, raw: Any) -> Any:
    """What the user wrote as the library takes it. Raises UsageError."""
    if option.several:
        return tuple(expand(text, option) for text in raw)
    if option.item in ITEMS and isinstance(raw, str):
        return number_list(option.name, raw, option.item)
    return expand(raw, option)


def number_list(name: str, text: str, kind: type[int] | type[float] = int) -> tuple[Any, ...]:
    """'512,128' as numbers. Raises UsageError; int() itself reads 1_0 and digits of other scripts,
    too."""
    pattern = "[0-9]{1,9}" if kind is int else r"[0-9]{1,9}(\.[0-9]*)?(e-?[0-9]{1,3})?|\.[0-9]+"
    parts = [part.strip(" ") for part in text.split(",")]
    if not all(re.fullmatch(pattern, part) for part in parts):
        example = [512, 128] if kind is int else [0.25, 0.5, 1]
        raise UsageError(f"{opt(name, text)}: give numbers with commas", opt(name, example))
    return tuple(map(kind, parts))
