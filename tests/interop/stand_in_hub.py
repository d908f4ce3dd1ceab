"""A stand-in for the hub on the loopback address: the part of its HTTP interface that
huggingface_hub uses to look up, fetch and commit files."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_aTokenOfTheStandIn"
LFS = (".safetensors", ".pt", ".npz")


@dataclass
class Repo:
    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    cut: set[str] = field(default_factory=set)
    """Files of which half is sent."""
    branch: str = "main"

    @property
    def commit(self) -> str:
        digest = hashlib.sha1()
        for name, data in sorted(self.files.items()):
            digest.update(name.encode() + b"\0" + data)
        return digest.hexdigest()


class StandInHub(ThreadingHTTPServer):
    """`log` holds (method, path) of each request, `headers` their headers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, Repo] = {}
        self.log: list[tuple[str, str]] = []
        self.uploads: dict[str, bytes] = {}
        self.down = False

    def add(self, name: str, folder: Path | None = None, under: str = "", **settings: Any) -> Repo:
        """A repo with the files of a folder, below the path `under`."""
        repo = self.repos.setdefault(name, Repo(**settings))
        for file in sorted(folder.rglob("*")) if folder else ():
            if file.is_file():
                path = (Path(under) / file.relative_to(folder)).as_posix()
                repo.files[path] = file.read_bytes()
        return repo

    def fetched(self, name: str) -> list[str]:
        """The files of a repo that were sent, in order."""
        pattern = re.compile(rf"/{name}/resolve/[^/]+/(.+)")
        return [m[1] for method, path in self.log if method == "GET" and (m := pattern.match(path))]


@contextmanager
def stand_in_hub() -> Iterator[StandInHub]:
    hub = StandInHub()
    Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandInHub

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self._answer()

    do_GET = do_POST = do_PUT = do_HEAD

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.log.append((self.command, path))
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if self.server.down:
            return self._send(503, b"")
        for pattern, method in ROUTES:
            if match := re.fullmatch(pattern, path):
                return getattr(self, method)(body, **match.groupdict())
        self._send(404, b"")

    def _send(
        self, status: int, body: bytes | Any, headers: dict[str, str] | None = None, size: int = -1
    ) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if size < 0 else size))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": f"{code} says the hub"})

    @property
    def _trusted(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _open(self, name: str, revision: str | None, content: bool = True) -> Repo | None:
        """The repo; None after it was refused."""
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and not self._trusted):
            self._refuse(404 if self._trusted else 401, "RepoNotFound")
        elif revision not in (None, repo.branch, repo.commit):
            self._refuse(404, "RevisionNotFound")
        elif repo.gated and content:  # its description is for everyone
            self._refuse(403 if self._trusted else 401, "GatedRepo")
        else:
            return repo
        return None

    # looking up and fetching
    def info(self, body: bytes, name: str, revision: str | None = None) -> None:
        if repo := self._open(name, revision, content=False):
            files = [{"rfilename": file} for file in sorted(repo.files)]
            facts = {"private": repo.private, "gated": "manual" if repo.gated else False}
            self._send(200, {"id": name, "sha": repo.commit, "siblings": files, **facts})

    def refs(self, body: bytes, name: str) -> None:
        if repo := self._open(name, None, content=False):
            ref = f"refs/heads/{repo.branch}"
            branch = {"name": repo.branch, "ref": ref, "targetCommit": repo.commit}
            self._send(200, {"branches": [branch], "tags": [], "converts": []})

    def file(self, body: bytes, name: str, revision: str, path: str) -> None:
        if not (repo := self._open(name, revision)):
            return
        if path not in repo.files:
            return self._refuse(404, "EntryNotFound")
        data = repo.files[path]
        digest = hashlib.sha256(data).hexdigest()
        headers = {"X-Repo-Commit": repo.commit, "ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        if path.endswith(LFS):
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{digest}"'}
        if self.command == "HEAD":
            return self._send(200, b"", headers, len(data))
        if path in repo.cut:
            return self._send(200, data[: len(data) // 2], headers)
        if span := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(span[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self._send(206, data[start:], headers)
        self._send(200, data, headers)

    # committing
    def create(self, body: bytes) -> None:
        request = json.loads(body)
        name = f"{request['organization']}/{request['name']}"
        if not self._trusted:
            return self._send(401, b"")
        if name in self.server.repos:
            return self._send(409, {"error": "it exists"})
        self.server.add(name, private=request.get("visibility") == "private")
        self._send(200, {"url": f"{self.server.url}/{name}"})

    def valid(self, body: bytes) -> None:
        self._send(200, {"errors": [], "warnings": []})

    def modes(self, body: bytes, name: str, revision: str) -> None:
        """Which files go into the commit itself, and which to the store of large files first."""
        if self._open(name, revision):
            paths = [file["path"] for file in json.loads(body)["files"]]
            kinds = {path: "lfs" if path.endswith(LFS) else "regular" for path in paths}
            answers = [
                {"path": path, "uploadMode": kind, "shouldIgnore": False}
                for path, kind in kinds.items()
            ]
            self._send(200, {"files": answers})

    def batch(self, body: bytes, name: str) -> None:
        if self._open(name, None):
            objects = [
                item | {"actions": {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            self._send(200, {"transfer": "basic", "objects": objects})

    def large(self, body: bytes, oid: str) -> None:
        self.server.uploads[oid] = body
        self._send(200, b"")

    def commit(self, body: bytes, name: str, revision: str) -> None:
        if not (repo := self._open(name, revision)):
            return
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                repo.files[value["path"]] = self.server.uploads[value["oid"]]
        url = f"{self.server.url}/{name}/commit/{repo.commit}"
        self._send(200, {"commitUrl": url, "commitOid": repo.commit, "success": True})


NAME, REV = r"(?P<name>[^/]+/[^/]+)", r"(?P<revision>refs/pr/\d+|[^/]+)"
ROUTES = (
    (r"/api/repos/create", "create"),
    (r"/api/validate-yaml", "valid"),
    (rf"/api/models/{NAME}", "info"),
    (rf"/api/models/{NAME}/refs", "refs"),
    (rf"/api/models/{NAME}/revision/{REV}", "info"),
    (rf"/api/models/{NAME}/preupload/{REV}", "modes"),
    (rf"/api/models/{NAME}/commit/{REV}", "commit"),
    (rf"/{NAME}\.git/info/lfs/objects/batch", "batch"),
    (r"/lfs/(?P<oid>\w+)", "large"),
    (rf"/{NAME}/resolve/{REV}/(?P<path>.+)", "file"),
)
