"""The run folder: the names of its files, who holds it, and how it stands.

Every JSON file in it is written whole or not at all, so that a reader never meets half of one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import psutil

from grasp_rl.config.errors import ConfigError
from grasp_rl.utils.files import Record, foreign_entry, read_json, to_json, write_json

CONFIG = "config.yaml"
METRICS, TIMINGS = "metrics.jsonl", "timings.jsonl"
ENVIRONMENT = "environment.json"
STATUS = "status.json"
PROGRESS = "progress.json"
RESULT = "result.json"
ERROR = "error.json"
LOG = "log.txt"
MINED, MINING = "mined.jsonl", "mining.json"
"""The training questions that a pass of mining kept, and how many of how many; the second is there once it is over."""
LOCK = ".lock"
"""Held by the worker while it runs."""
LAUNCHER_LOCK = ".launcher"
"""Held by the launcher from before it decides what to do about the folder until its worker has ended."""

State = Literal["running", "done", "failed", "interrupted"]

SFT, ROUND = "sft", "round_{}"
"""Folders of a training run's stages before its last one, each a run directory itself."""

_PLACES = ("node_rank", "rendezvous", "hostfile", "timeout_s")
_INDECISIVE = ("run_dir", "name", "resume", "trusted_modules", "trust_checkpoint", "tracker", "sweep")

_START_GRACE_S = 30.0
"""How long a worker may take from its start to holding the lock."""


def config_hash(config: Mapping[str, Any]) -> str:
    """Of everything that decides the numbers: not the folder, the name, the way it was started or the tracker."""
    decisive = {k: v for k, v in config.items() if k not in _INDECISIVE}
    if isinstance(engine := decisive.get("engine"), Mapping):
        decisive["engine"] = {k: v for k, v in engine.items() if k not in _PLACES}
    if isinstance(checkpoint := decisive.get("checkpoint"), Mapping):
        decisive["checkpoint"] = {k: v for k, v in checkpoint.items() if k != "keep"}
    return hashlib.sha256(json.dumps(to_json(decisive), sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Hold ``run_dir`` for this process.

    The lock goes with the process, however that ends.

    Raises:
        ConfigError: another process holds it, or it holds what is not its own.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    refuse_foreign(run_dir)
    with (run_dir / LOCK).open("a+", encoding="utf-8") as file:
        if not _acquire(file.fileno(), patience_s=1.0):
            holder = (read_json(run_dir / STATUS) or {}).get("pid")
            raise ConfigError(f"run_dir={str(run_dir)!r}: a run is going on there (process {holder}); choose another")
        yield


def refuse_foreign(run_dir: Path) -> None:
    """See that nothing in a run folder leads out of it, before anything in it is read or written.

    Raises:
        ConfigError: it holds a link that does, a device or a FIFO.
    """
    entry = foreign_entry(run_dir)
    if entry is not None:
        where = os.path.relpath(entry, os.path.realpath(run_dir))
        leads = f"a link to {str(os.readlink(entry))!r}" if entry.is_symlink() else "no regular file"
        raise ConfigError(
            f"{run_dir}: {where!r} in it is {leads}; a run folder has files of its own: put the file itself there, or "
            "remove it"
        )


def is_locked(run_dir: Path, name: str = LOCK) -> bool:
    """Whether another process holds ``run_dir`` (with :data:`LAUNCHER_LOCK`: whether its launcher lives)."""
    if not (run_dir / name).is_file() or (run_dir / name).is_symlink():
        return False
    with (run_dir / name).open("r+", encoding="utf-8") as file:
        return not _acquire(file.fileno(), patience_s=0.0)


@contextmanager
def launcher_lock(run_dir: Path) -> Iterator[None]:
    """Hold ``run_dir`` for the launcher, so that of several starts at once one prepares and runs it.

    The lock goes with the process, however that ends; its worker then ends at the next step boundary.

    Raises:
        ConfigError: another launcher holds it, or a worker whose launcher is gone still runs there, or it holds what
            is not its own.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    refuse_foreign(run_dir)
    with (run_dir / LAUNCHER_LOCK).open("a+", encoding="utf-8") as file:
        if not _acquire(file.fileno(), patience_s=1.0):
            raise ConfigError(
                f"run_dir={str(run_dir)!r}: another start has this folder and runs there; wait for its end, or choose "
                "another folder"
            )
        yield


def _acquire(descriptor: int, patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except (BlockingIOError, PermissionError):
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)


def mark_started(run_dir: Path, pid: int, digest: str) -> None:
    """Write the status of a run that begins."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    status = {"state": "running", "started": now, "ended": None, "exit_code": None, "pid": pid, "config_hash": digest}
    write_json(run_dir / STATUS, status)


def mark_ended(run_dir: Path, state: State, exit_code: int) -> None:
    """Write how a run ended into the status it began with."""
    status = read_json(run_dir / STATUS) or {}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(run_dir / STATUS, status | {"state": state, "ended": now, "exit_code": exit_code})


def state_of(run_dir: Path) -> State | None:
    """How the run in ``run_dir`` stands, None where there is none.

    A run whose processes vanished without a word counts as interrupted.
    """
    status = read_json(run_dir / STATUS)
    if status is None:
        return None
    state: State = next((known for known in get_args(State) if known == status.get("state")), "failed")
    if state == "running" and not is_locked(run_dir) and not _just_started(status):
        return "interrupted"
    return state


def stages_in(run_dir: Path) -> list[Path]:
    """The run directories of earlier stages in that of a training run, in their order."""
    numbers = {path: numbered(path.name, ROUND.format("")) for path in run_dir.glob(ROUND.format("*"))}
    rounds = {path: number for path, number in numbers.items() if number is not None}
    stages = [run_dir / SFT, *sorted(rounds, key=lambda path: rounds[path])]
    return [path for path in stages if (path / STATUS).is_file()]


def numbered(name: str, prefix: str) -> int | None:
    """The number behind ``prefix`` in a file's name; None for another name."""
    digits = name.removeprefix(prefix)
    known = name.startswith(prefix) and digits.isascii() and digits.isdigit() and len(digits) < 10
    return int(digits) if known else None


def seconds_between(begin: object, end: object) -> float | None:
    """Seconds between two times of a status, None where one is missing or no time."""
    first, last = _time(begin), _time(end)
    return None if first is None or last is None else (last - first).total_seconds()


def _time(text: object) -> datetime | None:
    """A time of a status, in UTC where it names no zone."""
    if not isinstance(text, str):
        return None
    try:
        time = datetime.fromisoformat(text)
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _just_started(status: Record) -> bool:
    began = _time(status.get("started"))
    young = began is not None and (datetime.now(UTC) - began).total_seconds() < _START_GRACE_S
    return young and _alive(status.get("pid"))


def _alive(pid: object) -> bool:
    if not isinstance(pid, int) or not 0 < pid < 2**31:
        return False
    try:  # a process that ended and that nobody has asked about yet is none
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # another user's
        return True


def set_aside(run_dir: Path, names: Sequence[str] | None = None, *, keep: bool = False) -> None:
    """Move what an earlier start left in ``run_dir`` into ``earlier/<n>``: ``names``, or everything.

    With ``keep`` the files are copied, so that a run that goes on still has them.
    """
    present = [run_dir / name for name in names] if names else list(run_dir.iterdir())
    present = [path for path in present if path.exists() and path.name not in (LOCK, LAUNCHER_LOCK, "earlier")]
    if not present:
        return
    number = 1
    while (run_dir / "earlier" / str(number)).exists():
        number += 1
    target = run_dir / "earlier" / str(number)
    target.mkdir(parents=True)
    for path in present:
        if keep:
            (target / path.name).write_bytes(path.read_bytes())
        else:
            path.rename(target / path.name)
