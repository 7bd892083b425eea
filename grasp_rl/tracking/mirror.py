"""A tracker that cannot hurt: every call is put on a bounded queue, which a daemon thread carries out.

Training never waits for it. What does not fit the queue is dropped and counted; the first failure is one warning, after
which the mirror is quiet. Nothing is lost by either: metrics.jsonl in the run folder is the record.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from grasp_rl.runs.environment import masked

log = logging.getLogger(__name__)

_QUEUE = 1000


class Mirror(ABC):
    """A tracker whose work is done elsewhere and later. Subclasses do the work, all of it in one thread.

    Args:
        finish_s: how long :meth:`finish` waits for what is still on the queue.
        queue_size: calls waiting at most.
    """

    name = "mirror"
    """What warnings call it."""

    def __init__(self, finish_s: float = 8.0, queue_size: int = _QUEUE) -> None:
        self._finish_s = finish_s
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(queue_size)
        self._thread: threading.Thread | None = None
        self._quiet = False
        self.notes: list[str] = []
        """What a person at the terminal is to be told; the run's loop passes it on."""
        self.dropped = 0
        """Calls that were not carried out because the queue was full."""

    def start(self, run_dir: Path, config: Mapping[str, Any], resume: bool) -> None:
        """Begin; returns at once, whatever the service does."""
        self._thread = threading.Thread(target=self._work, name=f"tracker-{self.name}", daemon=True)
        self._put(lambda: self._open(run_dir, config, resume))
        self._thread.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Pass a row of metrics on."""
        row = dict(metrics)
        self._put(lambda: self._log(row, step))

    def images(self, name: str, paths: Sequence[Path], step: int) -> None:
        """Pass images on; the files must stay."""
        images = list(paths)
        self._put(lambda: self._images(name, images, step))

    def artifact(self, kind: str, files: Sequence[Path], about: Mapping[str, Any]) -> None:
        """Pass on an ``evaluation`` or a ``checkpoint``: files, which must stay, and facts about it."""
        made, facts = list(files), dict(about)
        self._put(lambda: self._artifact(kind, made, facts))

    def finish(self, exit_code: int) -> None:
        """Pass the end on and wait for it, ``finish_s`` at most."""
        if self._thread is None:
            return
        deadline = time.monotonic() + self._finish_s
        self._put(lambda: self._close(exit_code))
        with contextlib.suppress(queue.Full):  # then the thread is stuck and goes with the process
            self._queue.put(None, timeout=max(0.0, deadline - time.monotonic()))
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._give_up(f"did not finish within {self._finish_s:g} s")
            self._abandon()
        if self.dropped:
            log.warning("%s: %d calls dropped; metrics.jsonl has every row", self.name, self.dropped)
        self._thread = None

    def _put(self, call: Callable[[], None]) -> None:
        if self._quiet:
            return
        try:
            self._queue.put_nowait(call)
        except queue.Full:
            self.dropped += 1

    def _work(self) -> None:
        ended = False
        try:
            while (call := self._queue.get()) is not None:
                call()
            ended = True
        except ImportError as error:
            self._give_up(f"{error}; pip install 'grasp-rl[track]'")
            ended = True
        except self._failures() as error:
            self._give_up(f"{type(error).__name__}: {error}")
            ended = True
        finally:
            if not ended:  # an error of the program: its traceback follows, and training goes on
                self._give_up("an unforeseen error")

    def _give_up(self, reason: str) -> None:
        if not self._quiet:
            self._warn(f"{reason}; it is off from here on, metrics.jsonl is not")
        self._quiet = True

    def _warn(self, text: str) -> None:
        """One line in the log and among the notes, without anything that looks like a secret."""
        line = f"{self.name}: {' '.join(masked(text.split()))[:400]}"
        log.warning("%s", line)
        self.notes.append(line)

    def _failures(self) -> tuple[type[BaseException], ...]:
        """What the work may raise that says nothing about this program; asked for when it happened.

        OSError is the network, the disk and time limits (TimeoutError, requests' exceptions).
        """
        return (OSError,)

    def _abandon(self) -> None:  # noqa: B027  # most have nothing to let go of
        """Let go of whatever would keep this process from ending; called where the work did not end in time."""

    def _artifact(self, kind: str, files: Sequence[Path], about: Mapping[str, Any]) -> None:  # noqa: B027
        """Keep what the run made; most trackers keep none of it."""

    @abstractmethod
    def _open(self, run_dir: Path, config: Mapping[str, Any], resume: bool) -> None: ...

    @abstractmethod
    def _log(self, metrics: Mapping[str, float], step: int) -> None: ...

    @abstractmethod
    def _images(self, name: str, paths: Sequence[Path], step: int) -> None: ...

    @abstractmethod
    def _close(self, exit_code: int) -> None: ...
