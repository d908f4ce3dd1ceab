"""The program `saekit`, and `python -m saekit_cli`: Ctrl-C is remembered before the command is
imported, which takes a moment."""

from __future__ import annotations

import sys

from saekit_cli import interrupts


def main() -> None:
    interrupts.remember()
    try:
        from saekit_cli.app import main as run
    except BaseException:
        if not interrupts.seen():
            raise
        sys.stderr.write("error  interrupted\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
