"""The real pipeline through the real door: train, go on, evaluate, sweep, sweep again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import pytest

RANDOM = "policy.weights=random"
"""No warm start: this is about the door."""
ADAPTER = "policy.lora_rank=2"
MEADOW = Path(__file__).parents[1] / "data/aerial/images/meadow.jpg"


def _door(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the console script in ``folder``."""
    command = [str(Path(sys.executable).parent / "grasp-rl"), *words]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "TERM": "dumb"}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=600, check=False)


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Where the run ``r`` lies, and how the console script ended."""
    folder = tmp_path_factory.mktemp("door")
    words = ["debug=fast", RANDOM, ADAPTER, "tracker=tensorboard", "run_dir=r", "--json"]
    return folder, _door(folder, "train", *words)


def test_train_go_on_evaluate(trained: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    folder, ended = trained
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert result == _read(folder / "r/result.json")
    assert (result["command"], result["run_dir"]) == ("train", "r")
    assert _read(folder / "r/status.json")["state"] == "done"
    assert _read(folder / "r/progress.json")["step"] == 2
    assert "done after" in ended.stderr

    shutil.copytree(folder / "r", tmp_path / "r")
    door = forked.door(tmp_path)
    ended = door("train", "resume=r", "algorithm.steps=3")
    assert ended.returncode == 0, ended.stderr
    assert _read(tmp_path / "r/progress.json")["step"] == 3
    assert "giou" in ended.stdout
    assert (tmp_path / "r/earlier/1/config.yaml").exists()

    ended = door("evaluate", "init_from=r", "debug=fast", RANDOM, ADAPTER, "run_dir=e", "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["command"] == "evaluate"


def test_no_warning_of_a_library_reaches_the_terminal_or_the_log(
    trained: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    folder, ended = trained
    run = str(folder / "r")
    lines = [
        ["predict", str(MEADOW), "--query", "Where is the road?", "--run", run],
        ["report", run],
        ["export", run, "--out", "m", "--merge"],
    ]
    for words, said in [(["train"], ended), *((words, _door(tmp_path, *words)) for words in lines)]:
        assert said.returncode == 0, said.stderr
        assert "Warning" not in said.stderr + said.stdout, words[0]
    assert "Warning" not in (folder / "r/log.txt").read_text()


def test_a_sweep_started_again_does_what_is_missing(tmp_path: Path) -> None:
    door = forked.door(tmp_path)
    (tmp_path / "nowhere").mkdir()
    (tmp_path / "nowhere/config.json").write_text("{}")  # without weights, which a worker finds out
    words = ["train", "-m", "debug=fast", RANDOM, "evaluation.every=0", "init_from=null,nowhere", "hydra.sweep.dir=s"]
    ended = door(*words, "--json")
    assert ended.returncode == 1, ended.stderr
    jobs = {Path(job["run_dir"]).name.rpartition("-")[0]: job for job in json.loads(ended.stdout)["jobs"]}
    assert {name: job["state"] for name, job in jobs.items()} == {
        "init_from=null": "done",
        "init_from=nowhere": "failed",
    }
    assert "nowhere" in jobs["init_from=nowhere"]["error"]["message"]
    done = next((tmp_path / "s").glob("init_from=null-*"))
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in done.rglob("*")}
    ended = door(*words)
    assert ended.returncode == 1
    assert "2 jobs in s, 1 of them done before" in ended.stdout
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in done.rglob("*")} == before
