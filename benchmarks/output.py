"""What zoo.py, classic.py and field.py share: flags, exit status, and results as CSV, JSON or a
table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from saekit_cli.screen import message, print_json

from saekit.bench.timing import CsvFile, machine
from saekit.device import pick_device
from saekit.errors import SaekitError


def parser(doc: str | None) -> argparse.ArgumentParser:
    """With the flags that all of them have; `doc` is the script's docstring."""
    description = (doc or "").partition("\n")[0]
    flags = argparse.ArgumentParser(description=description, allow_abbrev=False)
    flags.add_argument(
        "--quick", action="store_true", help="fewer rows, epochs and seeds: minutes on two cores"
    )
    flags.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="write the results to FILE, with machine, versions, commit and date",
    )
    flags.add_argument(
        "--json", action="store_true", help="print one JSON list in place of the table"
    )
    flags.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return flags


def reporter(quiet: bool) -> Callable[[str], None]:
    """Progress on stderr."""
    return (lambda _: None) if quiet else (lambda text: message("bench", text))


def give(
    results: list, flat: list[dict[str, Any]], asked: argparse.Namespace, note: str, text: str
) -> None:
    """Write the CSV file, if one was asked for; print JSON, or a table under a line that says where
    it was measured."""
    about = machine(pick_device("cpu"))
    if asked.csv is not None:
        file = CsvFile(asked.csv, about)
        for row in flat:
            file.write(row)
    if asked.json:
        print_json(results)
    else:
        typer.echo(f"{about['device']}, torch {about['torch']}, {about['date']}; {note}\n{text}")


def run(main: Callable[[], None]) -> None:
    """Call `main`; a user's mistake ends with the message and exit status of `saekit`."""
    try:
        main()
    except SaekitError as error:
        message("error", error.message)
        if error.hint:
            message("try", error.hint)
        sys.exit(error.exit_status)
