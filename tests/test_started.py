"""A run with relative paths, read again from another folder: they mean what they meant to the run, or it is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import CONFIG_VERSION, RunConfig
from grasp_rl.config.targets import load_config
from grasp_rl.evaluation import diagnose, evaluate, stored
from grasp_rl.launch import compose, worker
from grasp_rl.rehearsal import layouts
from grasp_rl.runs import data_record, environment, started
from grasp_rl.utils.files import write_json, write_text

WORDS = ["policy=tiny", "segmenter=box_fill", "debug=fast", "evaluation.max_new_tokens=4"]


def composed(run_dir: Path, *words: str) -> RunConfig:
    with compose.hydra("evaluate") as engine:
        job = compose.single(engine, [f"run_dir={run_dir}", *words], ())
    write_text(run_dir / "config.yaml", yaml.safe_dump(job.config))
    return load_config(run_dir / "config.yaml")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An evaluation that was started in ``start`` with ``data.root=data``; the test goes on in ``elsewhere``."""
    layouts.folder(tmp_path / "start/data")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "start")
    config = composed(tmp_path / "run", "command=evaluate", *WORDS, "data=folder", "data.root=data")
    evaluate.run(config, worker.build(config))
    write_json(tmp_path / "run/environment.json", environment.environment(["grasp-rl"]))
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "run"


def test_data_are_found_from_where_the_run_was_started(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, again = run.parent / "start", run.parent / "again"
    config = composed(again, "command=rescore", f"predictions={run}", "debug=fast")
    assert config.data["root"] == str(start / "data")
    stored.run(config, worker.build(config))
    one, other = (folder / "eval/predictions.jsonl" for folder in (run, again))
    assert one.read_bytes() == other.read_bytes()
    config = composed(run.parent / "why", "command=diagnose", f"predictions={run}", "debug=fast")
    diagnose.run(config, worker.build(config))
    assert (run / diagnose.DIAGNOSIS).is_file()  # it is still the run's own data
    monkeypatch.chdir(start)
    config = composed(again, "command=rescore", f"predictions={run}", "debug=fast")
    assert config.data["root"] == "data"


def test_a_run_that_does_not_say_where_it_was_started(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(run / "environment.json", {"command": ["grasp-rl"]})
    words = ["command=rescore", f"predictions={run}", "debug=fast"]
    layouts.folder(Path("data"))  # of the same name, and another
    with pytest.raises(ConfigError) as refused:
        composed(run.parent / "again", *words)
    here, start = run.parent / "elsewhere/data", run.parent / "start/data"
    assert str(refused.value).startswith(f"data.root='data': from here that is {here}, and the run {run} read {start}/")
    named = composed(run.parent / "again", *words, "data=folder", "data.root=data")
    assert named.data["root"] == "data"
    monkeypatch.chdir(run.parent / "start")
    assert composed(run.parent / "again", *words).data["root"] == "data"


def test_every_set_of_a_mixture_and_what_else_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "start").mkdir()
    (tmp_path / "start/sam").mkdir()
    config = {
        "version": CONFIG_VERSION,
        "data": {"sets": {"a": {"root": "x/a"}, "b": {"root": "/b"}, "c": {"size": 3}}},
        "segmenter": {"path": "sam"}, "prompt": {"template": "compact"}, "policy": None,
    }  # fmt: skip
    write_text(tmp_path / "config.yaml", yaml.safe_dump(config))
    write_json(tmp_path / "environment.json", {"folder": str(tmp_path / "start")})
    found = started.config_of(tmp_path, (), ("data", "segmenter", "prompt"))
    roots = {"a": {"root": f"{tmp_path}/start/x/a"}, "b": {"root": "/b"}, "c": {"size": 3}}
    assert found["data"] == {"sets": roots}
    assert found["segmenter"] == {"path": f"{tmp_path}/start/sam"}
    assert found["prompt"] == {"template": "compact"}
    write_text(tmp_path / data_record.DATA, json.dumps({"files": {"/somewhere/else.png": {}}}))
    started.demand_same_data(tmp_path)
    write_json(tmp_path / "environment.json", {})
    with pytest.raises(ConfigError, match=r"data\.root='x/a': from here that is "):
        started.demand_same_data(tmp_path)
