"""SIGTERM and SIGINT, heard where a run can be left: an interruption waits while work is done that must be whole."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 130

_received = 0
_depth = 0
_leave: Callable[[], None] | None = None


def listen(leave: Callable[[], None]) -> None:
    """Hear SIGTERM and SIGINT: until :func:`ready` the first ends the process at once, after ``leave``.

    An exception raised in the middle of an import is swallowed by some callers and turned into another error by
    others (``__set_name__``, weak-reference callbacks, omegaconf), so that none is raised while a run starts.
    """
    global _received, _depth, _leave
    _received, _depth, _leave = 0, 0, leave
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _hear)


def ready() -> None:
    """From now on let the first SIGTERM or SIGINT raise KeyboardInterrupt where that is open, the second end at once.

    Raises:
        KeyboardInterrupt: one was received while that was held.
    """
    global _leave  # noqa: PLW0603
    _leave = None
    if pending():
        raise KeyboardInterrupt


def _hear(_number: int, _frame: FrameType | None) -> None:
    global _received  # noqa: PLW0603
    _received += 1
    if _received > 1:
        os._exit(EXIT_CODE)
    if _depth:
        return
    if _leave is None:
        raise KeyboardInterrupt
    os.write(2, b"interrupted at the start\n")  # the log's own stream may be in the middle of a line
    _leave()
    os._exit(EXIT_CODE)


def interrupt_when(gone: Callable[[], bool]) -> None:
    """Ask ``gone`` every second in a thread of its own; where it says yes, this process gets a SIGTERM, once."""

    def watch() -> None:
        while not gone():
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def pending() -> bool:
    """Whether an interruption was received."""
    return _received > 0


@contextmanager
def held() -> Iterator[None]:
    """Within the block an interruption only becomes :func:`pending`."""
    global _depth  # noqa: PLW0603
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


@contextmanager
def opened() -> Iterator[None]:
    """Within the block, and at its beginning, an interruption raises KeyboardInterrupt, whatever holds around it."""
    global _depth  # noqa: PLW0603
    before, _depth = _depth, 0
    try:
        if pending():
            raise KeyboardInterrupt
        yield
    finally:
        _depth = before
