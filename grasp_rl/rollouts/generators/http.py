"""JSON over HTTP with patience: what a server may do wrong, and what that means for the one who asks.

A server is a stranger: an attempt ends with its time whatever arrives, a body has a size, an answer a depth, and its
words are escaped.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from grasp_rl.config.errors import ConfigError
from grasp_rl.utils.files import Unreadable, parse_json
from grasp_rl.utils.text import printable

Answer = TypeVar("Answer")

_TRY_AGAIN = (408, 409, 425, 429)
BACKOFF_S = 0.5
MOST_BYTES = 32 * 2**20
"""Of an answer."""
_MOST_SAID, _PIECE = 500, 2**16


class Unusable(Exception):
    """An answer that is not what was asked for; asking again may help."""


class Unreachable(Exception):
    """No usable answer after all attempts. The message says what the last one met."""


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: the key would be sent along, to whatever host is named."""

    def redirect_request(self, *_: Any) -> None: ...


class _Connection(http.client.HTTPConnection):
    """Shut down once its time is over, however the server spends it: a timeout of a socket is one of a single read."""

    def connect(self) -> None:
        super().connect()
        timer = threading.Timer(float(self.timeout or 0.0), _shut, (self.sock,))
        timer.daemon = True
        timer.start()


class _SecureConnection(http.client.HTTPSConnection, _Connection):
    """The same over TLS."""


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it was closed in time
        sock.shutdown(socket.SHUT_RDWR)


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_Connection, req)

    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_SecureConnection, req)


_OPENER = urllib.request.build_opener(_Stay, _Handler)


@dataclass(kw_only=True)
class Server:
    """A server and how patiently it is asked.

    Args:
        url: its root, for example http://localhost:8000.
        timeout_s: of one attempt, from its beginning to the last byte of its answer.
        retries: attempts after the first; each waits twice as long as the one before.
        api_key_env: name of the environment variable that holds a bearer token; None sends none.
    """

    url: str
    timeout_s: float
    retries: int
    api_key_env: str | None = None
    counts: Counter[str] = field(default_factory=Counter)
    """Requests, retries, timeouts, http_errors and bad_answers so far."""
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, name: str) -> None:
        """One more, from any thread."""
        with self.lock:
            self.counts[name] += 1

    def ask(
        self, path: str, body: dict[str, Any], read: Callable[[Any], Answer], *, deadline: float | None = None
    ) -> Answer:
        """What ``read`` makes of the JSON that POST ``path`` answers, after as many attempts as it takes.

        Args:
            path: below the root.
            body: the JSON to send.
            read: raises :class:`Unusable` where the answer is not what was asked for.
            deadline: time of ``time.monotonic`` after which no attempt is begun.

        Raises:
            ConfigError: the server refuses the request for what it says; asking again is useless.
            Unreachable: no usable answer.
        """
        for attempt in range(self.retries + 1):
            try:
                return read(self._post(path, body, deadline))
            except ConfigError:
                raise
            except (Unusable, OSError, http.client.HTTPException, ValueError) as error:
                self._count(error)
                wait = BACKOFF_S * 2**attempt
                late = deadline is not None and time.monotonic() + wait >= deadline
                if attempt == self.retries or late:
                    raise Unreachable(f"{self.url}{path}: {self._said(error)} ({attempt + 1} attempts)") from error
            self.count("retries")
            time.sleep(wait)
        raise AssertionError("unreachable")

    def _post(self, path: str, body: dict[str, Any], deadline: float | None) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.api_key_env:
            headers["Authorization"] = f"Bearer {os.environ.get(self.api_key_env, '')}"
        request = urllib.request.Request(self.url.rstrip("/") + path, json.dumps(body).encode(), headers)
        left = self.timeout_s if deadline is None else min(self.timeout_s, max(0.01, deadline - time.monotonic()))
        until = time.monotonic() + left
        self.count("requests")
        try:
            with _OPENER.open(request, timeout=left) as response:
                text = _read(response, MOST_BYTES, until).decode("utf-8", errors="replace")
        except urllib.error.HTTPError as error:
            with error:
                said = printable(_read(error, _MOST_SAID, until).decode("utf-8", errors="replace"))
            if error.code < 500 and error.code not in _TRY_AGAIN:
                key = "generator.api_key_env" if error.code in (401, 403) else "generator.url"
                raise ConfigError(f"{key}: {self.url}{path} refuses the request ({error.code}): {said}") from error
            raise OSError(f"HTTP {error.code}: {said}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            if time.monotonic() >= until:
                raise TimeoutError(f"no answer within {left:.3g} s") from error
            raise
        try:
            return parse_json(text) if text.startswith(("{", "[")) else text
        except Unreadable as error:
            raise Unusable(f"{error}: {printable(text[:100])!r}") from error

    def _count(self, error: Exception) -> None:
        timed_out = isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError)
        kind = "timeouts" if timed_out else "bad_answers" if isinstance(error, Unusable) else "http_errors"
        self.count(kind)

    def _said(self, error: Exception) -> str:
        return printable(f"{type(error).__name__}: {getattr(error, 'reason', None) or error}"[:_MOST_SAID])


def _read(response: Any, most: int, until: float) -> bytes:
    """The body of an answer, piece by piece; of one that is an error's the first ``most`` bytes.

    Raises:
        Unusable: an answer is longer.
        TimeoutError: it was not there at ``until``, whatever had come by then.
    """
    pieces, size, is_error = [], 0, isinstance(response, urllib.error.HTTPError)
    while piece := response.read1(_PIECE):
        pieces.append(piece)
        size += len(piece)
        if size > most and not is_error:
            raise Unusable(f"an answer of more than {most} bytes")
        if size > most or time.monotonic() >= until:
            break
    if time.monotonic() >= until:
        raise TimeoutError("the answer was not whole in time")
    if not is_error and response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(pieces)[:most]
