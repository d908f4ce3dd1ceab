from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from saekit.options import Option, options_of
from saekit_cli import interrupts
from saekit_cli.command import Given
from saekit_cli.screen import Reporter, message, print_json
from saekit_cli.settings import Config, Json, Quiet

if TYPE_CHECKING:
    from saekit.serving.run import Serving

NAME = "serve"
EXAMPLES = [
    "saekit serve runs/topk --store acts/text",
    "saekit serve runs/topk --store acts/text --page page --port 8765",
]
INTERRUPTED = 130  # as every verb that Ctrl-C ends
KEY = ("store", "page", "model", "port", "device")


def takes(arguments: list[str]) -> dict[str, Option]:
    from saekit.serving.run import serve

    return options_of(serve)


def run(given: Given, config: Config = None, json_: Json = False, quiet: Quiet = False) -> None:
    """Serve a page on this machine that reads and steers your own texts and images."""
    from saekit.serving.run import serve

    has_answered = False
    try:
        with Reporter(quiet) as reporter:

            def ready(serving: Serving) -> None:
                nonlocal has_answered
                has_answered = True
                reporter.close()
                if json_:
                    print_json(serving)
                    return
                typer.echo(f"open    {serving.url}")
                if not quiet:
                    message(
                        "note", "the address lets anyone who has it ask; Ctrl-C ends the server"
                    )

            serve(**given, ready=ready, progress=reporter)
    except KeyboardInterrupt:
        if not has_answered:
            raise
        # the way in which it ends: nothing went wrong
        interrupts.forget()
        if not quiet:
            message("note", "the server has stopped, and its port is free")
        raise SystemExit(INTERRUPTED) from None
