"""The command line in a process of its own, with the real client of the hub: huggingface_hub reads
HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE once, when it is imported."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

SETTINGS = ("HF_", "HUGGING", "TRANSFORMERS_OFFLINE", "SAEKIT_")


class Result(NamedTuple):
    status: int
    out: str
    err: str


class Client:
    """Commands run one after the other in one process: starting torch takes seconds."""

    def __init__(self, endpoint: str, home: Path, **settings: str) -> None:
        clean = {name: v for name, v in os.environ.items() if not name.startswith(SETTINGS)}
        hub = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=clean | hub | settings | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    def saekit(self, *arguments: object, **variables: str) -> Result:
        """`saekit ARGUMENTS` with environment variables of this command."""
        request = {"arguments": [str(argument) for argument in arguments], "variables": variables}
        return self._ask(request)

    def python(self, code: str, **variables: str) -> Result:
        return self._ask({"code": code, "variables": variables})

    def _ask(self, request: dict) -> Result:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        print(json.dumps(request), file=stdin, flush=True)
        return Result(**json.loads(stdout.readline()))

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def _served(request: dict) -> dict:
    from saekit_cli import app

    out, err = io.StringIO(), io.StringIO()
    os.environ.update(request["variables"])
    try:
        with redirect_stdout(out), redirect_stderr(err):
            if "code" in request:
                exec(request["code"], {})
                status = 0
            else:
                status = app._status(request["arguments"])
    finally:
        for name in request["variables"]:
            del os.environ[name]
    return {"status": status, "out": out.getvalue(), "err": err.getvalue()}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(_served(json.loads(line))), flush=True)
