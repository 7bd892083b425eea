"""Signs of life of a run's ranks, in files: who is gone can be named, and whoever waits for them can be stopped."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from grasp_rl.runs.run_dir import ERROR, numbered
from grasp_rl.utils.files import write_json

FOLDER = ".ranks"
_EVERY_S = 1.0
_STALE_S = 3.5


def beat(run_dir: Path, rank: int) -> None:
    """Touch this rank's file from now on, every second, as long as the process runs."""
    path = run_dir / FOLDER / str(rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.with_suffix(".failed")).unlink(missing_ok=True)

    def work() -> None:
        while path.parent.is_dir():
            path.touch()
            time.sleep(_EVERY_S)

    threading.Thread(target=work, name="heartbeat", daemon=True).start()


def silent(run_dir: Path) -> list[int]:
    """Ranks that gave signs of life and have stopped; takes a few seconds."""
    time.sleep(_STALE_S + _EVERY_S)
    now = time.time()
    paths = [path for path in (run_dir / FOLDER).glob("*") if numbered(path.name, "") is not None]
    return sorted(int(path.name) for path in paths if now - path.stat().st_mtime > _STALE_S)


def failed(run_dir: Path, rank: int, error: BaseException, lost: Sequence[int] = ()) -> None:
    """Leave word that this rank has failed; the first also leaves why, which the errors of the others follow from.

    Args:
        run_dir: of the run.
        rank: of this process.
        error: that ends it.
        lost: ranks that are gone without a word, see :func:`silent`.
    """
    folder = run_dir / FOLDER
    if folder.is_dir():
        if not someone_failed(run_dir) and not (run_dir / ERROR).exists():
            gone = "".join(f"rank {other} gives no sign of life, it may have been killed; " for other in lost)
            message = f"{gone}rank {rank}: {type(error).__name__}: {error}"
            write_json(run_dir / ERROR, {"type": type(error).__name__, "message": message})
        (folder / f"{rank}.failed").touch()


def someone_failed(run_dir: Path) -> bool:
    """Whether a rank has left such word."""
    return any((run_dir / FOLDER).glob("*.failed"))


def end_all(pid: int) -> None:
    """SIGKILL for a process and everything below it: a rank that is stopped answers to nothing else."""
    children: dict[int | None, list[psutil.Process]] = {}
    for process in psutil.process_iter(["ppid"]):  # None of a process that may not be looked at: another user's
        children.setdefault(process.info["ppid"], []).append(process)
    with contextlib.suppress(psutil.NoSuchProcess):
        generation, family = [psutil.Process(pid)], []
        while generation:
            family += generation
            generation = [child for parent in generation for child in children.get(parent.pid, [])]
        for process in reversed(family):
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
                process.kill()
