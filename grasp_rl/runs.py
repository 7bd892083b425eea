"""The run folder: the names of its files, who holds it, and how it stands.

Every JSON file in it is written whole or not at all, so that a reader never meets half of one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from grasp_rl.config import ConfigError

if TYPE_CHECKING:
    from grasp_rl.types import Record

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
STATUS = "status.json"
PROGRESS = "progress.json"
RESULT = "result.json"
ERROR = "error.json"
LOG = "log.txt"
LOCK = ".lock"

State = Literal["running", "done", "failed", "interrupted"]

_PLACES = ("node_rank", "rendezvous", "hostfile", "timeout_s")
_INDECISIVE = ("run_dir", "name", "resume", "trusted_modules", "tracker", "sweep")

_START_GRACE_S = 30.0
"""How long a worker may take from its start to holding the lock."""


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` atomically. NaN and infinity become null, numbers of numpy plain ones."""
    write_text(path, json.dumps(plain(value), indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Record | None:
    """The JSON object in ``path``, or None where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return value if isinstance(value, dict) else None


def plain(value: Any) -> Any:
    """``value`` in JSON's own types."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, str | None | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Sequence | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)


def config_hash(config: Mapping[str, Any]) -> str:
    """Of everything that decides the numbers: not the folder, the name, the way it was started or the tracker."""
    decisive = {k: v for k, v in config.items() if k not in _INDECISIVE}
    if isinstance(engine := decisive.get("engine"), Mapping):
        decisive["engine"] = {k: v for k, v in engine.items() if k not in _PLACES}
    return hashlib.sha256(json.dumps(plain(decisive), sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold ``run_dir`` for this process.

    The lock goes with the process, however that ends.

    Raises:
        ConfigError: another process holds it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / LOCK).open("a+", encoding="utf-8") as file:
        if not _acquire(file.fileno(), patience_s=1.0):
            holder = (read_json(run_dir / STATUS) or {}).get("pid")
            raise ConfigError(f"run_dir={str(run_dir)!r}: a run is going on there (process {holder}); choose another")
        yield


def is_locked(run_dir: Path) -> bool:
    """Whether another process holds ``run_dir``."""
    try:
        with (run_dir / LOCK).open("r+", encoding="utf-8") as file:
            return not _acquire(file.fileno(), patience_s=0.0)
    except FileNotFoundError:
        return False


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


def started(run_dir: Path, pid: int, digest: str) -> None:
    """Write the status of a run that begins."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    status = {"state": "running", "started": now, "ended": None, "exit_code": None, "pid": pid, "config_hash": digest}
    write_json(run_dir / STATUS, status)


def ended(run_dir: Path, state: State, exit_code: int) -> None:
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
    state: State = status["state"]
    if state == "running" and not is_locked(run_dir) and not _just_started(status):
        return "interrupted"
    return state


def seconds_between(begin: str | None, end: str | None) -> float | None:
    """Seconds between two times of a status, None where one is missing."""
    if begin is None or end is None:
        return None
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()


def _just_started(status: Record) -> bool:
    age = datetime.now(UTC) - datetime.fromisoformat(status["started"])
    return age.total_seconds() < _START_GRACE_S and _alive(status["pid"])


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:  # a process that ended and that nobody has asked about yet still takes signals
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state not in ("Z", "X")


def set_aside(run_dir: Path, names: Sequence[str] | None = None, *, keep: bool = False) -> None:
    """Move what an earlier start left in ``run_dir`` into ``earlier/<n>``: ``names``, or everything.

    With ``keep`` the files are copied, so that a run that goes on still has them.
    """
    present = [run_dir / name for name in names] if names else list(run_dir.iterdir())
    present = [path for path in present if path.exists() and path.name not in (LOCK, "earlier")]
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
