"""The command line, run inside the test's own process."""

from __future__ import annotations

import pytest
from saekit_cli import app


def saekit(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of `saekit ARGUMENTS`."""
    status = app._status([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err
