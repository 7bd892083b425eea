"""Run folders through the real door: how runs end, what is refused, what a sweep does when its jobs fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import forked
import pytest
from rich.console import Console

from grasp_rl.config.errors import ConfigError
from grasp_rl.launch import process
from grasp_rl.launch.ended import how_to_go_on
from grasp_rl.runs import environment
from grasp_rl.runs.progress import ProgressWatcher, ProgressWriter, duration
from grasp_rl.runs.run_dir import PROGRESS, STATUS, config_hash, is_locked, mark_ended, mark_started, state_of
from grasp_rl.utils.files import read_json, write_json, write_text

Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]

KINDS = {"config": 2, "os": 1, "bug": 1, "kill": 137}


def _status(run_dir: Path) -> dict[str, Any]:
    status = read_json(run_dir / STATUS)
    assert status is not None
    return status


def _until(true: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("trouble", KINDS)
def test_how_a_run_fails(door: Run, lab: Path, outside: list[str], trouble: str) -> None:
    ended = door("train", *outside, f"policy.trouble={trouble}", "run_dir=r")
    assert ended.returncode == KINDS[trouble]
    status = _status(lab / "r")
    assert (status["state"], status["exit_code"]) == ("failed", KINDS[trouble])
    said = {
        "config": "policy.trouble='config': must be [red] or else\nlog: r/log.txt\n",
        "os": "weights.safetensors: No such file or directory\nlog: r/log.txt\n",
        "kill": "killed by signal 9, as the system does when memory runs out\nlog: r/log.txt\n",
    }
    if trouble == "bug":
        assert ended.stderr.endswith("RuntimeError: a bug in the policy\nlog: r/log.txt\n")
        assert len(ended.stderr.splitlines()) <= 16
    else:
        assert ended.stderr == said[trouble]
    assert "Traceback" in (lab / "r/log.txt").read_text() or trouble in ("config", "kill")


def test_what_a_run_folder_holds(
    forked_door: Run, lab: Path, outside: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAB_SECRET", "s3cr3t-canary")
    refused = forked_door("train", *outside, "policy.trouble=config", "run_dir=r", "name=hf_abcdefghijklmnop")
    assert refused.returncode == 2  # a token would stand in config.yaml
    assert "hf_abcdefghijklmnop" not in refused.stderr
    assert not (lab / "r").exists()
    forked_door("train", *outside, "policy.trouble=config", "run_dir=r")
    config = (lab / "r/config.yaml").read_text()
    assert "run_dir: r\n" in config
    assert "${" not in config
    about = json.loads((lab / "r/environment.json").read_text())
    assert about["packages"]["torch"]
    assert set(about["git"]) == {"package", "working_directory"}
    assert about["command"][:2] == ["grasp-rl", "train"]
    for path in (lab / "r").iterdir():
        assert b"s3cr3t-canary" not in path.read_bytes()


def test_another_commit_is_told(tmp_path: Path) -> None:
    write_json(tmp_path / "environment.json", {"git": {"package": {"commit": "0123456789abcdef"}}})
    here = environment.git(Path(process.__file__).parent)
    told = process.other_commit(tmp_path)
    assert told == (
        f"{tmp_path.name}: was run at commit 01234567, the code is now at {here['commit'][:8]}" if here else None
    )
    write_json(tmp_path / "environment.json", {"git": {"package": here}})
    assert process.other_commit(tmp_path) is None


def test_a_folder_that_holds_a_run_is_refused(forked_door: Run, lab: Path, outside: list[str]) -> None:
    words = ["train", *outside, "policy.trouble=config", "run_dir=r"]
    forked_door(*words)
    before = {path: path.stat().st_mtime_ns for path in (lab / "r").iterdir()}
    ended = forked_door(*words)
    assert ended.returncode == 2
    assert "run_dir='r': holds a run (failed); go on with resume=r" in ended.stderr
    assert {path: path.stat().st_mtime_ns for path in (lab / "r").iterdir()} == before


def test_going_on_with_a_run(forked_door: Run, lab: Path, outside: list[str]) -> None:
    forked_door("train", *outside, "policy.trouble=config", "run_dir=r", "algorithm.steps=7")
    trust = "trusted_modules=[outside_lab]"
    refused = {
        "trusted_modules: the run trusts ['outside_lab']": ["resume=r"],
        "algorithm.group_size: cannot change": ["resume=r", trust, "algorithm.group_size=4"],
        "tracker: cannot change": ["resume=r", trust, "tracker=none"],
        "evaluation.evry: no such key; did you mean evaluation.every?": ["resume=r", trust, "evaluation.evry=4"],
        "algorithm.steps=0: must be >= 1": ["resume=r", trust, "algorithm.steps=0"],
        "one run": ["-m", "resume=r", trust],
    }
    for said, words in refused.items():
        ended = forked_door("train", *words)
        assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
        assert said in ended.stderr
    assert "goes with" in forked_door("sft", "resume=r", trust).stderr
    assert (
        "a new run takes its weights by init_from=r"
        in forked_door("train", "resume=r", trust, "algorithm.group_size=4").stderr
    )
    ended = forked_door("train", "resume=r", trust, "algorithm.steps=9", "evaluation.every=2")
    assert ended.returncode == 2
    assert "learning rate" not in ended.stdout  # the schedule is constant
    config = (lab / "r/config.yaml").read_text()
    assert "steps: 9\n" in config
    assert "resume: r\n" in config
    assert "steps: 7\n" in (lab / "r/earlier/1/config.yaml").read_text()


def test_going_on_over_more_steps_says_that_a_schedule_is_stretched(
    forked_door: Run, lab: Path, outside: list[str]
) -> None:
    words = ["policy.trouble=config", "run_dir=r", "algorithm.steps=7", "optimizer.schedule=linear"]
    forked_door("train", *outside, *words)
    ended = forked_door("train", "resume=r", "trusted_modules=[outside_lab]", "algorithm.steps=9")
    assert "optimizer.schedule=linear runs over algorithm.steps: over 9 in place of 7 steps, so the" in ended.stdout
    again = forked_door("train", "resume=r", "trusted_modules=[outside_lab]")
    assert "optimizer.schedule" not in again.stdout


@pytest.fixture
def start(lab: Path, script: Path, quiet: dict[str, str]) -> Start:
    """Start the console script in the lab without waiting for it."""

    def begin(*words: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen([script, *words], cwd=lab, env=quiet, stdout=pipe, stderr=pipe, text=True)

    return begin


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption(forked_door: Run, start: Start, lab: Path, outside: list[str], number: int) -> None:
    process = start("train", *outside, "policy.trouble=sleep", "run_dir=r")
    _until(lambda: is_locked(lab / "r"))
    second = forked_door("train", "resume=r", "trusted_modules=[outside_lab]")
    assert "found a run that is still going on" in second.stderr
    third = forked.worker("r/config.yaml", "--trust", "outside_lab", cwd=lab)
    assert third.returncode == 2
    assert "a run is going on there" in third.stderr
    process.send_signal(number)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "nothing is saved yet; to go on: grasp-rl train resume=r\n" in out
    assert _status(lab / "r")["state"] == "interrupted"
    assert not (lab / "r/.stop").exists()


def test_what_an_interrupted_run_has_saved(tmp_path: Path) -> None:
    for step in (7, 12):
        (tmp_path / f"a run/checkpoints/step_{step:06d}").mkdir(parents=True)
    (tmp_path / "a run/checkpoints/step_000013.tmp").mkdir()
    line = how_to_go_on("train", tmp_path / "a run")
    assert line == f"saved at step 12; to go on: grasp-rl train resume='{tmp_path}/a run'"


def test_a_run_that_is_done_is_not_tested_again(forked_door: Run, lab: Path, outside: list[str]) -> None:
    trust = "trusted_modules=[outside_lab]"
    forked_door("train", *outside, "policy.trouble=config", "run_dir=r")
    mark_ended(lab / "r", "done", 0)
    before = {path: path.stat().st_mtime_ns for path in (lab / "r").iterdir()}
    ended = forked_door("train", "resume=r", trust)
    assert (ended.returncode, ended.stdout) == (0, "r: done before; to go on with more steps: algorithm.steps=N\n")
    assert {path: path.stat().st_mtime_ns for path in (lab / "r").iterdir()} == before
    other = forked_door("train", *outside, "policy.trouble=config", "run_dir=r", "resume=auto", "algorithm.steps=3")
    assert other.returncode == 2
    assert "run_dir='r': holds a run with another config (done), where algorithm.steps=200, not 3; " in other.stderr
    assert "go on with it as it is by resume=r" in other.stderr


def test_keys_of_another_command_are_said(forked_door: Run, outside: list[str]) -> None:
    words = ["policy.trouble=config", "run_dir=r", "fit.steps=2", "sft.log_every=3"]
    ended = forked_door("train", *outside, *words)
    assert "fit.steps: goes with grasp-rl fit-segmenter; train takes no notice of it" in ended.stdout
    assert "sft.log_every: goes with grasp-rl sft; train takes no notice of it" in ended.stdout
    again = forked_door("train", *outside, "policy.trouble=config", "run_dir=s", "sft.log_every=3", "regime=sft_grpo")
    assert "takes no notice" not in again.stdout


def test_a_vanished_run_counts_as_interrupted(tmp_path: Path) -> None:
    mark_started(tmp_path, 2**22 + 1, "x")
    assert state_of(tmp_path) == "interrupted"
    mark_started(tmp_path, os.getpid(), "x")
    assert state_of(tmp_path) == "running"
    mark_ended(tmp_path, "done", 0)
    assert state_of(tmp_path) == "done"
    assert state_of(tmp_path / "nowhere") is None


@pytest.mark.parametrize("launcher", ["serial", "joblib"])
def test_failed_jobs_take_no_other_with_them(
    door: Run, forked_door: Run, lab: Path, outside: list[str], launcher: str
) -> None:
    words = ["train", "-m", *outside, f"launcher={launcher}", "policy.trouble=config,bug,kill", "hydra.sweep.dir=s"]
    ended = (door if launcher == "joblib" else forked_door)(*words, "--json")
    assert ended.returncode == 1
    answer = json.loads(ended.stdout)
    assert answer["sweep_dir"] == "s"
    found = {Path(ended["run_dir"]).name.rpartition("-")[0]: ended for ended in answer["jobs"]}
    assert {name: ended["exit_code"] for name, ended in found.items()} == {
        "policy.trouble=config": 2,
        "policy.trouble=bug": 1,
        "policy.trouble=kill": 137,
    }
    assert found["policy.trouble=bug"]["error"]["message"] == "RuntimeError: a bug in the policy"
    assert "0 of 3 done, 3 failed" in ended.stderr
    assert "0 of 3 done" in ended.stderr
    assert ": policy.trouble='config': must be [red] or else\n" in ended.stderr


@pytest.mark.parametrize("launcher", ["serial", "joblib"])
def test_an_interrupted_sweep_starts_nothing_more(start: Start, lab: Path, outside: list[str], launcher: str) -> None:
    words = [*outside, f"launcher={launcher}", "policy.trouble=sleep", "seed=1,2,3,4", "hydra.sweep.dir=s"]
    process = start("train", "-m", *words)
    wanted = 2 if launcher == "joblib" else 1
    _until(lambda: sum(is_locked(path) for path in (lab / "s").glob("seed=*")) == wanted)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    states = [state_of(next(iter((lab / "s").glob(f"seed={seed}-*")), lab / "none")) for seed in (1, 2, 3, 4)]
    assert states.count("interrupted") == wanted
    assert states.count(None) == 4 - wanted
    assert f"{4 - wanted} not started" in out


def test_a_sweep_keeps_what_is_done(forked_door: Run, lab: Path, outside: list[str]) -> None:
    words = ["train", "-m", *outside, "policy.trouble=config", "seed=1,2", "hydra.sweep.dir=s"]
    forked_door(*words)
    first = next((lab / "s").glob("seed=1-*"))
    mark_ended(first, "done", 0)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in first.iterdir()}
    ended = forked_door(*words)
    assert "2 jobs in s, 1 of them done before" in ended.stdout
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in first.iterdir()} == before
    assert (next((lab / "s").glob("seed=2-*")) / "earlier/1/status.json").exists()
    other = forked_door(*words, "algorithm.steps=3")
    assert other.returncode == 1
    assert len(list((lab / "s").glob("seed=*"))) == 4  # other configs have other folders
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in first.iterdir()} == before


def test_claims(tmp_path: Path) -> None:
    wanted = process.Job(run_dir=tmp_path / "r", config={"command": "train", "seed": 1})
    assert process.claim(wanted, again=False) == "start"
    mark_started(wanted.run_dir, 1, config_hash(wanted.config))
    mark_ended(wanted.run_dir, "failed", 1)
    assert process.claim(wanted, again=True) == "resume"
    sft = process.Job(run_dir=wanted.run_dir, config={"command": "train", "seed": 2})
    with pytest.raises(ConfigError, match="another config"):
        process.claim(sft, again=True)


def test_json_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": float("nan"), "b": (1, 2.5), "c": Path("x"), "d": {1: None}})
    assert json.loads(path.read_text()) == {"a": None, "b": [1, 2.5], "c": "x", "d": {"1": None}}
    with pytest.raises(TypeError):
        write_text(path, None)  # type: ignore[arg-type]
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
    path.write_text('{"torn": ')
    assert read_json(path) is None


def test_hash_of_what_decides_the_numbers() -> None:
    base = {"seed": 0, "run_dir": "a", "name": "x", "resume": None, "tracker": {"_target_": "t"}}
    assert config_hash(base) == config_hash(base | {"run_dir": "b", "name": "y", "resume": "b", "tracker": {}})
    assert config_hash(base) != config_hash(base | {"seed": 1})


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["+tracker.api_key=abc"], ["+tracker.api_key=***"]),
        (["+tracker.token=abc", "rollout.max_new_tokens=5"], ["+tracker.token=***", "rollout.max_new_tokens=5"]),
        (["--password", "abc", "seed=1"], ["--password", "***", "seed=1"]),
        (["x=hf_abcdefghij"], ["x=***"]),
        (["data.path=https://me:pw@host/x"], ["data.path=https://***@host/x"]),
        (["prompt.box_key=bbox"], ["prompt.box_key=bbox"]),
        (["x=" + "0123456789" * 4], ["x=***"]),
    ],
)
def test_secrets_are_masked(words: list[str], kept: list[str]) -> None:
    assert environment.masked(words) == kept


def test_progress_is_written_and_shown(tmp_path: Path) -> None:
    run_dir = tmp_path / "seed=1"
    writer = ProgressWriter(run_dir, total_steps=10, first_step=4, interval_s=60)
    writer.update("train", 5, reward=0.25)
    writer.update("train", 6, reward=0.5)
    assert (read_json(run_dir / PROGRESS) or {})["step"] == 5
    writer.update("validate", 6, giou=0.125)
    state = read_json(run_dir / PROGRESS) or {}
    shown = {"phase", "step", "total_steps", "reward", "giou", "before", "after"}
    assert set(state) == shown | {"eta_s", "message", "notes"}
    assert (state["step"], state["total_steps"], state["giou"]) == (6, 10, 0.125)
    assert state["reward"] == pytest.approx((0.9 * 0.25 + 0.5) / 1.9)  # smoothed
    writer.update("test after", 6, test=("after", 0.25))
    writer.update("done", 10)
    assert (read_json(run_dir / PROGRESS) or {})["eta_s"] == 0
    out = StringIO()
    watcher = ProgressWatcher(Console(file=out, width=60), lambda: [run_dir])
    watcher.print_moved()
    watcher.print_moved()
    assert out.getvalue() == "seed=1  done 10/10  reward 0.382  val gIoU 0.125  test - → 0.250  left 0s\n"
    Console(file=(table := StringIO()), width=120).print(watcher.table())
    assert "10/10   0.382     0.125            - → 0.250    0s" in table.getvalue()


def test_progress_lines_come_by_themselves(tmp_path: Path) -> None:
    out = StringIO()
    with ProgressWatcher(Console(file=out), lambda: [tmp_path], plain_every_s=0.05):
        ProgressWriter(tmp_path, 3).update("train", 1)
        _until(lambda: "train 1/3" in out.getvalue())
    assert out.getvalue().count("train 1/3") == 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (0.4, "0s"), (59.6, "1m00s"), (200, "3m20s"), (7500, "2h05m")]
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
