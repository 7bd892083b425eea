"""Downloads that go on where they stopped: one file over HTTP, checked by size, by ETag and, where known, by SHA-256.

A token is sent to the host that it was given for and to no other, and stands in no message and no file.
"""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.transfers import Moved, demand_space, nothing_told
from grasp_rl.utils.files import read_json, sha256_of, write_json

TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as broken."""
ATTEMPTS = 5
"""Connections that may break one after the other without a byte received."""
_CHUNK = 1 << 20
_ANSWER = 64 << 20
"""Most bytes of an answer of :func:`read_answer`."""
_BROKEN = (OSError, http.client.HTTPException)
"""What a connection that breaks raises; urllib's URLError and timeouts are OSErrors."""


class DownloadError(OSError):
    """A file that could not be had: where it is (without its query), what happened, remedy."""


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A file that was downloaded whole."""

    sha256: str
    size: int
    """Bytes."""
    etag: str | None


def shown(url: str) -> str:
    """``url`` without what may be secret in it: user, password, query and fragment."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def check_url(url: str) -> None:
    """Raise a ConfigError unless ``url`` is one that can be downloaded."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{shown(url)}: must be an http or https address")
    if "@" in parts.netloc:
        raise ConfigError(f"{shown(url)}: has a user in it; give a token by the environment instead")


def download(
    url: str,
    path: Path,
    *,
    token: str | None = None,
    sha256: str | None = None,
    size: int | None = None,
    timeout: float = TIMEOUT,
    wait: Callable[[float], None] = time.sleep,
    moved: Moved = nothing_told,
) -> Fetched:
    """Download ``url`` to ``path``; what is in ``path``.part from before is kept where the server's file is the same.

    Args:
        url: http or https.
        path: of the file.
        token: sent as bearer token to the host of ``url`` alone.
        sha256: that the file must have; None where it is not known.
        size: bytes that it must have; None where they are not known.
        timeout: seconds without a byte after which a connection counts as broken.
        wait: sleeps between two attempts.
        moved: is told the bytes that are there and their number, as they come.

    Raises:
        ConfigError: ``url`` is none that can be downloaded, or the disk has no room for it.
        DownloadError: the server refuses it, the connection breaks again and again, or the file is not what it must be.
    """
    check_url(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    transfer = _Transfer(url, path, token, timeout, moved)
    failures = 0
    while True:
        before = transfer.received
        try:
            transfer.go_on()
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise DownloadError(_refused(url, error)) from error
            problem = f"the server answers {error.code}"
        except _BROKEN as error:
            problem = _reason(error)
        else:
            if transfer.whole:
                break
            problem = "the connection was cut"
        failures = 1 if transfer.received > before else failures + 1
        if failures >= ATTEMPTS:
            of = "" if transfer.total is None else f" of {transfer.total}"
            raise DownloadError(
                f"{shown(url)}: {problem} after {transfer.received}{of} bytes; run the command again to go on there"
            )
        wait(min(2.0**failures, 30.0))
    return transfer.finish(sha256, size)


def read_answer(url: str, *, token: str | None = None, timeout: float = TIMEOUT) -> Any:
    """The JSON value that a server answers.

    Raises:
        DownloadError: it cannot be had, or is no JSON.
    """
    check_url(url)
    try:
        with _open(url, {}, token, timeout) as response:
            return json.loads(response.read(_ANSWER))
    except urllib.error.HTTPError as error:
        raise DownloadError(_refused(url, error)) from error
    except _BROKEN as error:
        raise DownloadError(f"{shown(url)}: {_reason(error)}; try again later") from error
    except ValueError as error:
        raise DownloadError(f"{shown(url)}: the answer is no JSON; see that the address is right") from error


class _Transfer:
    """One file on its way: what was received, and of which version of the server's file."""

    def __init__(self, url: str, path: Path, token: str | None, timeout: float, moved: Moved) -> None:
        self.url, self.path, self.token, self.timeout, self.moved = url, path, token, timeout, moved
        self.part = path.with_name(f"{path.name}.part")
        self.notes = path.with_name(f"{path.name}.part.json")
        known = read_json(self.notes) or {}
        same = known.get("url") == shown(url) and self.part.is_file()
        self.etag: str | None = known.get("etag") if same else None
        self.total: int | None = known.get("total") if same else None
        if self.etag is None:  # nothing says that what is there is of the same file
            self._restart()

    @property
    def received(self) -> int:
        """Bytes so far."""
        return self.part.stat().st_size

    @property
    def whole(self) -> bool:
        """Whether the last byte is there; taken for granted where the server did not say how many there are."""
        return self.total is None or self.received == self.total

    def go_on(self) -> None:
        """Receive what is missing; returns when the server closes the connection."""
        start = self.received
        if start and start == self.total:
            return
        headers = {"Range": f"bytes={start}-", "If-Range": str(self.etag)} if start and self.etag else {}
        try:
            response = _open(self.url, headers, self.token, self.timeout)
        except urllib.error.HTTPError as error:
            if error.code != 416 or not headers:
                raise
            error.close()
            self._restart()
            response = _open(self.url, {}, self.token, self.timeout)
        with response:
            etag = _strong(response.headers.get("ETag"))
            ranged = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            fits = ranged is not None and int(ranged[1]) == self.received and etag == self.etag
            if response.status == 206 and not fits:  # of another version, or another piece
                response.close()
                self._restart()
                raise ConnectionError("the file changed on the server")
            if response.status == 206 and ranged is not None:
                self.total = int(ranged[2])
            else:  # the whole file: no range was asked for, it is ignored, or the file is another now
                self._restart()
                length = response.headers.get("Content-Length", "")
                self.total, self.etag = int(length) if length.isdigit() else None, etag
            write_json(self.notes, {"url": shown(self.url), "etag": self.etag, "total": self.total})
            done = self.received
            if self.total is not None:
                demand_space(self.path.parent, self.total - done, f"the rest of {shown(self.url)}")
            self.moved(done, self.total)
            with self.part.open("ab") as file:
                while data := response.read1(_CHUNK):
                    file.write(data)
                    done += len(data)
                    self.moved(done, self.total)

    def finish(self, sha256: str | None, size: int | None) -> Fetched:
        """Check the whole file and give it its name.

        Raises:
            DownloadError: it is not what it must be; it is removed.
        """
        digest = sha256_of(self.part)
        received = self.received
        if (size is not None and received != size) or (sha256 is not None and digest != sha256):
            self._remove()
            what = (
                f"sha256 {digest}, expected {sha256}"
                if size in (None, received)
                else f"{received} bytes, expected {size}"
            )
            raise DownloadError(f"{shown(self.url)}: other bytes than were asked for ({what}); they were removed")
        self.part.replace(self.path)
        self.notes.unlink(missing_ok=True)
        return Fetched(sha256=digest, size=received, etag=self.etag)

    def _restart(self) -> None:
        self.etag, self.total = None, None
        self.part.write_bytes(b"")

    def _remove(self) -> None:
        for path in (self.part, self.notes):
            path.unlink(missing_ok=True)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https, never from https to http, and leaves the token out for another host."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme, new.scheme) == ("https", "http"):
            raise urllib.error.HTTPError(shown(newurl), code, "leads away from https", headers, fp)
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and (old.scheme, old.hostname, old.port) != (new.scheme, new.hostname, new.port):
            request.remove_header("Authorization")
        return request


def _open(url: str, headers: dict[str, str], token: str | None, timeout: float) -> Any:
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", "User-Agent": "grasp_rl", **headers})
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    return urllib.request.build_opener(_Redirects).open(request, timeout=timeout)


def _strong(etag: str | None) -> str | None:
    """An ETag that tells files apart byte by byte; None for a weak one."""
    return None if etag is None or etag.startswith("W/") else etag


def _refused(url: str, error: urllib.error.HTTPError) -> str:
    remedy = {
        401: "set a token in the environment, or accept the terms on its page",
        403: "accept the terms on its page, and set a token of the same account in the environment",
        404: "see that the address and the revision are right",
    }.get(error.code, "see that the address is right, or download it by hand and give the file")
    error.close()
    return f"{shown(url)}: the server answers {error.code}; {remedy}"


def _reason(error: BaseException) -> str:
    """Why a connection broke, in words without the address."""
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return "no byte came in time"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror.lower()
    return "the connection was cut" if isinstance(reason, http.client.HTTPException) else str(reason)
