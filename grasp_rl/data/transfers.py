"""What downloads, unpacking and copying share: how far they are, whether the disk has room, who holds the folder."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from grasp_rl.config.errors import ConfigError

Moved = Callable[[int, int | None], None]
"""Is told the bytes that are done, and of how many; None where that is not known."""
_CHUNK = 1 << 20


class NoSpaceError(ConfigError):
    """A disk without room for what is to be written: the folder, bytes needed and free, remedy."""


def nothing_told(_done: int, _total: int | None) -> None:
    """A :data:`Moved` that says nothing."""


def size_text(count: float) -> str:
    """Bytes in words: ``12.3 MiB``."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} bytes" if unit == "bytes" else f"{count:.1f} {unit}"


def demand_space(folder: Path, needed: int, what: str) -> None:
    """See that the disk of ``folder``, which is there, has room for ``needed`` bytes.

    Args:
        folder: where they are to be written.
        needed: bytes.
        what: needs them, for the message.

    Raises:
        NoSpaceError: it has less.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise NoSpaceError(
            f"{folder}: {what} needs {size_text(needed)} there, {size_text(free)} are free; free "
            f"{size_text(needed - free)}, or name a folder on another disk"
        )


def copied(source: IO[bytes], target: IO[bytes], done: int, total: int | None, moved: Moved) -> int:
    """Copy ``source`` to its end and return ``done`` with its bytes added."""
    while data := source.read(_CHUNK):
        target.write(data)
        done += len(data)
        moved(done, total)
    return done


@contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file ``path`` for as long as the body runs; it is removed then.

    The lock goes with the process, however that ends. In the file stands who holds it.

    Args:
        path: beside what is worked on.
        what: is being worked on, for the message.

    Raises:
        ConfigError: another process, or another call in this one, holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                holder = file.read(200).strip() or "another process"
                raise ConfigError(
                    f"{what}: {holder} is at work there; wait for its end, or give another folder"
                ) from error
            if not _is_same(file, path):  # its last holder removed it in between
                continue
            file.truncate(0)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            file.write(f"process {os.getpid()} on {os.uname().nodename} since {now}\n")
            file.flush()
            try:
                yield
            finally:
                with suppress(OSError):
                    path.unlink()
            return


def _is_same(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
