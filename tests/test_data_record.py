"""Runs know which files they were made of: a change is told, and nothing that compares other answers stands."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from grasp_rl.config.schema import RunConfig
from grasp_rl.data.readers.jsonl import JsonlSource
from grasp_rl.launch import process
from grasp_rl.launch.process import Job
from grasp_rl.reporting.load import read_study
from grasp_rl.runs import data_record
from grasp_rl.runs.run_dir import config_hash, mark_ended, mark_started


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "annotations.jsonl", tmp_path / "a.png"]
    for path in paths:
        path.write_text(path.name)
    return paths


def _aged(path: Path, text: str) -> None:
    """Another content of the same length, and another time of change."""
    size = path.stat().st_size
    path.write_text(text.ljust(size)[:size])
    os.utime(path, ns=(1, 1))


def test_a_change_of_content_is_told_and_a_touch_is_not(tmp_path: Path, files: list[Path]) -> None:
    run = tmp_path / "run"
    data_record.write(run, files)
    assert data_record.changed(run) == []
    os.utime(files[1], ns=(1, 1))
    assert data_record.sentence(run) is None
    _aged(files[1], "other")
    assert data_record.changed(run) == [files[1]]
    files[0].write_text("longer than before")
    assert data_record.sentence(run) == "the data changed since: annotations.jsonl and 1 more files"
    data_record.write(run, files[:1])
    assert data_record.changed(run) == [files[1]]  # recorded anew alone


def test_what_is_not_there_says_nothing(tmp_path: Path, files: list[Path]) -> None:
    run = tmp_path / "run"
    data_record.write(run, files)
    for path in files:
        path.unlink()
    assert data_record.changed(run) == []
    assert data_record.changed(tmp_path / "nowhere") == []
    os.mkfifo(files[0])  # never opened
    assert data_record.changed(run) == []


@pytest.mark.parametrize("text", ["[]", '{"files": 3}', '{"files": {"a": 4}}', "not JSON"])
def test_a_damaged_record_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / data_record.DATA).write_text(text)
    assert data_record.changed(tmp_path) == []


def test_a_reader_names_its_files(tmp_path: Path) -> None:
    row = {"id": "1", "image": "a.png", "query": "q", "split": "test", "mask": "m.png"}
    (tmp_path / "annotations.jsonl").write_text("".join(json.dumps(row | {"id": str(n)}) + "\n" for n in range(3)))
    split = JsonlSource(str(tmp_path)).split("test")
    assert split.files(1) == [tmp_path / name for name in ("annotations.jsonl", "a.png", "m.png")]
    assert len(split.files()) == 7


def test_a_finished_job_of_a_sweep_runs_anew_on_other_data(tmp_path: Path, files: list[Path]) -> None:
    run, config = tmp_path / "run", asdict(RunConfig())
    mark_started(run, os.getpid(), config_hash(config))
    mark_ended(run, "done", 0)
    data_record.write(run, files)
    job = Job(run_dir=run, config=config)
    assert process.claim(job, again=True) == "done"
    files[0].write_text("other answers, other questions")
    assert process.claim(job, again=True) == "start"


def test_a_job_is_found_by_what_it_runs_whatever_its_folder_is_called(tmp_path: Path) -> None:
    config = asdict(RunConfig())
    digest = config_hash(config)
    known = tmp_path / f"seed=0-{digest[:8]}"
    wanted = Job(run_dir=tmp_path / f"seed=0,reward=grasp-{digest[:8]}", config=config)
    assert process.folder_of(wanted) == wanted.run_dir
    mark_started(known, os.getpid(), digest)
    assert process.folder_of(wanted) == known
    mark_started(known, os.getpid(), digest[:8] + "another")
    assert process.folder_of(wanted) == wanted.run_dir


def test_a_report_tells_that_a_runs_data_changed(tmp_path: Path, files: list[Path]) -> None:
    run = tmp_path / "run"
    mark_started(run, os.getpid(), "x")
    mark_ended(run, "done", 0)
    (run / "config.yaml").write_text("command: evaluate\n")
    data_record.write(run, files)
    assert not [note for note in read_study(run)[0].notes if "changed" in note]
    files[0].write_text("other answers, other questions")
    notes = [note for note in read_study(run)[0].notes if "changed" in note]
    assert notes == [
        "the data changed since: annotations.jsonl; its scores are of other answers than a run now would have"
    ]


def test_a_report_shows_a_run_once(tmp_path: Path) -> None:
    for name, state, digest in (("a", "failed", "x"), ("b", "done", "x"), ("c", "done", "y"), ("d", "done", "x")):
        mark_started(tmp_path / name, os.getpid(), digest)
        mark_ended(tmp_path / name, state, 0)  # type: ignore[arg-type]
        (tmp_path / name / "config.yaml").write_text("command: evaluate\n")
    (tmp_path / "e").mkdir()
    (tmp_path / "e/config.yaml").write_text("command: evaluate\n")  # without a status: nobody knows what it is
    runs = read_study(tmp_path)
    assert [run.folder.name for run in runs] == ["b", "c", "e"]
    assert [note for note in runs[0].notes if "same run" in note] == [
        "a is the same run, left out",
        "d is the same run, left out",
    ]
