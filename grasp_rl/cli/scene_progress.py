"""How far a scan is: one line that is written over on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from grasp_rl.geo.scan import Counts
from grasp_rl.utils.text import printable

OFTEN, SELDOM = 0.5, 10.0
"""Seconds between two lines, on a terminal and elsewhere."""
_CLEAR = "\r\x1b[K"


class ScanLines:
    """Lines on ``stream``: windows done, what was found, and the time left at the pace of this process.

    Args:
        stream: of a terminal, or of anything else.
        what: is scanned.
        clock: seconds.
    """

    def __init__(self, stream: TextIO, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream, self.what, self.clock, self.terminal = stream, what, clock, stream.isatty()
        self._began = self._said = clock()
        self._open = False

    def __call__(self, counts: Counts) -> None:
        """Say how far it is, where the last time is long enough ago."""
        now = self.clock()
        if now - self._said < (OFTEN if self.terminal else SELDOM):
            return
        self._said = now
        text = printable(f"{self.what}: {progress_text(counts, now - self._began)}")
        self.stream.write((_CLEAR if self._open else "") + text + ("" if self.terminal else "\n"))
        self.stream.flush()
        self._open = self.terminal

    def end(self) -> None:
        """Take away a line that is still to be written over."""
        if self._open:
            self.stream.write(_CLEAR)
            self.stream.flush()
        self._open = False


def progress_text(counts: Counts, seconds: float) -> str:
    """How far ``counts`` are after ``seconds`` of this process."""
    here, left = counts.asked + counts.empty, counts.total - counts.done
    time_left = f", about {clock_time(seconds / here * left)} left" if here and left else ""
    instances = f"{counts.instances} found" + (f", {counts.empty} empty" if counts.empty else "")
    return f"{counts.done} of {counts.total} windows, {instances}{time_left}"


def clock_time(seconds: float) -> str:
    """``0:07``, ``12:30`` or ``3:05:00``."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
