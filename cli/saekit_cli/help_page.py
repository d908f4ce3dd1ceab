"""The help of a command: as wide as the terminal, flags under their topics, examples that can be
pasted. Long helps show the options that matter first; `--help-all` shows all.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

from saekit.options import COMMON

if TYPE_CHECKING:
    from typer._click import Context, HelpFormatter

WIDEST = 28  # flags beyond it have a line of their own
ALL = "--help-all"
FEW = 12  # options that are named one by one
_WORD = r"(?:'[^']*'|\S)+"  # quoted blanks do not end it
UNBROKEN = "\N{NON-BREAKING HYPHEN}"
FLAG = re.compile(r"--[\w-]+")
PIECE = re.compile(rf"--\S+ (?!--){_WORD}|{_WORD}")  # a flag stays with its value


class Command(TyperCommand):
    """A command whose short help shows the options named in `key`; None: all of them."""

    key: Collection[str] | None = None
    hint_of_choice: tuple[str, str] | None = None
    """What to give before --help for other options, and what these are."""

    def format_options(self, ctx: Context, formatter: HelpFormatter) -> None:
        panels = self._panels(ctx)
        left_out = {} if self.key is None or shows_all(ctx) else _split(panels, self.key)
        texts = {
            panel: [_record(param, ctx) for param in params] for panel, params in panels.items()
        }
        if left_out:
            texts["More"] = list(self._rest(left_out))
        widest = min(WIDEST, formatter.width // 3)
        width = min(max(len(name) for records in texts.values() for name, _ in records), widest)
        for panel, records in texts.items():
            if records:
                with formatter.section(panel):  # all of one width, so that the texts align
                    lines = [(name.ljust(width), whole_flags(text)) for name, text in records]
                    formatter.write_dl(lines, width)

    def get_help(self, ctx: Context) -> str:
        return super().get_help(ctx).replace(UNBROKEN, "-")

    def _panels(self, ctx: Context) -> dict[str, list[Any]]:
        """The parameters that have a place in the help, by topic; common ones last."""
        panels: dict[str, list[Any]] = {"Arguments": [], "Options": []}
        for param in self.get_params(ctx):
            if param.name == "help_all" or param.get_help_record(ctx) is None:
                continue
            panel = getattr(param, "rich_help_panel", None) or "Options"
            if param.param_type_name == "argument":
                panel = "Arguments"
            elif param.name == "help":
                panel = COMMON
            panels.setdefault(panel, []).append(param)
        panels[COMMON] = panels.pop(COMMON)
        return panels

    def _rest(self, left_out: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
        """How to see what the short help leaves out."""
        flags = [flag for of_topic in left_out.values() for flag in of_topic]
        few = len(flags) <= FEW
        topics = [topic.partition(":")[0].removesuffix(" options") for topic in left_out]
        topics = [topic for topic in topics if topic != "Options"] + ["others"] * (
            "Options" in topics
        )
        named = ", ".join(flags if few else topics)
        yield ALL, f"Show {'also' if few else f'{len(flags)} more options'}: {named}."
        if self.hint_of_choice is not None:
            yield self.hint_of_choice

    def collect_usage_pieces(self, ctx: Context) -> list[str]:
        arguments = [p for p in self.get_params(ctx) if p.param_type_name == "argument"]
        return ["[OPTIONS]", *map(_usage, arguments)]

    def format_epilog(self, ctx: Context, formatter: HelpFormatter) -> None:
        if self.epilog:
            with formatter.section("Examples"):
                for line in self.epilog.splitlines():
                    formatter.write("".join(f"  {row}\n" for row in folded(line, formatter.width)))


def whole_flags(text: str) -> str:
    """The text with UNBROKEN for the hyphens of its flags: lines break at a hyphen, and a flag that
    is cut in two cannot be copied."""
    return FLAG.sub(lambda flag: flag[0].replace("-", UNBROKEN), text)


def help_all() -> Any:
    """The flag that every command has, as typer takes it."""
    return typer.Option(
        ALL, is_eager=True, expose_value=False, callback=_show_all, show_default=False
    )


def _show_all(context: typer.Context, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        context.meta[ALL] = True
        typer.echo(context.get_help())
        raise typer.Exit


def shows_all(context: Context) -> bool:
    return bool(context.meta.get(ALL))


def page_for(error: Any, command: Any) -> str:
    """The flag of the help that explains what an error of a command line is about: --help-all for
    an option that does not exist, or that the short help leaves out."""
    key, option = getattr(command, "key", None), getattr(error, "param", None)
    if key is None:
        return "--help"
    unknown = hasattr(error, "possibilities")
    return ALL if unknown or (option is not None and not _is_short(option, key)) else "--help"


def _is_short(parameter: Any, key: Collection[str]) -> bool:
    """Whether the short help has it."""
    return parameter.required or parameter.name in key or parameter.param_type_name == "argument"


def _split(panels: dict[str, list[Any]], key: Collection[str]) -> dict[str, list[str]]:
    """Leave in `panels` only arguments, what must be given and what is in `key`; the flags that
    this leaves out, by topic."""
    left_out = {}
    for panel, params in panels.items():
        kept = [p for p in params if _is_short(p, key)]
        flags = [max(p.opts, key=len) for p in params if p not in kept and p.name != "help"]
        panels[panel] = kept
        if flags:
            left_out[panel] = flags
    return left_out


def _record(param: Any, ctx: Context) -> tuple[str, str]:
    """(flag or argument, text)."""
    name, text = param.get_help_record(ctx)
    return (_usage(param) if param.param_type_name == "argument" else name), text


def _usage(argument: Any) -> str:
    """STORE, or [NAME] where it may be missing."""
    return argument.metavar if argument.required else f"[{argument.metavar.strip('[]')}]"


def folded(example: str, width: int) -> list[str]:
    """A command line, or a comment on one, in rows that fit and still can be pasted: each row of a
    command ends with a backslash but the last."""
    if len(example) + 2 <= width:
        return [example]
    indent = " " * (len(example) - len(example.lstrip()))
    if example.lstrip().startswith("#"):
        text = example.strip("# ")
        return wrap(text, width - 2, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
    rows = [""]
    for piece in PIECE.findall(example):
        if not rows[-1] or len(rows[-1]) + 1 + len(piece) <= width - 4:
            rows[-1] += f" {piece}" if rows[-1] else f"{indent}{piece}"
        else:
            rows.append(f"{indent}    {piece}")
    return [f"{row} \\" for row in rows[:-1]] + rows[-1:]
