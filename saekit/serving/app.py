"""The addresses of the server, below the token:

    GET  /                  the page; page.css, page.js beside it
    GET  /about             what is served
    POST /text, /image      which latents an input activates (reading.Reader)
    POST /steer             JSON, a line whenever there is a token more (steering.Steering)
    GET  /latents?q=        a number, or words of names, notes, explanations and automatic labels
    POST /search            which latents a text, token, label or latent leads to (searching)
    GET  /latents/123       one latent with its examples; thumbnails below /images/
    GET  /page/...          the page of `saekit inspect`, where there is one

A question that the model answers waits for the worker. Errors are {"error", "hint"}: 400 for what
the client can mend, 413 for too much, 503 with Retry-After where the queue is full.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from saekit.errors import UsageError
from saekit.harvesting.sources import Document
from saekit.serving.exchange import Endpoint, answering, body_of, one_answer, stream
from saekit.serving.page import page_files
from saekit.serving.questions import (
    MOST_BYTES,
    MOST_FOUND,
    MOST_TEXT_BYTES,
    ImageQuestion,
    SearchQuestion,
    SteerImage,
    SteerText,
    TextQuestion,
    picture,
    read_json,
)
from saekit.serving.workbench import Workbench
from saekit.serving.worker import Worker


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
        Route("/text", answering(server.text), methods=["POST"]),
        Route("/image", answering(server.image), methods=["POST"]),
        Route("/steer", answering(server.steer), methods=["POST"]),
        Route("/latents", answering(server.search)),
        Route("/search", answering(server.find), methods=["POST"]),
        Route("/latents/{latent:int}", answering(server.latent)),
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
        question = read_json(await body_of(request, MOST_TEXT_BYTES), TextQuestion)
        self._need("text")
        document = Document(0, "input", question.text)
        return await one_answer(
            self.worker, request, lambda tell: tell(self.bench.reader.read(document, tell))
        )

    async def image(self, request: Request) -> Response:
        question = read_json(await body_of(request, MOST_BYTES), ImageQuestion)
        self._need("image")

        def work(tell: Callable[[Any], None]) -> None:
            document = Document(0, "input", None, picture(question.image))
            tell(self.bench.reader.read(document, tell))

        return await one_answer(self.worker, request, work)

    async def steer(self, request: Request) -> Response:
        is_image = self.bench.about["modality"] == "image"
        body = await body_of(request, MOST_BYTES if is_image else MOST_TEXT_BYTES)
        steering = self.bench.steering
        if steering is None:
            raise UsageError(self.bench.about["steering_fault"] or "this model cannot be steered")
        if is_image:
            image = read_json(body, SteerImage)
            return await stream(
                self.worker, request, lambda tell: steering.image(image, picture(image.image), tell)
            )
        question = read_json(body, SteerText)
        return await stream(self.worker, request, lambda tell: steering.text(question, tell))

    async def search(self, request: Request) -> Response:
        words = request.query_params.get("q", "")[:200]
        return JSONResponse(self.bench.known.search(words, MOST_FOUND))

    async def find(self, request: Request) -> Response:
        question = read_json(await body_of(request, MOST_TEXT_BYTES), SearchQuestion)
        if question.text is not None:
            self._need("text")
        searcher = self.bench.searcher
        return await one_answer(
            self.worker, request, lambda tell: tell(searcher.answer(question, MOST_FOUND, tell))
        )

    async def latent(self, request: Request) -> Response:
        latent = request.path_params["latent"]
        return await one_answer(
            self.worker, request, lambda tell: tell(self.bench.known.record(latent))
        )

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
