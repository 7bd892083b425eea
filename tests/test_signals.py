"""Signals: where an interruption ends the process, where it raises, where it waits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAD = """
import os, signal, sys
from pathlib import Path
from grasp_rl.runs import signals

signals.listen(lambda: Path("left").write_text("interrupted"))
stop = lambda *_: (os.kill(os.getpid(), signal.SIGTERM), [0 for _ in range(1000)])
"""

SET_NAME = "field = type('Field', (), {'__set_name__': stop})()\ntype('Owner', (), {'field': field})\n"
DELETED = "type('Thing', (), {'__del__': stop})()\n"
"""Where Python turns an exception into another, and where it swallows one."""


def _run(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HEAD + code], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("code", [SET_NAME, DELETED], ids=["turned_into_another", "swallowed"])
def test_a_starting_process_ends_at_once_and_says_so(tmp_path: Path, code: str) -> None:
    ended = _run(tmp_path, code + "Path('went_on').touch()")
    assert (ended.returncode, ended.stderr) == (130, "interrupted at the start\n")
    assert [path.name for path in tmp_path.iterdir()] == ["left"]


def test_a_started_process_gets_an_exception(tmp_path: Path) -> None:
    code = "signals.ready()\ntry: stop()\nexcept KeyboardInterrupt: print('heard', signals.pending())"
    ended = _run(tmp_path, code)
    assert (ended.returncode, ended.stdout) == (0, "heard True\n")
    assert not list(tmp_path.iterdir())


HELD = """
with signals.held():
    stop()
    print("whole")
try: signals.ready()
except KeyboardInterrupt: print("then", flush=True)
"""


def test_an_interruption_waits_while_it_is_held(tmp_path: Path) -> None:
    ended = _run(tmp_path, HELD)
    assert (ended.returncode, ended.stdout) == (0, "whole\nthen\n")


def test_the_second_interruption_ends_at_once(tmp_path: Path) -> None:
    ended = _run(tmp_path, HELD + "stop()\nprint('went on', flush=True)")
    assert (ended.returncode, ended.stdout) == (130, "whole\nthen\n")
    assert not list(tmp_path.iterdir())
