"""Files read back: regular, of bounded size, depth and numbers; a report notes what is broken and goes on."""

from __future__ import annotations

import json
import os
import shutil
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from grasp_rl.cli.predict_tasks import questions_of
from grasp_rl.config.errors import ConfigError
from grasp_rl.config.targets import instantiate, load_config
from grasp_rl.distributed.local import load_plain
from grasp_rl.evaluation.foreign_rows import read_answers
from grasp_rl.evaluation.predictions import read_predictions
from grasp_rl.reporting.render import write_report
from grasp_rl.reporting.types import number
from grasp_rl.runs import checkpoints
from grasp_rl.runs.run_dir import numbered, seconds_between, stages_in, state_of
from grasp_rl.tracking.metrics_log import read_rows
from grasp_rl.utils import files
from grasp_rl.utils.files import Unreadable, parse_json, read_json, read_yaml

OLD = Path(__file__).parents[1] / "data/run_of_aa9e728"
LETTERS = "abcdefghi"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in pairwise(LETTERS)
)
HOSTILE_JSON = {
    "deep": "[" * 200_000, "deep and closed": "[" * 90 + "]" * 90, "deep objects": '{"a":' * 90 + "1" + "}" * 90,
    "giant integer": "[" + "9" * 5000 + "]", "long integer": '{"a": -' + "9" * 25 + "}", "not JSON": "{", "half": '"\\ud8',
}  # fmt: skip
HOSTILE_YAML = {
    "aliases that multiply": BOMB, "an alias to itself": "a: &a {b: *a}\n", "an alias to nothing": "a: *b\n",
    "deep": "a: " + "[" * 900 + "]" * 900, "giant integer": "a: " + "9" * 4000, "in sixties": "a: 1" + ":59" * 2000,
    "a date that is none": "a: 2020-99-99\n", "too long": "a: " + "x" * 600_000, "code": "a: !!python/object/apply:os.getcwd []",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_JSON)
def test_json_is_refused_in_words(name: str, tmp_path: Path) -> None:
    with pytest.raises(Unreadable):
        parse_json(HOSTILE_JSON[name])
    (tmp_path / "status.json").write_text(HOSTILE_JSON[name])
    assert read_json(tmp_path / "status.json") is None
    assert state_of(tmp_path) is None


@pytest.mark.parametrize("name", HOSTILE_YAML)
def test_yaml_is_refused_in_words_and_at_once(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(HOSTILE_YAML[name])
    began = time.monotonic()
    with pytest.raises((Unreadable, yaml.YAMLError)):
        read_yaml(tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match=r"not a config|version=None"):
        load_config(tmp_path / "config.yaml")
    assert time.monotonic() - began < 5


def test_what_is_usual_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &a {b: 1}\nc: [*a, *a]\nd: 1e-4\ne: 2020-01-01\nf: 1234567890123456789\n")
    assert read_yaml(tmp_path / "a.yaml")["c"] == [{"b": 1}, {"b": 1}]
    assert parse_json('{"a": [1700000000123456789, "' + "9" * 50 + '"]}')["a"][0] == 1700000000123456789


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "large"])
def test_only_regular_files_of_bounded_size_are_read(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_text("{}")
        monkeypatch.setattr(files.read_text, "__defaults__", (1,))
    assert read_json(path) is None


def test_names_times_and_processes_that_are_none(tmp_path: Path) -> None:
    assert numbered("step_000012", "step_") == 12
    assert [numbered(f"step_{name}", "step_") for name in ("", "x", "-1", "\u00b2", "\u0663", "9" * 40)] == [None] * 6
    for name in ("round_\u00b2", "round_x", "round_2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "status.json").write_text("{}")
    assert stages_in(tmp_path) == [tmp_path / "round_2"]
    for junk in ("junk", 5, None, ["x"], "2026-11-25T10:00:00"):
        for pid in (2**62, "x", -1, None):
            (tmp_path / "status.json").write_text(json.dumps({"state": "running", "started": junk, "pid": pid}))
            assert state_of(tmp_path) == "interrupted"
    assert seconds_between("2026-11-25T10:00:00", "2026-11-25T10:00:05+00:00") == 5
    assert seconds_between("junk", "2026-11-25T10:00:05") is None
    (tmp_path / "status.json").write_text('{"state": ["x"]}')
    assert state_of(tmp_path) == "failed"
    assert [number({"x": value}, "x") for value in (1e308, -1e308, True, "1", None)] == [None] * 5


def test_checkpoints_that_are_none(tmp_path: Path) -> None:
    for name in ("step_x", "step_000001", "step_\u00b2"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert checkpoints.steps(tmp_path) == [1]
    best = tmp_path / "checkpoints/best.json"
    for junk in ("[", "{}", '{"step": "1", "value": 1}', '{"step": 1, "value": "x"}', "[" * 10_000):
        best.write_text(junk)
        assert checkpoints.best(tmp_path) is None
    for junk in ("[1]", '{"state.json": 5}', '{"state.json": {"bytes": "x", "sha256": 1}}', "[" * 10_000):
        (tmp_path / "checkpoints/step_000001/manifest.json").write_text(junk)
        assert checkpoints.damage(tmp_path / "checkpoints/step_000001") == "manifest.json is damaged"
    state = tmp_path / "checkpoints/step_000001/state.json"
    good = {"engine": "local", "ranks": 1, "best": [1, 0.5], "lost": {"x": 1}, "overdue": False}
    state.write_text(json.dumps(good))
    assert checkpoints.load_state(tmp_path, 1, tuple(good)) == good
    for key, junk in (
        ("ranks", "1"),
        ("best", [1]),
        ("best", ["x", 1]),
        ("lost", [1]),
        ("overdue", "x"),
        ("engine", 1),
    ):
        state.write_text(json.dumps(good | {key: junk}))
        with pytest.raises(ConfigError, match=f"state.json: {key} is missing or damaged"):
            checkpoints.load_state(tmp_path, 1, tuple(good))
    (tmp_path / "x.pt").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(ConfigError, match="is damaged"):
        load_plain(tmp_path / "x.pt", ("a",))


def test_an_abstract_component_is_refused() -> None:
    with pytest.raises(ConfigError, match="is abstract"):
        instantiate({"_target_": "grasp_rl.tracking.mirror.Mirror"}, (), "tracker")


PREDICTIONS = "eval_after/predictions.jsonl"
LINE = json.loads((OLD / PREDICTIONS).read_text().splitlines()[0])
BROKEN: dict[str, tuple[str, str]] = {
    **{
        f"{key}: {str(value)[:20]}": (PREDICTIONS, json.dumps(LINE | {key: value}))
        for key, value in (
            ("size", ["a", 2]), ("size", [0, 0]), ("size", [2**40, 2**40]), ("intersection", "x"), ("terms", [1]),
            ("predicted", {"size": [1, 1]}), ("predicted", "x"), ("prompts", [{"box": [1]}]), ("attributes", [1]),
            ("tokens", 10**12), ("sample_id", {"a": 1}), ("instances", "x"), ("iou", "x"),
        )
    },
    "nested predictions": (PREDICTIONS, "[" * 200_000),
    "started": ("status.json", '{"state": "done", "started": "junk", "ended": 5, "config_hash": {}}'),
    "git": ("environment.json", '{"command": ["x"], "git": "x", "packages": [1], "python": {"a": 1}}'),
    "git of git": ("environment.json", '{"command": "x", "overrides": {"a": 1}, "git": {"package": [1]}}'),
    "rewards": ("metrics.jsonl", '{"step": 1, "reward": 1e308}\n{"step": 2, "reward": -1e308}\n'),
    "a step": ("metrics.jsonl", '{"step": true}\n{"step": 1e5}\n[1]\n{"step": ' + "9" * 40 + "}\n"),
    "prompt": ("config.yaml", "prompt: [1]\nevaluation: x\nengine: 5\npolicy: [a]\n"),
    "protocol": ("config.yaml", "evaluation: {protocol: [1]}\ninference: x\n1: 2\n"),
    "another class for a protocol": (
        "config.yaml", "evaluation: {protocol: {_target_: grasp_rl.tracking.metrics_log.MetricsLog, run_dir: x}}\n"
    ),
    "headline": ("config.yaml", "evaluation: {protocol: {headline: 'acc@x'}}\n"),
    "leader": ("config.yaml", "evaluation: {protocol: {leader: [1], protocols: {a: 1}}}\n"),
    "keys": ("config.yaml", "policy: {1: a, b: 2, c: 2020-01-01, d: !!set {x}}\n"),
    "draws": ("config.yaml", "evaluation: {bootstrap_samples: 1000000000}\n"),
    "aliases": ("config.yaml", f"{BOMB}reward: *i\n"),
    "error": ("error.json", '{"message": [1]}'),
    "metrics": ("eval_after/metrics.json", '{"giou": "x", "samples": [1], "parse/ok": {}}'),
    "diagnosis": ("diagnosis.json", '{"lost": {"box": "x"}, "by": {"a": 5, "b": {"c": 5}}, "samples": "x"}'),
    "result": ("result.json", '{"best_step": "x"}'),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_report_notes_what_is_broken(name: str, tmp_path: Path) -> None:
    where, text = BROKEN[name]
    shutil.copytree(OLD, tmp_path / "run")
    (tmp_path / "run" / where).write_text(text)
    written = write_report(tmp_path / "run", out=tmp_path / "out")
    assert len(written["runs"]) == 1
    assert (tmp_path / "out/report.html").is_file()


def test_a_report_reads_nothing_of_a_run_with_a_link(tmp_path: Path) -> None:
    shutil.copytree(OLD, tmp_path / "run")
    (tmp_path / "secret").write_text("dear diary")
    (tmp_path / "run/log.txt").unlink()
    (tmp_path / "run/log.txt").symlink_to(tmp_path / "secret")
    (tmp_path / "run/status.json").write_text('{"state": "failed"}')
    write_report(tmp_path / "run", out=tmp_path / "out")
    report = (tmp_path / "out/report.md").read_text()
    assert "log.txt in it leads out of it" in report
    assert "dear diary" not in report


def test_predictions_name_the_line_and_the_key(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [LINE, LINE | {"tokens": -1}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(ConfigError, match="line 2: tokens='-1' cannot be"):
        read_predictions(tmp_path / "p.jsonl")
    assert read_rows(OLD / "metrics.jsonl")


def test_a_pipe_in_place_of_questions_or_answers_is_refused_before_it_blocks(tmp_path: Path) -> None:
    pipe = tmp_path / "questions.txt"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match=r"--queries .*questions\.txt: not a regular file; name a file"):
        questions_of(pipe)
    with pytest.raises(ConfigError, match=r"no answers there \(not a regular file\)"):
        read_answers(pipe)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_answers_and_questions_are_the_same_whatever_ends_their_lines(tmp_path: Path, end: str) -> None:
    answers, questions = tmp_path / "answers.jsonl", tmp_path / "questions.txt"
    answers.write_bytes(end.join(['{"id": "a", "boxes": [[0, 0, 3, 3]]}', '{"id": "b", "text": "x"}', ""]).encode())
    questions.write_bytes(end.join(["Where is water?", "", "Where is a road?"]).encode())
    assert [given.place for given in read_answers(answers).rows.values()] == [f"{answers}:1", f"{answers}:2"]
    assert questions_of(questions)[0] == ["Where is water?", "Where is a road?"]
