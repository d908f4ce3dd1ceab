"""A question and its answer over HTTP: what is read of a request, how the worker's events become a
response, how errors are told, and what happens when a client goes."""

from __future__ import annotations

import asyncio
import json
import os
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from saekit.display import finite
from saekit.errors import SaekitError
from saekit.serving.wording import page_word
from saekit.serving.worker import Busy, Job, Work, Worker

BODY_SECONDS = 30.0  # for a client to send its question
SERVER_FAULTS = (1, 5, 6)  # exit statuses that no other question mends
Endpoint = Callable[[Request], Awaitable[Response]]


class TooLarge(Exception):
    """A body above its limit."""


async def body_of(request: Request, most: int) -> bytes:
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


async def one_answer(worker: Worker, request: Request, work: Work) -> Response:
    """The last event as one JSON value."""
    job = worker.submit(work)
    try:
        answer = None
        while (event := await _next(job, request)) is not None:
            answer = event
    finally:
        job.cancel()
    return _stopping() if answer is None else JSONResponse(finite(answer))


async def stream(worker: Worker, request: Request, work: Work) -> Response:
    """Each event as a line of JSON. What is wrong with the question shows before the first, and is
    an error; what happens later is a line {"kind": "error"}."""
    job = worker.submit(work)
    try:
        first = await _next(job, request)
    except BaseException:
        job.cancel()
        raise
    if first is None:
        return _stopping()
    return StreamingResponse(_lines(job, first), media_type="application/x-ndjson")


def answering(endpoint: Endpoint) -> Endpoint:
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
    return json.dumps(finite(event), allow_nan=False).encode() + b"\n"


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


def _told(error: Exception) -> tuple[int, dict[str, str]]:
    """(HTTP status, what the client is told)."""
    if isinstance(error, SaekitError):
        status = 500 if error.exit_status in SERVER_FAULTS else 400
        cause, hint = error.spelled(page_word)
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
