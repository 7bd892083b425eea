"""Progress of a run: the worker writes one small file, the launcher shows it.

progress = ProgressWriter(run_dir, total_steps=200)
progress.update("train", step, reward=0.4)
progress.update("validate", step, giou=0.31)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from grasp_rl.runs.run_dir import PROGRESS, STATUS
from grasp_rl.utils.console import PlainTable
from grasp_rl.utils.files import Record, read_json, write_json
from grasp_rl.utils.text import printable

_TIMED_FROM = 5
"""Steps after which the time left is said."""


class ProgressWriter:
    """The worker's side: ``<run>/progress.json``, what is being done and the numbers shown while it is.

    phase, step, total_steps, eta_s, message and notes; reward, smoothed over about ten updates; giou, of the validation
    split, or of what a run evaluates that does nothing else; before and after, gIoU of the test split around training.

    Args:
        run_dir: The run folder.
        total_steps: Steps of the whole run.
        first_step: Steps done before this start, which say nothing about the speed of this one.
        interval_s: Updates closer together than this are left out, except a change of phase, the last
            step, and a message that comes or goes.
    """

    def __init__(self, run_dir: str | Path, total_steps: int, first_step: int = 0, interval_s: float = 0.5) -> None:
        self._path = Path(run_dir) / PROGRESS
        self._interval = interval_s
        self._first = first_step
        self._timed: tuple[int, float] | None = None  # the first step of this start, and when it was done
        self._smoothed = 0.0
        self._rewards = 0
        self._written = -float("inf")
        self._state: Record = {"phase": "", "step": first_step, "total_steps": total_steps, "reward": None}
        self._state |= {"giou": None, "before": None, "after": None, "eta_s": None, "message": "", "notes": []}

    def update(
        self,
        phase: str,
        step: int,
        *,
        reward: float | None = None,
        giou: float | None = None,
        test: tuple[str, float | None] | None = None,
        message: str = "",
    ) -> None:
        """Say that ``step`` steps are done. A ``reward`` or ``giou`` left out keeps its last value.

        ``test`` is when the test split was scored, ``before`` or ``after``, and its gIoU.
        """
        now = time.monotonic()
        changed = (phase, bool(message)) != (self._state["phase"], bool(self._state["message"]))
        due = changed or step >= self._state["total_steps"] or now >= self._written + self._interval
        self._state |= {"phase": phase, "step": step, "message": message, "eta_s": self._eta(step, now)}
        if reward is not None:
            self._state["reward"] = self._smooth(reward)
        if giou is not None:
            self._state["giou"] = giou
        if test is not None:
            self._state[test[0]] = test[1]
        if due or test is not None:
            write_json(self._path, self._state)
            self._written = now

    def _smooth(self, reward: float) -> float:
        """Exponential moving average with the weight 0.1 of the newest, unbiased at the start."""
        self._rewards += 1
        self._smoothed = 0.9 * self._smoothed + 0.1 * reward
        return self._smoothed / (1 - 0.9**self._rewards)

    def note(self, text: str) -> None:
        """Say ``text`` once, above the progress."""
        if text not in self._state["notes"]:
            self._state["notes"] = [*self._state["notes"], text]
            write_json(self._path, self._state)

    def _eta(self, step: int, now: float) -> float | None:
        """Seconds left, from the fifth step on; the first, which waits for caches and compilers, does not count."""
        if step <= self._first:
            return None
        if self._timed is None:
            self._timed = step, now
        since, began = self._timed
        if step == since or step - self._first < _TIMED_FROM:
            return None
        left: int = max(self._state["total_steps"] - step, 0)
        return round((now - began) / (step - since) * left, 1)


class ProgressWatcher:
    """The launcher's side: a context in which a thread shows the progress of some run folders.

    On a terminal one live row a run; elsewhere a plain line every ``plain_every_s`` for each run that moved.

    Args:
        console: Where to show it.
        find: Called again and again for the folders to show.
        plain_every_s: Seconds between plain lines.
    """

    def __init__(self, console: Console, find: Callable[[], Sequence[Path]], plain_every_s: float = 15.0) -> None:
        self._console = console
        self._find = find
        self._plain_every = plain_every_s
        self._shown: dict[Path, Record] = {}
        self._noted: dict[Path, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> ProgressWatcher:
        for run_dir in self._find():  # what earlier runs noted was said then
            self._noted[run_dir] = len((read_json(run_dir / PROGRESS) or {}).get("notes") or [])
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.print_notes()

    def _watch(self) -> None:
        if not self._console.is_terminal:
            while not self._stop.wait(self._plain_every):
                self.print_notes()
                self.print_moved()
            return
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            while not self._stop.wait(0.4):
                self.print_notes()
                live.update(self.table(), refresh=True)

    def table(self) -> Table:
        """One row a run, those that are going on first: bar, step, smoothed reward, gIoU and time left."""
        table = PlainTable(box=None, pad_edge=False)
        for heading in ("run", "", "step", "reward", "val gIoU", "test before → after", "left", ""):
            table.add_column(heading, justify="left" if heading in ("run", "") else "right", overflow="ellipsis")
        for run_dir in sorted(self._find(), key=lambda path: not _is_running(path)):
            state = read_json(run_dir / PROGRESS) or {}
            total, step = state.get("total_steps") or 1, state.get("step") or 0
            table.add_row(
                run_dir.name,
                ProgressBar(total=total, completed=step, width=20),
                f"{step}/{total}" if state else "-",
                _number(state.get("reward")),
                _number(state.get("giou")),
                _before_and_after(state),
                duration(state.get("eta_s")),
                _doing(run_dir, state),
            )
        return table

    def print_notes(self) -> None:
        """A line for each note that a run made since the last call."""
        for run_dir in self._find():
            notes = (read_json(run_dir / PROGRESS) or {}).get("notes") or []
            for note in notes[self._noted.get(run_dir, 0) :]:
                self._console.print(printable(f"{run_dir.name}: {note}"), soft_wrap=True)
            self._noted[run_dir] = len(notes)

    def print_moved(self) -> None:
        """A plain line for each run whose progress changed since the last call."""
        for run_dir in self._find():
            state = read_json(run_dir / PROGRESS)
            if state is None or self._shown.get(run_dir) == state:
                continue
            self._shown[run_dir] = state
            line = (
                f"{run_dir.name}  {state['phase']} {state['step']}/{state['total_steps']}"
                f"  reward {_number(state.get('reward'))}  val gIoU {_number(state.get('giou'))}"
                f"  test {_before_and_after(state)}  left {duration(state.get('eta_s'))}"
            )
            self._console.print(printable(f"{line}  {state['message']}").rstrip(), soft_wrap=True)


def _is_running(run_dir: Path) -> bool:
    return (read_json(run_dir / STATUS) or {}).get("state") == "running"


def _doing(run_dir: Path, progress: Record) -> str:
    status = read_json(run_dir / STATUS) or {"state": "waiting"}
    if status["state"] != "running":
        return str(status["state"])
    return " ".join(filter(None, (progress.get("phase", "starting"), progress.get("message", ""))))


def _before_and_after(progress: Record) -> str:
    before, after = progress.get("before"), progress.get("after")
    return "-" if before is None and after is None else f"{_number(before)} → {_number(after)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: 45s, 3m20s, 2h05m; - for None."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest:02}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"
