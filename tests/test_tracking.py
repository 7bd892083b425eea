"""The run's own record, and mirrors of it that stall, raise, are missing or tell secrets: training must not notice."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.image_io import write_image
from grasp_rl.interfaces import Tracker
from grasp_rl.runs.run_dir import ENVIRONMENT, STATUS
from grasp_rl.tracking.metrics_log import MetricsLog, read_rows
from grasp_rl.tracking.mirror import Mirror
from grasp_rl.tracking.null import NullTracker
from grasp_rl.tracking.tensorboard import TensorboardTracker
from grasp_rl.tracking.wandb import WandbTracker
from grasp_rl.training.hooks import RunLog
from grasp_rl.utils.files import write_json

CANARY = "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00"


def test_rows_are_appended_one_object_a_line(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "run")
    log.log(1, {"reward": 0.5, "kl": np.float64(0.25)})
    log.time(1, {"step_s": 1.23456789})
    log.log(2, {"reward": math.nan, "grad_norm": math.inf, "loss": 1})
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "reward": 0.5, "kl": 0.25},
        {"step": 2, "reward": None, "grad_norm": None, "loss": 1, "nonfinite": 2},
    ]
    assert log.nonfinite == 2
    assert read_rows(tmp_path / "run" / "timings.jsonl") == [{"step": 1, "step_s": 1.234568}]


def test_a_new_run_starts_empty_and_a_resumed_one_forgets_what_it_will_write_again(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for step in range(5):
        log.log(step, {"reward": step})
        log.time(step, {"step_s": 1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "rew')  # killed in the middle of a line
    resumed = MetricsLog(tmp_path, resume_step=2)
    resumed.log(3, {"reward": 30})
    assert [(row["step"], row["reward"]) for row in read_rows(tmp_path / "metrics.jsonl")] == [
        (0, 0), (1, 1), (2, 2), (3, 30),
    ]  # fmt: skip
    assert [row["step"] for row in read_rows(tmp_path / "timings.jsonl")] == [0, 1, 2]
    MetricsLog(tmp_path)
    assert read_rows(tmp_path / "metrics.jsonl") == []


def test_foreign_lines_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"step": 1}\nnot json\n[2]\n{"no": "step"}\n\xff\xfe\n{"step": 2}\n')
    assert [row["step"] for row in read_rows(tmp_path / "a.jsonl")] == [1, 2]
    assert read_rows(tmp_path / "gone.jsonl") == []


def test_a_full_disk_is_not_swallowed(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        log.log(1, {"reward": 1})


class Recorder(Mirror):
    """A mirror that keeps what it is given, after ``wait`` seconds a call."""

    def __init__(self, wait: float = 0.0, error: type[Exception] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.wait, self.error, self.calls, self.threads = wait, error, [], set[str]()

    def _note(self, *call: Any) -> None:
        self.threads.add(threading.current_thread().name)
        time.sleep(self.wait)
        if self.error is not None and call[0] == "log":
            raise self.error("down")
        self.calls.append(call)

    calls: list[Any]

    def _open(self, run_dir: Path, config: Any, resume: bool) -> None:
        self._note("open", run_dir, resume)

    def _log(self, metrics: Any, step: int) -> None:
        self._note("log", dict(metrics), step)

    def _images(self, name: str, paths: Any, step: int) -> None:
        self._note("images", name, step)

    def _close(self, exit_code: int) -> None:
        self._note("close", exit_code)


def test_calls_are_carried_out_in_order_by_another_thread(tmp_path: Path) -> None:
    mirror = Recorder()
    mirror.start(tmp_path, {}, resume=False)
    row = {"reward": 1.0}
    mirror.log(row, 1)
    row["reward"] = 2.0  # the caller may go on using its dict
    mirror.images("test", [], 1)
    mirror.finish(0)
    assert mirror.calls == [
        ("open", tmp_path, False), ("log", {"reward": 1.0}, 1), ("images", "test", 1), ("close", 0),
    ]  # fmt: skip
    assert mirror.threads == {"tracker-mirror"}
    mirror.finish(0)


def test_a_slow_mirror_costs_no_time_and_drops(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mirror = Recorder(wait=30, finish_s=0.3, queue_size=10)
    began = time.perf_counter()
    mirror.start(tmp_path, {}, resume=False)
    for step in range(1000):
        mirror.log({"reward": 1.0}, step)
    assert time.perf_counter() - began < 5  # of the 30 s that one call takes
    mirror.finish(0)
    assert time.perf_counter() - began < 10
    assert mirror.dropped >= 989
    assert "did not finish within 0.3 s" in caplog.text
    assert "calls dropped; metrics.jsonl has every row" in caplog.text


def test_one_warning_then_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mirror = Recorder(error=ConnectionError)
    mirror.start(tmp_path, {}, resume=False)
    for step in range(50):
        mirror.log({"reward": 1.0}, step)
        time.sleep(0.002)
    mirror.finish(0)
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "ConnectionError: down; it is off from here on" in warnings[0].getMessage()
    assert mirror.calls == [("open", tmp_path, False)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_of_the_program_shows_and_training_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mirror = Recorder(error=ZeroDivisionError)
    mirror.start(tmp_path, {}, resume=False)
    mirror.log({"reward": 1.0}, 1)
    mirror.finish(0)
    assert "an unforeseen error" in caplog.text


def test_no_secret_in_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mirror = Recorder()
    mirror._give_up(f"refused {CANARY} api_key=abcdef at https://user:pw@host")
    assert CANARY not in caplog.text
    assert "abcdef" not in caplog.text
    assert "user:pw" not in caplog.text


def stub(**init: Any) -> Any:
    """A module that stands for wandb: ``init`` does what the test says."""
    error = type("Error", (Exception,), {})
    settings = type("Settings", (), {"model_fields": {"silent": 0}, "__init__": lambda self, **kw: None})
    return SimpleNamespace(errors=SimpleNamespace(Error=error), Settings=settings, teardown=lambda: None, **init)


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_ERROR_REPORTING"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("clean_environment")
def test_a_wandb_that_stalls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "wandb", stub(init=lambda **_: threading.Event().wait()))
    tracker = WandbTracker()
    tracker._finish_s = 0.3
    began = time.perf_counter()
    tracker.start(tmp_path, {"command": "train"}, resume=False)
    for step in range(3000):
        tracker.log({"reward": 1.0}, step)
    tracker.finish(0)
    assert time.perf_counter() - began < 10
    assert "did not finish within" in caplog.text
    assert tracker.dropped >= 1999


@pytest.mark.usefixtures("clean_environment")
def test_a_wandb_that_is_down_is_recorded_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows: list[Any] = []
    given: list[Any] = []
    run = SimpleNamespace(log=rows.append, define_metric=lambda *_, **__: None, finish=lambda exit_code: None)

    def init(**options: Any) -> Any:
        given.append(options)
        if options["mode"] == "online":
            raise sys.modules["wandb"].errors.Error(f"no route, key {CANARY}")
        return run

    monkeypatch.setitem(sys.modules, "wandb", stub(init=init))
    run_dir = tmp_path / "my_sweep" / "seed=1"
    tracker = WandbTracker(tags=["a"], mode="online")
    tracker.start(run_dir, {"command": "train"}, resume=True)
    tracker.log({"reward": 0.5}, 3)
    tracker.finish(0)
    assert rows == [{"global_step": 3, "reward": 0.5}]
    assert [options["mode"] for options in given] == ["online", "offline"]
    assert given[1]["group"] == "my_sweep"
    assert given[1]["job_type"] == "train"
    assert given[1]["name"] == "seed=1"
    assert (given[0]["resume"], given[1]["resume"]) == ("allow", None)
    assert given[0]["id"] != given[1]["id"]
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert "recording offline" in warnings[0]
    assert CANARY not in warnings[0]


@pytest.mark.usefixtures("clean_environment")
def test_a_wandb_that_raises_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: Any) -> None:
        raise sys.modules["wandb"].errors.Error("gone")

    run = SimpleNamespace(log=refuse, define_metric=lambda *_, **__: None)
    monkeypatch.setitem(sys.modules, "wandb", stub(init=lambda **_: run))
    tracker = WandbTracker()
    tracker.start(tmp_path, {}, resume=False)
    for step in range(5):
        tracker.log({"reward": 1.0}, step)
    tracker.finish(0)
    assert [record.getMessage() for record in caplog.records] == [
        "wandb: Error: gone; it is off from here on, metrics.jsonl is not"
    ]


@pytest.mark.usefixtures("clean_environment")
def test_a_wandb_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = WandbTracker()
    tracker.start(tmp_path, {}, resume=False)
    tracker.log({"reward": 1.0}, 1)
    tracker.finish(0)
    assert len(caplog.records) == 1
    assert "pip install 'grasp-rl[track]'" in caplog.text


def test_a_resumed_run_keeps_its_id(tmp_path: Path) -> None:
    from grasp_rl.tracking.wandb import _run_id

    write_json(tmp_path / STATUS, {"config_hash": "c0ffee", "started": "2026-11-26T10:00:00+00:00", "pid": 7})
    first = _run_id(tmp_path, False, "online")
    assert _run_id(tmp_path, False, "online") == first == (tmp_path / "wandb_id.txt").read_text().strip()
    assert _run_id(tmp_path, False, "offline") != first  # sent later, it must not meet what the server has
    _run_id(tmp_path, False, "online")
    write_json(tmp_path / STATUS, {"config_hash": "c0ffee", "started": "2026-11-26T11:00:00+00:00", "pid": 7})
    assert _run_id(tmp_path, True, "online") == first  # resumed
    assert _run_id(tmp_path, False, "online") != first  # begun anew
    (tmp_path / "wandb_id.txt").unlink()
    apart = _run_id(tmp_path, False, "offline")
    assert _run_id(tmp_path, True, "online") != apart  # no online run joins what was recorded offline
    noted = _run_id(tmp_path, False, "online")
    _run_id(tmp_path, True, "offline")
    assert _run_id(tmp_path, True, "online") == noted  # a part recorded offline between does not hide it
    (tmp_path / "wandb_id.txt").write_text("../../somebody else's\n")
    assert re.fullmatch("[0-9a-f]{12}", _run_id(tmp_path, True, "online"))


def test_disabled_and_unknown_modes(tmp_path: Path) -> None:
    tracker = WandbTracker(mode="disabled")
    tracker.start(tmp_path / "run", {}, resume=False)
    tracker.log({"reward": 1.0}, 1)
    tracker.finish(0)
    assert tracker._queue.qsize() <= 1
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"tracker\.mode='live': must be one of online, offline, disabled"):
        WandbTracker(mode="live")


def test_the_environment_says_the_mode_where_the_config_does_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    modes = {"offline": "offline", "disabled": "disabled", "": "online", "dryrun": "offline", "run": "online"}
    for said, mode in modes.items():
        monkeypatch.setenv("WANDB_MODE", said)
        assert WandbTracker().mode == mode
        assert WandbTracker(mode="online").mode == "online"
    assert not caplog.text
    monkeypatch.setenv("WANDB_MODE", "shared")
    assert WandbTracker().mode == "offline"
    assert "WANDB_MODE='shared': is none of online, offline, disabled; recording offline" in caplog.text


OFFLINE = """
import sys
from pathlib import Path
from grasp_rl.tracking.wandb import WandbTracker
from grasp_rl.training.hooks import RunLog
run, overlays = Path(sys.argv[1]), sorted(Path(sys.argv[2]).glob("*.png"))
tracker = WandbTracker(mode="offline", tags=["t"])
tracker.start(run, {"command": "train", "seed": 3}, resume=False)
for step in range(1, 21):
    tracker.log({"reward": step / 20, "kl": float("nan")}, step)
tracker.images("test_before", overlays, 0)
tracker.artifact("evaluation", [overlays[0].parents[1] / "predictions.jsonl"], {"step": 0, "giou": float("nan")})
tracker._finish_s = 60
tracker.finish(0)
assert not tracker._quiet and not tracker.dropped
"""


def test_offline_for_real_stays_in_the_run_folder_and_tells_no_secret(tmp_path: Path) -> None:
    run, home, evaluation = tmp_path / "sweep" / "run", tmp_path / "home", tmp_path / "eval_before"
    for folder in (run, home, evaluation / "overlays"):
        folder.mkdir(parents=True)
    write_image(evaluation / "overlays" / "000_a.png", np.zeros((20, 20, 3), np.uint8))
    record = {"sample_id": "a", "query": "where?", "text": "<answer>", "status": "ok", "iou": 0.5, "reward": 1.0}
    (evaluation / "predictions.jsonl").write_text(json.dumps(record) + "\n")
    write_json(run / ENVIRONMENT, {"command": ["grasp-rl", "train"], "git": {"package": {"commit": "abc"}}})
    secrets = {"WANDB_API_KEY": CANARY, "HF_TOKEN": f"hf_{CANARY}"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(run), str(evaluation / "overlays")],
        env={**kept, **secrets, "HOME": str(home), "TMPDIR": str(tmp_path / "home")},
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert CANARY not in done.stdout + done.stderr
    written = [path for path in run.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" and path.stat().st_size > 1000 for path in written)
    assert any("completions" in path.name and path.suffix == ".json" for path in written)
    staged = (evaluation / "predictions.jsonl").read_bytes()
    assert any(path.read_bytes() == staged for path in written)
    (recorded,) = (path.read_bytes() for path in written if path.suffix == ".wandb")
    assert hashlib.sha256(staged).hexdigest().encode() in recorded
    assert b"evaluation-" + (run / "wandb_id.txt").read_bytes().split()[0] in recorded
    assert [path for path in home.rglob("*") if path.is_file()] == []
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path


PART = """
import sys
from pathlib import Path
from grasp_rl.tracking.wandb import WandbTracker
run, first = Path(sys.argv[1]), int(sys.argv[2])
tracker = WandbTracker(mode="offline")
tracker._finish_s = 60
tracker.start(run, {"command": "train"}, resume=first > 1)
for step in range(first, first + 3):
    tracker.log({"reward": float(step)}, step)
tracker.finish(0)
assert not tracker._quiet
"""


def test_parts_of_an_offline_run_would_be_sent_in_their_order(tmp_path: Path) -> None:
    """Stopped and gone on with: two parts, whole each, that `wandb sync` takes one after the other."""
    pytest.importorskip("wandb")
    run = tmp_path / "run"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    for first, started in ((1, "10:00:00"), (4, "11:00:00")):
        write_json(run / STATUS, {"config_hash": "c0ffee", "started": f"2026-11-26T{started}+00:00", "pid": first})
        subprocess.run([sys.executable, "-c", PART, str(run), str(first)], env=kept, check=True, timeout=100)
        time.sleep(1)  # wandb names folders by the second
    parts = sorted(run.glob("wandb/offline-run-*"))
    assert len({part.name.rpartition("-")[2] for part in parts}) == len(parts) == 2
    command = [sys.executable, "-m", "wandb", "sync", "--dry-run", *map(str, parts)]
    done = subprocess.run(command, cwd=run, env=kept, capture_output=True, text=True, check=True, timeout=100)
    listed = [line for line in (done.stdout + done.stderr).splitlines() if line.endswith(".wandb")]
    assert [part.name in line for part, line in zip(parts, listed, strict=True)] == [True, True]


ONLINE = """
import logging, sys, time
from pathlib import Path
from grasp_rl.tracking.wandb import WandbTracker
from grasp_rl.training.hooks import RunLog
logging.basicConfig(level=logging.INFO)
tracker = WandbTracker()
tracker._finish_s = 4
tracker.start(Path(sys.argv[1]), {"command": "train"}, resume=False)
for step in range(1, 4):
    began = time.perf_counter()
    tracker.log({"reward": step}, step)
    assert time.perf_counter() - began < 1.0
tracker.finish(0)
"""


def test_a_server_that_never_answers_does_not_hold_the_process(tmp_path: Path) -> None:
    """The real wandb against a server that takes connections and says nothing: left alone, it would wait a minute."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", ONLINE, str(tmp_path / "run")],
            env={**kept, "WANDB_API_KEY": CANARY, "WANDB_BASE_URL": address, "HOME": str(tmp_path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - began < 45, "4 s of patience, and the imports of a busy machine"
    assert done.stderr.count("WARNING") == 1
    assert "did not finish within 4 s" in done.stderr
    assert "Traceback" not in done.stderr
    assert CANARY not in done.stdout + done.stderr


def test_tensorboard_files_read_back(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    image = tmp_path / "000_a.png"
    write_image(image, np.full((8, 8, 3), 200, np.uint8))
    for resume, steps in ((False, (1, 2, 3)), (True, (3, 4))):
        tracker = TensorboardTracker()
        tracker._finish_s = 60
        tracker.start(tmp_path, {}, resume=resume)
        for step in steps:
            tracker.log({"reward": step + 10.0 * resume, "kl": math.nan}, step)
        tracker.images("test", [image], steps[-1])
        tracker.finish(0)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward")] == [(1, 1), (2, 2), (3, 13), (4, 14)]
    assert events.Tags()["scalars"] == ["reward"]
    assert "test/000_a" in events.Tags()["images"]


def test_every_tracker_has_the_verbs(tmp_path: Path) -> None:
    trackers: list[Tracker] = [NullTracker(), WandbTracker(mode="disabled"), TensorboardTracker()]
    for tracker in trackers:
        tracker.start(tmp_path, {}, resume=False)
        tracker.log({"reward": 1.0}, 1)
        tracker.images("test", [], 1)
        tracker.artifact("checkpoint", [], {"step": 1})
        tracker.finish(0)


def test_names_that_wandb_refuses_are_mended_and_said(tmp_path: Path) -> None:
    long = "x" * 65
    tracker = WandbTracker(project="my/lab: a#b", mode="offline", tags=["ok", long, "", "ok"], group="g" * 200)
    assert tracker.project == "my-lab- a-b"
    assert tracker.tags[0] == "ok"
    assert [len(tag) for tag in tracker.tags] == [2, 64]
    assert tracker.group is not None
    assert len(tracker.group) == 128
    assert [note.partition(" the ")[2].partition(" ")[0] for note in tracker.notes] == ["project", "tag", "group"]
    assert WandbTracker(tags=["y" * 70, "y" * 71]).tags[0] != WandbTracker(tags=["y" * 71]).tags[0]
    pytest.importorskip("wandb")
    run_dir = tmp_path / ("run" * 50)
    tracker.start(run_dir, {"command": "train"}, resume=False)
    tracker.log({"reward": 1.0}, 1)
    tracker.finish(0)
    assert tracker.notes[3:] == [
        f"wandb: does not take the name {run_dir.name!r}; the run is tracked under "
        + tracker.notes[3].rpartition("under ")[2]
    ]
    assert list(run_dir.glob("wandb/offline-*"))


def test_a_tracker_that_gives_up_says_so_on_the_terminal(tmp_path: Path) -> None:
    log = RunLog(tmp_path, WandbTracker(project="a/b", mode="disabled"), steps=2, first_step=0, is_main=True)
    log.start({})
    notes = json.loads((tmp_path / "progress.json").read_text())["notes"]
    assert notes == ["wandb: does not take the project 'a/b'; the run is tracked under 'a-b'"]
