"""The typer app and what happens when a command fails: `error <cause>`, `try <next step>`, and the
exit status.

Nothing heavy is imported here: torch and transformers load inside the command that needs them, so
`saekit --help` is quick.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import traceback
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from saekit import __version__
from saekit.errors import SaekitError, UsageError, did_you_mean
from saekit_cli import (
    attack,
    attribute,
    bench,
    compare,
    convert,
    demo,
    dictionaries,
    evaluate,
    exporting,
    features,
    finetune,
    harvest,
    importing,
    index,
    inspect,
    interrupts,
    models,
    sample,
    serve,
    steer,
    sweep,
    train,
)
from saekit_cli.command import Verb, build
from saekit_cli.flags import flag, speak_for
from saekit_cli.help_page import Command, page_for
from saekit_cli.screen import take_any_encoding

if TYPE_CHECKING:
    from typer._click import Context, HelpFormatter

# The base of every error of a command line. Its name has changed: click's ClickException before
# typer 0.26, then typer's own copy, TyperException from 0.28 on.
CommandLineError: Any = typer.BadParameter.__mro__[-4]  # right below Exception
INTERRUPTED = 130
INTERRUPTED_CAUSE = "interrupted"
# verb -> what is kept of it, and how it goes on; the others start over
INTERRUPTED_HINTS = {
    "harvest": "finished shards are saved: the same command with --resume goes on",
    "train": "the state is saved: the same command with --resume goes on",
    "sweep": "the state of every member is saved: the same command with --resume goes on",
    "finetune": "the state is saved: the same command with --resume goes on",
    "index": "finished parts are saved: the same command with --resume goes on",
    "demo": "the same command goes on where it stopped",
}
MEMORY_HINT = (
    "a smaller --batch, --latents, --expansion or --shard-mb; --device cpu where the GPU is the"
    " smaller one"
)


def _by_name(*verbs: Verb) -> dict[str, Verb]:
    return {verb.NAME: verb for verb in verbs}


TOPICS = {
    "Start": _by_name(demo, models, dictionaries),
    "Harvest and train": _by_name(harvest, train, sweep, finetune, sample),
    "Judge and read": _by_name(evaluate, compare, index, inspect, features, serve),
    "Act on the model": _by_name(steer, attribute, attack),
    "Exchange": _by_name(importing, exporting, convert),
    "This machine": _by_name(bench),
}
VERBS = {name: verb for verbs in TOPICS.values() for name, verb in verbs.items()}
HELP = (
    "Cache a transformer's hidden states, train sparse autoencoders on them, read what the"
    " features mean."
)
STATUSES = (
    "Exit: 0 done, 1 bug, 2 usage, 3 bad input, 4 missing, 5 backend, 6 numerics, 7 quality gate,"
    " 130 interrupted."
)


def _line(verb: Verb) -> str:
    return " ".join((verb.run.__doc__ or "").split())


def _built(verb: Verb, arguments: list[str], completing: bool) -> Command:
    """The command of a verb. `completing`: for a shell, of words that need not make sense yet."""
    try:
        return build(verb, arguments)
    except SaekitError:
        if not completing:
            raise
        return build(verb, [])


class Verbs(TyperGroup):
    """All verbs, each built from its module when it is run."""

    def list_commands(self, ctx: Context) -> list[str]:
        return list(VERBS)

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        widest = max(map(len, VERBS))
        for topic, verbs in TOPICS.items():
            lines = [(name.ljust(widest), _line(verb)) for name, verb in verbs.items()]
            with formatter.section(topic):
                formatter.write_dl(lines)

    def format_epilog(self, ctx: Context, formatter: HelpFormatter) -> None:
        formatter.write_paragraph()
        formatter.write_text(f"`saekit COMMAND --help` has examples. {STATUSES}")

    def get_command(self, ctx: Context, cmd_name: str) -> Any:
        """The verb as `resolve_command` built it. A shell that completes names needs only its
        line."""
        if cmd_name in VERBS and ctx.resilient_parsing and cmd_name not in self.commands:
            return TyperCommand(cmd_name, help=_line(VERBS[cmd_name]))
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, *rest = args
        if name in VERBS:
            speak_for(name)
            self.commands[name] = _built(VERBS[name], rest, ctx.resilient_parsing)
        elif not name.startswith("-") and not ctx.resilient_parsing:  # while a shell completes
            near = did_you_mean(name, VERBS)
            raise UsageError(f"{name} is not a command", f"{near}saekit --help lists them")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="saekit",
    cls=Verbs,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help=HELP,
    epilog=STATUSES,
    context_settings={"max_content_width": shutil.get_terminal_size().columns},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None: ...


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    take_any_encoding()
    with suppress(ValueError):  # not the main thread: signals are not ours
        signal.signal(signal.SIGTERM, _terminate)
    interrupts.remember()
    sys.exit(_status(arguments))


def _terminate(number: int, frame: FrameType | None) -> None:
    """A scheduler's preemption is as polite as Ctrl-C. A second one ends the process at once,
    should the first get stuck."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise KeyboardInterrupt


def _status(arguments: list[str] | None) -> int:
    try:
        interrupts.check()
        result: Any = app(arguments, standalone_mode=False, prog_name="saekit")
        if result == INTERRUPTED:  # typer turns Ctrl-C into this status
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except CommandLineError as error:
        context = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.format_message(), err=True)
            return 2
        # What a config file says wrongly is bad input, not bad usage.
        parameter = getattr(error, "param", None)
        source = context.get_parameter_source(parameter.name) if context and parameter else None
        status = 3 if source is not None and source.name == "DEFAULT_MAP" else 2
        cause = f"config file: {error.format_message()}" if status == 3 else error.format_message()
        command = context.command_path if context else "saekit"
        page = page_for(error, context.command) if context else "--help"
        return _failed(cause, f"{command} {page}", status)
    except SaekitError as error:
        return _failed(*error.spelled(flag), error.exit_status)
    except (KeyboardInterrupt, typer.Abort):
        interrupts.forget()
        return _failed(INTERRUPTED_CAUSE, _interrupted_hint(arguments), INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except RecursionError:
        hint = (
            "check the files that were given: their lists or objects lie inside one another"
            " hundreds of times"
        )
        return _failed("what was given is nested too deeply to be read", hint, 3)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            return _failed(f"out of memory: {error}", MEMORY_HINT, 5)
        from saekit.store.oserrors import user_error

        told = user_error(error)
        return _failed(*told.spelled(flag), told.exit_status)
    except Exception as error:
        if interrupts.seen():
            interrupts.forget()
            return _failed(INTERRUPTED_CAUSE, _interrupted_hint(arguments), INTERRUPTED)
        if _is_out_of_memory(error):
            return _failed(
                f"out of memory: {(str(error) or type(error).__name__).splitlines()[0]}",
                MEMORY_HINT,
                5,
            )
        if os.environ.get("SAEKIT_DEBUG"):
            traceback.print_exc()
        return _failed(
            f"this is a bug in saekit: {type(error).__name__}: {error}",
            "SAEKIT_DEBUG=1 prints the traceback",
            1,
        )


def _interrupted_hint(arguments: list[str] | None) -> str:
    verb = next(iter(sys.argv[1:] if arguments is None else arguments), "")
    return INTERRUPTED_HINTS.get(verb, "the same command starts over")


def _is_out_of_memory(error: Exception) -> bool:
    """torch has a class of its own only for the GPU's memory; CPU memory and libraries on the GPU
    raise a RuntimeError."""
    texts = (
        "can't allocate memory",
        "not enough memory",
        "out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "std::bad_alloc",
    )
    kinds = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return kinds or (isinstance(error, RuntimeError) and any(text in str(error) for text in texts))


def _failed(cause: str, hint: str, status: int) -> int:
    typer.echo(f"error  {cause}", err=True)
    if hint:
        typer.echo(f"try    {hint}", err=True)
    return status
