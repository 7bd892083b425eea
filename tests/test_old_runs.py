"""A run directory of the version before is evaluated, reported, gone on with and predicted from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import forked
import pytest
from rubrics import THRESHOLDS, rubric

from grasp_rl.cli import main as command_line
from grasp_rl.config.renamed import KEYS, current_key
from grasp_rl.config.targets import check_components, instantiate, load_config
from grasp_rl.interfaces import WeakLabels
from grasp_rl.launch.compose import parse_flags
from grasp_rl.types import Answer, ParseStatus, SpatialPrompt

DATA = Path(__file__).parent / "data"
SMALL = ["evaluation.test_limit=2", "evaluation.overlays=0"]


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA / "run_of_aa9e728", tmp_path / "run"))


def test_its_config_is_one_of_today(old_run: Path) -> None:
    config = load_config(old_run / "config.yaml")
    check_components(config)
    assert (config.version, config.command, config.rollout.reward_worker) == (2, "train", "inline")
    today = rubric("grasp", *THRESHOLDS, "count.weight=0.5")
    answer = Answer(
        prompts=(SpatialPrompt(box=(1, 2, 30, 40), point_coords=((5, 6),), point_labels=(1,)),), status=ParseStatus.OK
    )
    labels = WeakLabels(
        instances=(SpatialPrompt(box=(1, 2, 31, 42), point_coords=((5, 7),), point_labels=(1,)),), image_size=(99, 99)
    )
    assert instantiate(config.reward)(answer, labels) == today(answer, labels)


def test_it_is_evaluated_and_reported(old_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", f"init_from={old_run}", f"run_dir={tmp_path / 'e'}", "policy.lora_rank=1", *SMALL]
    assert forked.grasp_rl(*words).returncode == 0
    then = json.loads((old_run / "eval_after/metrics.json").read_text())
    now = json.loads((tmp_path / "e/eval/metrics.json").read_text())
    assert now["giou"] == pytest.approx(then["giou"], abs=1e-6)
    assert command_line.main(["report", str(old_run), "--json"]) == 0
    told: dict[str, Any] = json.loads(capfd.readouterr().out)
    assert len(told["runs"]) == 1


def test_it_goes_on(old_run: Path) -> None:
    assert forked.grasp_rl("train", f"resume={old_run}", "algorithm.steps=3").returncode == 0
    rows = [json.loads(line) for line in (old_run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "reward" in row] == [1, 2, 3]


def test_the_same_line_finds_it_done(old_run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    line = json.loads((old_run / "environment.json").read_text())["command"][1:]
    line = [f"run_dir={old_run}" if word.startswith("run_dir=") else word for word in line]
    at = line.index("reward=visionreasoner")  # whose name now means how its code reads and scores
    line[at : at + 1] = ["reward=grasp", *(f"reward.terms.{change}" for change in THRESHOLDS)]
    assert command_line.main([*line, "resume=auto"]) == 0
    printed = capfd.readouterr()
    assert "done before" in printed.out
    assert "rollout.judge is now called rollout.reward_worker" in printed.err


@pytest.mark.parametrize("old", KEYS)
def test_keys_are_read_by_their_old_name(old: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = parse_flags([f"{old}=1", f"+{old}=2", f"~{old}"])
    assert flags.overrides == [f"{KEYS[old]}=1", f"+{KEYS[old]}=2", f"~{KEYS[old]}"]
    assert f"{old} is now called {KEYS[old]}" in capsys.readouterr().err
    assert current_key(KEYS[old]) == KEYS[old]
