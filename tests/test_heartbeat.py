"""Processes of a run: who is alive, and ending one with everything below it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from grasp_rl.launch.process import failure
from grasp_rl.runs import heartbeat
from grasp_rl.runs.run_dir import ERROR, STATUS, mark_started, state_of
from grasp_rl.utils.files import write_json

FAMILY = """
import subprocess, sys
code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).wait()"
subprocess.Popen([sys.executable, "-c", code]).wait()
"""


def test_a_process_and_all_below_it_end_even_where_one_is_stopped() -> None:
    outsider = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    process = subprocess.Popen([sys.executable, "-c", FAMILY], start_new_session=True)
    try:
        top, deadline = psutil.Process(process.pid), time.monotonic() + 30
        while len(top.children(recursive=True)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        below = top.children(recursive=True)
        assert len(below) == 2
        os.kill(below[0].pid, signal.SIGSTOP)
        heartbeat.end_all(process.pid)
        assert process.wait(timeout=10) == -signal.SIGKILL
        assert psutil.wait_procs(below, timeout=10)[1] == []
        assert outsider.poll() is None
        heartbeat.end_all(process.pid)  # nothing is left, and nothing is said
    finally:
        process.kill()
        outsider.kill()
        outsider.wait()


def test_the_rank_that_fails_first_says_why(tmp_path: Path) -> None:
    heartbeat.failed(tmp_path, 0, ValueError("alone"))  # one process has no ranks
    assert not (tmp_path / ERROR).exists()
    (tmp_path / heartbeat.FOLDER).mkdir()
    heartbeat.failed(tmp_path, 1, ValueError("no mask in row 7"), [2])
    heartbeat.failed(tmp_path, 0, RuntimeError("connection closed by peer"))
    message = "rank 2 gives no sign of life, it may have been killed; rank 1: ValueError: no mask in row 7"
    assert json.loads((tmp_path / ERROR).read_text())["message"] == message
    assert failure(tmp_path).splitlines()[0] == message
    assert heartbeat.someone_failed(tmp_path)


@pytest.mark.parametrize(("how", "state"), [("alive", "running"), ("ended", "interrupted"), ("gone", "interrupted")])
def test_a_young_run_without_its_lock_is_going_on_where_its_process_lives(tmp_path: Path, how: str, state: str) -> None:
    """``ended``: a process that has ended and that its parent has not asked about yet still takes signals."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        mark_started(tmp_path, process.pid, "digest")
        if how != "alive":
            process.kill()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        if how == "gone":
            process.wait()
        assert state_of(tmp_path) == state
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("pid", [None, "1", 0, -1, 2**40])
def test_a_number_that_is_no_processes_is_nobody(tmp_path: Path, pid: object) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(tmp_path / STATUS, {"state": "running", "started": now, "pid": pid})
    assert state_of(tmp_path) == "interrupted"
