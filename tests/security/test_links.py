"""Links and words of a received run folder: nothing outside it is read, written or deleted; a log message is one line."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import forked
import pytest
from strangers import picture, refusal

from grasp_rl.config.errors import ConfigError
from grasp_rl.runs import checkpoints
from grasp_rl.runs.run_dir import is_locked, launcher_lock, refuse_foreign, run_lock
from grasp_rl.utils.text import OneLine

NAMES = ("log.txt", ".lock", ".launcher", "status.json", "checkpoints/step_000001/policy", "eval_after", "a/b/c")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    path = tmp_path / "outside"
    path.mkdir()
    (path / "file").write_text("mine\n")
    return path


def _run_with(tmp_path: Path, name: str, target: Path) -> Path:
    run = tmp_path / "run"
    (run / name).parent.mkdir(parents=True)
    (run / "config.yaml").write_text("version: 2\n")
    (run / name).symlink_to(target)
    return run


DOORS: tuple[Callable[[Path], object], ...] = (
    refuse_foreign,
    checkpoints.find_policy,
    lambda run: run_lock(run).__enter__(),
    lambda run: launcher_lock(run).__enter__(),
)


@pytest.mark.parametrize("door", DOORS, ids=["check", "weights", "worker", "launcher"])
@pytest.mark.parametrize("name", NAMES)
def test_a_link_that_leads_out_is_refused(
    tmp_path: Path, outside: Path, name: str, door: Callable[[Path], object]
) -> None:
    run = _run_with(tmp_path, name, outside / "file")
    with pytest.raises(ConfigError, match=rf"'{name}' in it is a link to .*outside"):
        door(run)
    assert (outside / "file").read_text() == "mine\n"


def test_a_fifo_is_refused_and_a_link_inside_is_not(tmp_path: Path) -> None:
    run = _run_with(tmp_path, "wandb/latest-run", Path("run-1"))
    refuse_foreign(run)
    os.mkfifo(run / "status.json")
    assert not is_locked(run, "status.json")
    with pytest.raises(ConfigError, match="no regular file"):
        refuse_foreign(run)


@pytest.mark.parametrize(
    "words",
    [
        ("train", "resume=run"),
        ("train", "debug=fast", "run_dir=run"),
        ("train", "debug=fast", "run_dir=run", "resume=auto"),
        ("evaluate", "init_from=run"),
        ("predict", "a.png", "--query", "where?", "--run", "run"),
        ("export", "run", "--out", "out"),
        ("rescore", "run"),
        ("diagnose", "run"),
    ],
    ids=lambda words: " ".join(words[:1] + words[-1:]),
)
def test_no_command_follows_a_link_out_of_a_run(tmp_path: Path, outside: Path, words: tuple[str, ...]) -> None:
    _run_with(tmp_path, "log.txt", Path("../outside/file"))
    picture(tmp_path / "a.png")
    ended = forked.grasp_rl(*words, cwd=tmp_path)
    said = refusal(ended)
    assert "'log.txt' in it is a link to '../outside/file'" in said
    assert (outside / "file").read_text() == "mine\n"
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.yaml", "log.txt"]


def test_a_message_of_the_log_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints/step_000001"
    folder.mkdir(parents=True)
    proof = {"bytes": 2, "sha256": "0"}
    (folder / "state.json").write_text("{}")
    (folder / "manifest.json").write_text(json.dumps({"x\ntouch canary #\x1b[2J": proof}))
    said = checkpoints.damage(folder)
    record = logging.LogRecord("name", logging.WARNING, "", 0, "%s", (said,), None)
    line = OneLine("%(levelname)s %(message)s").format(record)
    assert line == r"WARNING x\ntouch canary #\x1b[2J is missing"


def test_no_line_of_a_traceback_stands_alone() -> None:
    try:
        raise ValueError("x\ntouch canary")
    except ValueError as error:
        record = logging.LogRecord("name", logging.ERROR, "", 0, "failed", (), (type(error), error, None))
    lines = OneLine("%(message)s").format(record).splitlines()
    assert lines[0] == "failed"
    assert all(line.startswith("| ") for line in lines[1:])
    assert "| touch canary" in lines
