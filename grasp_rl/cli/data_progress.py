"""How far a transfer is, for a person: one line that is written over on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from grasp_rl.data.transfers import size_text
from grasp_rl.utils.text import printable

OFTEN, SELDOM = 0.2, 10.0
"""Seconds between two lines, on a terminal and elsewhere."""
_CLEAR = "\r\x1b[K"


class TransferLines:
    """Lines on ``stream``, and between them how far a transfer is.

    Args:
        stream: of a terminal, or of anything else.
        clock: seconds, for rates.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream, self.clock, self.terminal = stream, clock, stream.isatty()
        self._what: str | None = None
        self._began = self._said = 0.0
        self._first = 0
        self._open = False

    def tell(self, line: str) -> None:
        """A line that stays."""
        self._write(f"{printable(line)}\n")
        self._open, self._what = False, None

    def moved(self, what: str, done: int, total: int | None) -> None:
        """``done`` of ``total`` bytes of ``what``; said where the last time is long enough ago, and at the end.

        The rate is over the bytes since ``what`` was first named: what was there before does not count.
        """
        now = self.clock()
        if what != self._what:
            self._what, self._began, self._said, self._first = what, now, now, done
        if now - self._said < (OFTEN if self.terminal else SELDOM) and not (self._open and done == total):
            return
        self._said = now
        share = f" of {size_text(total)} ({100 * done / total:.0f} %)" if total else ""
        rate = size_text((done - self._first) / max(now - self._began, 1e-9))
        self._write(printable(f"{what}: {size_text(done)}{share}, {rate}/s") + ("" if self.terminal else "\n"))
        self._open = self.terminal

    def end(self) -> None:
        """Take away a line that is still to be written over."""
        if self._open:
            self._write("")
        self._open = False

    def _write(self, text: str) -> None:
        self.stream.write(_CLEAR + text if self._open else text)
        self.stream.flush()
