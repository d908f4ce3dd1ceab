"""Progress of files that a command fetches from the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saekit.types import Progress


@contextmanager
def downloads(quiet: bool) -> Iterator[None]:
    """Show, in the body, the bytes of each file on stderr."""
    from saekit.interop.hub import reporting
    from saekit_cli.screen import Reporter

    with Reporter(quiet) as reporter:

        def report(progress: Progress) -> None:
            reporter(progress)
            if progress.done >= progress.total:  # what follows starts on a line of its own
                reporter.close()

        with reporting(report):
            yield
