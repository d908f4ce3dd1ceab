"""A server in a thread of this process, and a client that asks it."""

from __future__ import annotations

import http.client
import json
import threading
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import torch

from saekit.serving.run import Serving, bound, make_server
from saekit.serving.workbench import Workbench

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]


@dataclass(frozen=True)
class Client:
    """Asks a server, each question with a connection of its own."""

    port: int
    token: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{self.token}/"

    def send(
        self,
        path: str,
        body: Any = None,
        method: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """`path` below the token; one that begins with / as it is. A body that is not bytes is
        sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        where = path if path.startswith("/") else f"/{self.token}/{path}"
        try:
            verb = method or ("GET" if body is None else "POST")
            connection.request(verb, where, content, headers or {})
            answer = connection.getresponse()
            named = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, named, answer.read())
        finally:
            connection.close()


class Running:
    """A server in a thread."""

    def __init__(self, bench: Workbench, queue: int = 16) -> None:
        self._told: list[Serving] = []
        self._ready = threading.Event()
        listener = bound(0)
        self.server, self.worker = make_server(bench, listener, queue, CPU, self._tell)
        self._thread = threading.Thread(target=self.server.run, args=([listener],))

    def _tell(self, serving: Serving) -> None:
        self._told.append(serving)
        self._ready.set()

    def __enter__(self) -> Running:
        self._thread.start()
        assert self._ready.wait(30), "the server did not start"
        return self

    @property
    def client(self) -> Client:
        parts = urlsplit(self._told[0].url)
        return Client(self._told[0].port, parts.path.strip("/"))

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self._thread.join(30)
        self.worker.close()
        self.worker.join(30)
        assert not self._thread.is_alive(), "the server did not stop"
