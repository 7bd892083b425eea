"""What may reach the page: a door in front of the web server, of any framework that speaks ASGI.

Only what the page itself asks for is let through: no request can name a file or an address, and none is larger than an
upload. Every reply forbids the browser to load anything from elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LOCAL = ("127.0.0.1", "localhost", "[::1]")
"""Names of this machine. A page of the web that makes the browser ask for another name here is refused by it."""
PAGES = ("/", "/config", "/config/", "/theme.css", "/favicon.ico", "/manifest.json")
FOLDERS = ("/assets/", "/static/", "/svelte/", "/gradio_api/heartbeat/")
QUEUE = ("/gradio_api/queue/join", "/gradio_api/queue/data", "/gradio_api/reset", "/gradio_api/cancel")
STARTUP = ("/gradio_api/startup-events", "/gradio_api/info", "/gradio_api/app_id")
JOIN = QUEUE[0]
HEADERS = {
    b"content-security-policy": b"default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
    b"script-src 'self' 'unsafe-inline' 'unsafe-eval'; font-src 'self' data:; connect-src 'self'; "
    b"worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
}
"""Of every reply. Inline scripts are gradio's own."""


class Guard:
    """An ASGI application in front of another.

    Args:
        app: the one behind.
        hosts: names under which the page may be asked for; None for any.
        max_body: bytes of a request.
    """

    def __init__(self, app: Any, hosts: Sequence[str] | None, max_body: int) -> None:
        self.app, self.hosts, self.max_body = app, hosts, max_body

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        refusal = self._refusal(scope)
        if refusal is None and scope["method"] == "POST":
            body = await _body(receive, self.max_body)
            refusal = _refused_body(body, scope["path"])
            receive = _replayed(body or b"", receive)
        if refusal is not None:
            await _reply(send, *refusal)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message.get("headers", ()) if name.lower() not in HEADERS]
                message = {**message, "headers": [*kept, *HEADERS.items()]}
            await send(message)

        await self.app(scope, receive, with_headers)

    def _refusal(self, scope: Message) -> tuple[int, str] | None:
        """Status and words for a request that is not let through by its name, method or path."""
        names = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        name = names[0].rpartition(":")[0] if names and names[0].rpartition(":")[2].isdigit() else "".join(names[:1])
        if self.hosts is not None and name.lower() not in self.hosts:
            return 403, f"this page is asked for as {self.hosts[0]} only"
        path, method = scope["path"], scope["method"]
        known = path in (*PAGES, *QUEUE, *STARTUP) or (path.startswith(FOLDERS) and ".." not in path)
        if not known:
            return 404, "there is no such page"
        if method not in (("GET", "HEAD", "POST") if path in QUEUE else ("GET", "HEAD")):
            return 405, "not in this way"
        return None


def _refused_body(body: bytes | None, path: str) -> tuple[int, str] | None:
    """Status and words for a body that is too large, or whose values are not plain ones: such name files."""
    if body is None:
        return 413, "too large"
    if path != JOIN:
        return None
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return 400, "not JSON"
    values = asked.get("data") if isinstance(asked, dict) else None
    if not isinstance(values, list) or not all(isinstance(v, str | int | float | None) for v in values):
        return 400, "data must be a list of texts and numbers"
    return None


async def _body(receive: Receive, most: int) -> bytes | None:
    """The whole body; None where it has more than ``most`` bytes or the browser is gone."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            return None
        if not message.get("more_body"):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """``receive`` that gives ``body`` first."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


async def _reply(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close"), *HEADERS.items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
