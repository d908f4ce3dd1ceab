"""The addresses of the server, below the token:

    GET  /                  the page; page.css, page.js beside it
    GET  /about             what is served
    POST /text, /image      which latents an input activates (reading.Reader)
    POST /steer             JSON, a line whenever there is a token more (steering.Steering)
    GET  /latents?q=        search
    GET  /latents/123       one latent with its examples; thumbnails below /images/
    GET  /page/...          the page of `saekit inspect`, where there is one

A question that the model answers waits for the worker. Errors are {"error", "hint"}: 400 for what
the client can mend, 413 for too much, 503 with Retry-After where the queue is full.
"""

from __future__ import annotations

import asyncio
import json
import os
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from saekit.errors import SaekitError, UsageError
from saekit.harvesting.sources import Document
from saekit.serving.page import page_files
from saekit.serving.questions import (
    MOST_BYTES,
    MOST_FOUND,
    MOST_TEXT_BYTES,
    ImageQuestion,
    SteerImage,
    SteerText,
    TextQuestion,
    picture,
    read_json,
)
from saekit.serving.workbench import Workbench
from saekit.serving.worker import Busy, Job, Work, Worker

BODY_SECONDS = 30.0  # for a client to send its question
SERVER_FAULTS = (1, 5, 6)  # exit statuses that no other question mends
Endpoint = Callable[[Request], Awaitable[Response]]


class TooLarge(Exception):
    """A body above its limit."""


def make_app(bench: Workbench, worker: Worker) -> Starlette:
    """The application, without the guard around it."""
    server = _Server(bench, worker)
    files = page_files(bench.about["title"])

    def file(name: str) -> Endpoint:
        content, kind = files[name]

        async def send(_: Request) -> Response:
            return Response(content, media_type=kind)

        return send

    routes: list[Any] = [
        Route("/", file("index.html")),
        Route("/page.css", file("page.css")),
        Route("/page.js", file("page.js")),
        Route("/about", server.about),
        Route("/text", _guarded(server.text), methods=["POST"]),
        Route("/image", _guarded(server.image), methods=["POST"]),
        Route("/steer", _guarded(server.steer), methods=["POST"]),
        Route("/latents", _guarded(server.search)),
        Route("/latents/{latent:int}", _guarded(server.latent)),
        Route("/images/{name}", server.thumbnail),
    ]
    if bench.page is not None:
        routes += [
            Route("/page", lambda request: RedirectResponse(f"{request.scope['root_path']}/page/")),
            Mount("/page", StaticFiles(directory=bench.page, html=True)),
        ]
    return Starlette(routes=routes)


class _Server:
    def __init__(self, bench: Workbench, worker: Worker) -> None:
        self.bench, self.worker = bench, worker

    async def about(self, _: Request) -> Response:
        return JSONResponse(self.bench.about)

    async def text(self, request: Request) -> Response:
        question = read_json(await _body(request, MOST_TEXT_BYTES), TextQuestion)
        self._need("text")
        document = Document(0, "input", question.text)
        return await self._one(request, lambda tell: tell(self.bench.reader.read(document, tell)))

    async def image(self, request: Request) -> Response:
        question = read_json(await _body(request, MOST_BYTES), ImageQuestion)
        self._need("image")

        def work(tell: Callable[[Any], None]) -> None:
            document = Document(0, "input", None, picture(question.image))
            tell(self.bench.reader.read(document, tell))

        return await self._one(request, work)

    async def steer(self, request: Request) -> Response:
        is_image = self.bench.about["modality"] == "image"
        body = await _body(request, MOST_BYTES if is_image else MOST_TEXT_BYTES)
        steering = self.bench.steering
        if steering is None:
            raise UsageError(self.bench.about["steering_fault"] or "this model cannot be steered")
        if is_image:
            image = read_json(body, SteerImage)
            return await self._stream(
                request, lambda tell: tell(steering.image(image, picture(image.image)))
            )
        question = read_json(body, SteerText)
        return await self._stream(request, lambda tell: steering.text(question, tell))

    async def search(self, request: Request) -> Response:
        words = request.query_params.get("q", "")[:200]
        return JSONResponse(self.bench.known.search(words, MOST_FOUND))

    async def latent(self, request: Request) -> Response:
        latent = request.path_params["latent"]
        return await self._one(request, lambda tell: tell(self.bench.known.record(latent)))

    async def thumbnail(self, request: Request) -> Response:
        content = self.bench.known.images.get(request.path_params["name"])
        return (
            Response(status_code=404)
            if content is None
            else Response(content, media_type="image/png")
        )

    def _need(self, modality: str) -> None:
        its = self.bench.about["modality"]
        if its != modality:
            raise UsageError(f"this dictionary is of {its}s, not of {modality}s")

    # -- answers of the worker

    async def _one(self, request: Request, work: Work) -> Response:
        """The last event as one JSON value."""
        job = self.worker.submit(work)
        try:
            answer = None
            while (event := await _next(job, request)) is not None:
                answer = event or answer
        finally:
            job.cancel()
        return _stopping() if answer is None else JSONResponse(answer)

    async def _stream(self, request: Request, work: Work) -> Response:
        """Each event as a line of JSON. What is wrong with the question shows before the first,
        and is an error; what happens later is a line {"kind": "error"}."""
        job = self.worker.submit(work)
        try:
            first = await _next(job, request)
        except BaseException:
            job.cancel()
            raise
        if first is None:
            job.cancel()
            return _stopping()
        return StreamingResponse(_lines(job, first), media_type="application/x-ndjson")


def _stopping() -> Response:
    return JSONResponse({"error": "the server is stopping", "hint": ""}, 503)


async def _lines(job: Job, first: Any) -> AsyncIterator[bytes]:
    event = first
    try:
        while event is not None:
            yield _line(event)
            event = await job.next()
        yield _line({"kind": "end"})
    except Exception as error:
        yield _line({"kind": "error", **_told(error)[1]})
    finally:
        job.cancel()


def _line(event: Any) -> bytes:
    return json.dumps(event, allow_nan=False).encode() + b"\n"


async def _next(job: Job, request: Request) -> Any | None:
    """The next event. Raises ClientDisconnect where the client goes first."""
    event = asyncio.ensure_future(job.next())
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((event, gone), return_when=asyncio.FIRST_COMPLETED)
        if event.done():
            return event.result()
        raise ClientDisconnect
    finally:
        for task in (event, gone):
            task.cancel()
        with suppress(asyncio.CancelledError):
            await gone


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request, most: int) -> bytes:
    """Raises TooLarge, and TimeoutError for a client that does not send what it promised."""
    promised = request.headers.get("content-length", "0")
    if promised.isdigit() and int(promised) > most:
        raise TooLarge(f"at most {most:,} bytes")
    body = bytearray()
    async with asyncio.timeout(BODY_SECONDS):
        async for part in request.stream():
            body += part
            if len(body) > most:
                raise TooLarge(f"at most {most:,} bytes")
    return bytes(body)


def _guarded(endpoint: Endpoint) -> Endpoint:
    """The endpoint, with errors as answers."""

    async def answered(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        except Exception as error:
            status, told = _told(error)
            wait = {"Retry-After": str(error.seconds)} if isinstance(error, Busy) else None
            close = {"Connection": "close"} if status in (408, 413) else None
            return JSONResponse(told, status, wait or close)

    return answered


def _told(error: Exception) -> tuple[int, dict[str, str]]:
    """(HTTP status, what the client is told)."""
    if isinstance(error, SaekitError):
        status = 500 if error.exit_status in SERVER_FAULTS else 400
        cause, hint = error.spelled(_word)
        return status, {"error": cause, "hint": hint}
    if isinstance(error, Busy):
        return 503, {"error": "the model is busy", "hint": str(error)}
    if isinstance(error, TooLarge):
        return 413, {"error": f"the question is too large: {error}", "hint": ""}
    if isinstance(error, TimeoutError):
        return 408, {"error": "the question did not arrive", "hint": ""}
    if os.environ.get("SAEKIT_DEBUG"):
        traceback.print_exception(error)
    bug = f"{type(error).__name__}: {error}"
    return 500, {"error": f"this is a bug in saekit: {bug}", "hint": ""}


def _word(name: str, values: list[Any]) -> str:
    """An option as the page calls it."""
    shown = [str(value) for value in values if value is not True]
    return " ".join([name.replace("_", " "), *shown])
