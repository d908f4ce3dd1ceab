"""Who may ask: only a page that this server sent, opened with the address that it printed.

Any web page can make a browser send requests to 127.0.0.1, and a name that an attacker owns can be
made to point there. So every request, those for files too, must have

- the address that was printed as its Host: a page under another name (DNS rebinding) has that name;
- the token, the first part of the path, compared in constant time;
- no Origin but this server's, and no other site as its initiator (Sec-Fetch-Site), unless a person
  opens the page itself by a link.

There are no CORS headers, so no other page can read an answer. The page's own policy allows nothing
from anywhere else and no frame around it; it sends no Referer, which would carry the token.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import PlainTextResponse

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Of a page that `saekit inspect` wrote: it has its own policy, and nothing to ask this server.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'unsafe-inline';"
    " img-src 'self' data:; connect-src 'none'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def new_token() -> str:
    """32 random bytes."""
    return secrets.token_urlsafe(32)


class Guard:
    """An ASGI application around another, which sees only requests that may be answered, with the
    token as its root path."""

    def __init__(self, app: App, token: str, port: int) -> None:
        self._app, self._token = app, token
        self._hosts = {f"{name}:{port}".encode() for name in ("127.0.0.1", "localhost")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # a websocket that nobody accepts is refused
        refusal = self._refusal(scope)
        path = scope["path"].removeprefix(f"/{self._token}")
        policy = PAGE_POLICY if path.startswith("/page/") else POLICY

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                more = HEADERS | {"Content-Security-Policy": policy}
                headers = [(k.lower().encode(), v.encode()) for k, v in more.items()]
                message["headers"] = [*message.get("headers", ()), *headers]
            await send(message)

        if refusal is not None:
            await PlainTextResponse(refusal, 403)(scope, receive, with_headers)
            return
        inside = {**scope, "root_path": f"/{self._token}"}
        await self._app(inside, receive, with_headers)

    def _refusal(self, scope: Scope) -> str | None:
        """Why a request is not answered; None: it is."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        hosts = [value.lower() for name, value in headers if name == b"host"]
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            return "this server answers to 127.0.0.1 only"
        # in constant time, whatever the path is
        given = scope["path"].partition("/")[2].partition("/")[0].encode("utf-8", "surrogatepass")
        if not secrets.compare_digest(given, self._token.encode()):
            return "open the address that saekit serve printed: it has a token"
        origins = [value.lower() for name, value in headers if name == b"origin"]
        if any(origin != b"http://" + hosts[0] for origin in origins):
            return "another origin may not ask this server"
        sites = [value for name, value in headers if name == b"sec-fetch-site"]
        by_another = any(site not in (b"same-origin", b"none") for site in sites)
        if by_another and not _opens_page(scope):
            return "another site may not ask this server"
        return None


def _opens_page(scope: Scope) -> bool:
    """Whether a person follows a link, which shows the answer and gives it to nobody."""
    headers = dict(scope["headers"])
    return (
        scope["method"] == "GET"
        and headers.get(b"sec-fetch-mode") == b"navigate"
        and headers.get(b"sec-fetch-dest") == b"document"
    )
