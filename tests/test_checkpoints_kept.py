"""What ``checkpoint.keep`` leaves of a run that is done, and what can still be done with it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import RunConfig
from grasp_rl.launch import main as launcher
from grasp_rl.runs import checkpoints
from grasp_rl.runs.run_dir import config_hash

LINE = [
    "policy=tiny",
    "segmenter=box_fill",
    "debug=fast",
    "algorithm.steps=2",
    "checkpoint.every=1",
    "evaluation.every=1",
]


def built(run_dir: Path) -> Path:
    """A run directory with checkpoints of steps 1, 2 and 3, of which 2 is the best."""
    for step in (1, 2, 3):
        with checkpoints.building(run_dir, step):
            part = checkpoints.part_of(run_dir, step)
            for name in (checkpoints.POLICY, checkpoints.ENGINE):
                (part / name).mkdir(exist_ok=True)
                (part / name / "config.json").write_text("{}")
            checkpoints.commit(run_dir, step, {})
    checkpoints.mark_best(run_dir, 2, 0.5)
    return run_dir


@pytest.mark.parametrize(("keep", "step"), [("best", 2), ("last", 3)])
def test_one_policy_is_left(tmp_path: Path, keep: str, step: int) -> None:
    run_dir = built(tmp_path)
    checkpoints.retain(run_dir, keep)
    folder = checkpoints.folder_of(run_dir, step)
    assert checkpoints.steps(run_dir) == [step]
    assert [path.name for path in folder.iterdir()] == [checkpoints.POLICY]
    assert checkpoints.find_policy(run_dir) == folder / checkpoints.POLICY


def test_the_best_of_a_run_without_a_validation_is_its_last(tmp_path: Path) -> None:
    run_dir = built(tmp_path)
    (run_dir / "checkpoints/best.json").unlink()
    checkpoints.retain(run_dir, "best")
    assert checkpoints.steps(run_dir) == [3]


def test_all_and_none(tmp_path: Path) -> None:
    run_dir = built(tmp_path)
    checkpoints.retain(run_dir, "all")
    assert checkpoints.steps(run_dir) == [1, 2, 3]
    assert checkpoints.damage(checkpoints.folder_of(run_dir, 3)) is None
    checkpoints.retain(run_dir, "none")
    with pytest.raises(ConfigError, match="no policy there"):
        checkpoints.find_policy(run_dir)


def test_it_does_not_decide_the_numbers() -> None:
    """A sweep that was done before it was asked to keep less is still done."""
    config = RunConfig()
    other = replace(config, checkpoint=replace(config.checkpoint, keep="none"))
    assert config_hash(asdict(config)) == config_hash(asdict(other))
    with pytest.raises(ConfigError, match=r"checkpoint.keep='some': must be one of all, best, last, none"):
        replace(config.checkpoint, keep="some")


def test_a_run_that_kept_a_policy_is_evaluated_and_not_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    assert launcher.main("train", [*LINE, f"run_dir={run_dir}", "checkpoint.keep=best"]) == 0
    (step,) = checkpoints.steps(run_dir)
    assert [path.name for path in checkpoints.folder_of(run_dir, step).iterdir()] == [checkpoints.POLICY]
    assert "next: grasp-rl report" in capsys.readouterr().out
    assert launcher.main("train", [f"resume={run_dir}", "algorithm.steps=4"]) == 2
    assert "kept no optimizer to go on with (checkpoint.keep=best); begin a new run" in capsys.readouterr().err


def test_a_run_without_a_step_of_its_own_has_the_policy_of_its_last_stage(tmp_path: Path) -> None:
    """Supervised fine-tuning alone, by regime=sft_grpo algorithm=none."""
    built(tmp_path / "sft")
    (tmp_path / "sft/status.json").write_text("{}")
    assert checkpoints.find_policy(tmp_path) == checkpoints.folder_of(tmp_path / "sft", 3) / checkpoints.POLICY
    built(tmp_path)
    assert checkpoints.find_policy(tmp_path) == checkpoints.folder_of(tmp_path, 2) / checkpoints.POLICY
