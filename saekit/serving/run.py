"""The verb `serve`: a local server that runs the model for one page.

The dictionary, its model and what is known of its latents are in memory once, one thread runs them
(worker), and only this machine's user can ask (guard). A port of 127.0.0.1 is bound before the
model loads, so that one that is taken is known at once.
"""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from saekit.device import pick_device
from saekit.errors import DataError, MissingError, UsageError, opt
from saekit.options import AnyStore, Device, Doc
from saekit.serving.worker import MOST_WAITING, Worker
from saekit.types import Progress

if TYPE_CHECKING:
    from saekit.serving.workbench import Workbench

HOST = "127.0.0.1"
NEEDED = ("starlette", "uvicorn")
LAST_ANSWERS = 3  # seconds that answers have, after Ctrl-C
MOST_CONNECTIONS = 256


@dataclass(frozen=True)
class Serving:
    """What a caller is told once the server answers."""

    url: str
    """With the token: who has it may ask."""
    port: int


def serve(
    checkpoint: Annotated[
        str | Path,
        Doc(
            "Checkpoint: a folder, or a published dictionary by its path or name.",
            metavar="CKPT",
            positional=True,
        ),
    ],
    *,
    store: Annotated[
        str | Path | Sequence[str | Path],
        Doc(
            "Store folder: largest activations, labels and examples come from it. For a crosscoder,"
            " give the stores of its training, in the same order.",
            metavar="STORE...",
        ),
    ] = (),
    page: Annotated[
        str | Path | None,
        Doc("Folder that saekit inspect wrote: latents link to their pages.", metavar="DIR"),
    ] = None,
    model: Annotated[
        str | None, Doc("Model (default: that of the store or the training).", metavar="MODEL")
    ] = None,
    port: Annotated[int | None, Doc("Port on 127.0.0.1 (default: one that is free).")] = None,
    queue: Annotated[
        int, Doc("Questions that may wait; more are told to come again.")
    ] = MOST_WAITING,
    any_store: AnyStore = False,
    device: Device = "auto",
    ready: Callable[[Serving], None] = lambda _: None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Serve a page on which latents of your own texts or images are read and steered, until
    Ctrl-C.

    Parameters
        store: a path; of a crosscoder a list of the stores of its training, in the same order.
        ready: called when the server answers, with its address.

    Raises MissingError without the extra `serve`, DataError for a port that is taken, the errors of
    `features` and `steer`, and KeyboardInterrupt after Ctrl-C, when all is closed.
    """
    check_extra()
    if port is not None and not 0 < port < 65536:
        raise UsageError(f"{opt('port', port)} must be between 1 and 65535")
    if queue < 1:
        raise UsageError(f"{opt('queue', queue)} must be at least 1")
    where = pick_device(device)
    with bound(port or 0) as listener:
        from saekit.serving.workbench import open_workbench

        stores = (store,) if isinstance(store, str | Path) else tuple(store)
        bench = open_workbench(
            checkpoint, stores, model=model, page=page, any_store=any_store, device=where,
            progress=progress,
        )  # fmt: skip
        run(bench, listener, queue, where, ready)


def check_extra() -> None:
    """Raise MissingError where the packages of the extra are not installed."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise MissingError(f"serve needs {' and '.join(missing)}", "pip install 'saekit[serve]'")


def bound(port: int) -> socket.socket:
    """A socket at a port of this machine only. Raises DataError where it is taken or forbidden."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # a port whose last connections are still being closed is free
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise DataError(
            f"{opt('port', port)}: {error.strerror or error}",
            "another port, or none for a free one",
        ) from None
    return listener


def run(
    bench: Workbench,
    listener: socket.socket,
    queue: int,
    device: Any,
    ready: Callable[[Serving], None],
) -> None:
    """Answer until Ctrl-C or SIGTERM."""
    server, worker = make_server(bench, listener, queue, device, ready)
    try:
        server.run([listener])
    finally:
        worker.close()
        worker.join(LAST_ANSWERS)


def make_server(
    bench: Workbench,
    listener: socket.socket,
    queue: int,
    device: Any,
    ready: Callable[[Serving], None],
) -> tuple[Any, Worker]:
    """(the uvicorn.Server, which `run([listener])` starts, and the thread that runs the model)."""
    import uvicorn

    from saekit.serving.app import make_app
    from saekit.serving.guard import Guard, new_token

    port, token = listener.getsockname()[1], new_token()
    worker = Worker(device, queue)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready(Serving(f"http://{HOST}:{port}/{token}/", port))

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            worker.close()  # so that answers which are being written end
            await super().shutdown(sockets)

    # only this machine's own browser connects: nothing a proxy says is believed, nothing is logged
    # that has the token
    config = uvicorn.Config(
        Guard(make_app(bench, worker), token, port), http="h11", ws="none", lifespan="off",
        loop="asyncio", access_log=False, log_level="error", log_config=None,
        proxy_headers=False, server_header=False, limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=LAST_ANSWERS,
    )  # fmt: skip
    return Server(config), worker
