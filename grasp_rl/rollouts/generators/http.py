"""JSON over HTTP with patience: what a server may do wrong, and what that means for the one who asks."""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from grasp_rl.config.errors import ConfigError

Answer = TypeVar("Answer")

_TRY_AGAIN = (408, 409, 425, 429)
BACKOFF_S = 0.5


class Unusable(Exception):
    """An answer that is not what was asked for; asking again may help."""


class Unreachable(Exception):
    """No usable answer after all attempts. The message says what the last one met."""


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: the key would be sent along, to whatever host is named."""

    def redirect_request(self, *_: Any) -> None: ...


_OPENER = urllib.request.build_opener(_Stay)


@dataclass(kw_only=True)
class Server:
    """A server and how patiently it is asked.

    Args:
        url: its root, for example http://localhost:8000.
        timeout_s: of one attempt.
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
            except (Unusable, TimeoutError, OSError, http.client.HTTPException) as error:
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
        self.count("requests")
        try:
            with _OPENER.open(request, timeout=left) as response:
                text = response.read().decode("utf-8", errors="replace")
        except urllib.error.HTTPError as error:
            said = error.read().decode("utf-8", errors="replace")[:500]
            if error.code < 500 and error.code not in _TRY_AGAIN:
                key = "generator.api_key_env" if error.code in (401, 403) else "generator.url"
                raise ConfigError(f"{key}: {self.url}{path} refuses the request ({error.code}): {said}") from error
            raise OSError(f"HTTP {error.code}: {said}") from error
        try:
            return json.loads(text) if text.startswith(("{", "[")) else text
        except json.JSONDecodeError as error:
            raise Unusable(f"no JSON: {text[:100]!r}") from error

    def _count(self, error: Exception) -> None:
        timed_out = isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError)
        kind = "timeouts" if timed_out else "bad_answers" if isinstance(error, Unusable) else "http_errors"
        self.count(kind)

    def _said(self, error: Exception) -> str:
        return f"{type(error).__name__}: {getattr(error, 'reason', None) or error}"
