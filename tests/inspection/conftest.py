"""Explorer pages on disk, and a browser to open them in: Chromium driven through its own protocol
over a pipe.

Standard library only, no driver program, no open port.

`--remote-debugging-pipe` reads JSON messages from descriptor 3 and writes them to 4, each ended by
a zero byte. Console messages, uncaught errors, policy violations and the address of every request
are kept as they arrive, for the tests to look at.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest

BINARY = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--remote-debugging-pipe",
)  # fmt: skip
ANSWER_SECONDS = 60
KEY_CODES = {
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
    "Enter": 13,
    "Escape": 27,
    "Tab": 9,
}


class PageError(AssertionError):
    """The page's script threw, or the browser refused a command."""


class Browser:
    """One tab. `evaluate` runs JavaScript in it; `press` and `click` are real input events."""

    def __init__(self) -> None:
        self.profile = tempfile.mkdtemp(prefix="saekit-chromium-")
        self.pid, self.reads, self.writes = _spawn(
            [BINARY, *FLAGS, f"--user-data-dir={self.profile}", "about:blank"]
        )
        self.last_id, self.buffer, self.session = 0, b"", None
        self.problems: list[str] = []
        self.requests: list[str] = []
        target = next(t for t in self._targets() if t["type"] == "page")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Runtime", "Page", "Network", "Log"):
            self.call(f"{domain}.enable")

    def _targets(self) -> list[dict[str, Any]]:
        for _ in range(100):
            targets = self.call("Target.getTargets")["targetInfos"]
            if any(target["type"] == "page" for target in targets):
                return targets
            time.sleep(0.05)
        raise PageError("Chromium opened no tab")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and wait for its answer; what arrives meanwhile is kept."""
        self.last_id += 1
        message = {"id": self.last_id, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writes, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive(ANSWER_SECONDS)
            if answer.get("id") == self.last_id:
                if "error" in answer:
                    raise PageError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def _receive(self, seconds: float) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            if not select.select([self.reads], [], [], seconds)[0]:
                raise PageError(f"Chromium said nothing for {seconds} s")
            piece = os.read(self.reads, 1 << 20)
            if not piece:
                raise PageError("Chromium closed its end")
            self.buffer += piece
        message, self.buffer = self.buffer.split(b"\0", 1)
        data = json.loads(message)
        self._note(data.get("method"), data.get("params", {}))
        return data

    def _note(self, event: str | None, params: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"])[:500])
        elif event == "Runtime.consoleAPICalled" and params["type"] in (
            "error",
            "warning",
            "assert",
        ):
            self.problems.append(json.dumps(params["args"])[:500])
        elif event == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def evaluate(self, expression: str) -> Any:
        """The JSON value of an expression; promises are awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise PageError(json.dumps(answer["exceptionDetails"])[:1000])
        return answer["result"].get("value")

    def open(self, url: str) -> float:
        """Load a page of the explorer and wait until it has drawn itself; returns the seconds this
        took."""
        self.problems.clear()
        self.requests.clear()
        # only a change of the hash would load nothing
        self.call("Page.navigate", url="about:blank")
        started = time.perf_counter()
        self.call("Page.navigate", url=url)
        self.wait("document.documentElement?.dataset.ready === 'yes'")
        return time.perf_counter() - started

    def wait(self, condition: str, seconds: float = 30) -> None:
        limit = time.perf_counter() + seconds
        while not self.evaluate(f"Boolean({condition})"):
            if time.perf_counter() > limit:
                raise PageError(f"waited {seconds} s for {condition}; page says {self.problems}")
            time.sleep(0.02)

    def press(self, key: str) -> None:
        printable = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        code = {"windowsVirtualKeyCode": KEY_CODES.get(key, ord(key[0].upper()))}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **printable, **code)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, **code)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def point(self, selector: str) -> tuple[float, float]:
        """The middle of an element, scrolled into view."""
        middle = (
            "(e => { e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2]; })"
        )
        x, y = self.evaluate(f"{middle}(document.querySelector({json.dumps(selector)}))")
        # its scroll event is past
        self.evaluate(
            "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )
        return x, y

    def hover(self, selector: str) -> None:
        x, y = self.point(selector)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector: str) -> None:
        x, y = self.point(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def view(self, width: int, height: int, dark: bool = False) -> None:
        """Set window size and colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = "dark" if dark else "light"
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )

    def close(self) -> None:
        """End the browser and its children (one process group of our own), and remove the
        profile."""
        with contextlib.suppress(PageError, OSError):
            self.session = None
            self.call("Browser.close")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.reads)
        os.close(self.writes)
        shutil.rmtree(self.profile, ignore_errors=True)


def _spawn(command: list[str]) -> tuple[int, int, int]:
    """(process id, descriptor to read from, descriptor to write to). Pipe ends are moved clear of 3
    and 4, which are then set."""
    clear = lambda descriptor: fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 16)
    child_reads, writes = os.pipe()
    reads, child_writes = os.pipe()
    high_reads, high_writes, null = (
        clear(child_reads),
        clear(child_writes),
        clear(os.open(os.devnull, os.O_RDWR)),
    )
    actions = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)]
    actions += [(os.POSIX_SPAWN_DUP2, high_reads, 3), (os.POSIX_SPAWN_DUP2, high_writes, 4)]
    pid = os.posix_spawn(command[0], command, os.environ, file_actions=actions, setpgroup=0)
    for descriptor in (child_reads, child_writes, high_reads, high_writes, null):
        os.close(descriptor)
    return pid, reads, writes


@pytest.fixture(scope="session")
def tab() -> Iterator[Browser]:
    """One browser for all tests: starting it takes longer than most of them."""
    if BINARY is None:
        pytest.skip("no Chromium on the PATH (Debian: apt-get install chromium)")
    opened = Browser()
    opened.view(1400, 900)
    try:
        yield opened
    finally:
        opened.close()
