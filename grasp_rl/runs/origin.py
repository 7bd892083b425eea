"""Whose a file of a run is: what this user's runs write is signed with a key that stays in the user's own folders.

A run folder can come from anybody, and everything in it can be made to fit. Beside its config.yaml, and beside the
manifest of each checkpoint, stands a file ``NAME.origin``: the HMAC-SHA256 of the file under the key in
``$XDG_STATE_HOME/grasp_rl/origin.key`` (``~/.local/state`` by default). Whoever lacks the key cannot sign, and what was
changed after it was signed is nobody's. A folder may be moved, and machines that share the folder of the key share
their runs. Where there is no such folder, or none that can be written, nothing is signed, and nothing is one's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

from grasp_rl.utils.files import Unreadable, open_regular, read_text, write_text

SUFFIX = ".origin"
_BYTES = 32


def mark_of(file: Path) -> Path:
    """Where the mark of ``file`` stands."""
    return file.with_name(file.name + SUFFIX)


def sign(file: Path) -> None:
    """Mark ``file`` as this user's; no mark where there is no key and none can be made.

    Raises:
        OSError: the file cannot be read, or its mark not be written.
    """
    key = _key() or _new_key()
    if key is None:
        mark_of(file).unlink(missing_ok=True)
    else:
        write_text(mark_of(file), _signature(key, file) + "\n")


def is_own(file: Path) -> bool:
    """Whether ``file`` is as this user signed it."""
    key = _key()
    try:
        return key is not None and hmac.compare_digest(read_text(mark_of(file), 1000).strip(), _signature(key, file))
    except (OSError, Unreadable, TypeError):  # no mark, or one that is no text of ASCII
        return False


def _signature(key: bytes, file: Path) -> str:
    with open_regular(file) as opened:
        digest = hashlib.file_digest(opened, "sha256").digest()
    return hmac.new(key, file.name.encode() + b"\0" + digest, "sha256").hexdigest()


def _path() -> Path | None:
    base = os.environ.get("XDG_STATE_HOME", "")
    try:
        state = Path(base) if os.path.isabs(base) else Path.home() / ".local/state"
    except RuntimeError:  # a user without a home folder
        return None
    return state / "grasp_rl/origin.key"


def _key() -> bytes | None:
    """The user's key; one that others could have written counts as none."""
    path = _path()
    if path is None:
        return None
    try:
        about = path.stat()
        if about.st_uid != os.geteuid() or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return None
        with open_regular(path) as file:
            key = file.read(_BYTES)
    except (OSError, Unreadable):
        return None
    return key if len(key) == _BYTES else None


def _new_key() -> bytes | None:
    """A key, written for later; of several processes at once the first wins."""
    path = _path()
    if path is None:
        return None
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_BYTES))
        with contextlib.suppress(FileExistsError):
            os.link(part, path)
        part.unlink()
    except OSError:
        return None
    return _key()
