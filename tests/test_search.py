"""A search: what Optuna is asked, what it is told, what is gone on with, and a run that ends because others were better."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

optuna = pytest.importorskip("optuna", reason="pip install 'grasp-rl[sweep]'")

from hydra.core.override_parser.overrides_parser import OverridesParser  # noqa: E402

from grasp_rl.config.errors import ConfigError  # noqa: E402
from grasp_rl.config.schema import SearchConfig  # noqa: E402
from grasp_rl.launch import compose, sweeper  # noqa: E402
from grasp_rl.launch.search import MAX_FAILED, Search  # noqa: E402
from grasp_rl.runs.study import STUDY, open_study  # noqa: E402
from grasp_rl.utils.files import read_json  # noqa: E402

SPACE = ["optimizer.lr=tag(log, interval(1.0e-5, 1.0e-3))", "algorithm.group_size=choice(4,8)", "seed=3"]


class Launcher:
    """Hydra's launcher, with runs whose objective is a function of their overrides."""

    def __init__(self, objective: Any) -> None:
        self.objective = objective
        self.lines: list[list[str]] = []

    def launch(self, lines: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
        self.lines += [list(line) for line in lines]
        return [SimpleNamespace(return_value=self.objective(dict(word.split("=") for word in line))) for line in lines]


def by_rate(words: dict[str, str]) -> tuple[str, float]:
    return "done", -abs(math.log10(float(words["optimizer.lr"])) + 4)  # best at 1e-4


def search(
    folder: Path, objective: Any, trials: int, at_once: int = 1, overrides: Sequence[str] = SPACE
) -> tuple[Search, Launcher]:
    jobs = Launcher(objective)
    made = Search(jobs, folder, SearchConfig(trials=trials, startup_trials=2), at_once)
    made.run(OverridesParser.create().parse_overrides(list(overrides)))
    return made, jobs


def test_every_trial_is_a_line_of_overrides(tmp_path: Path) -> None:
    _, jobs = search(tmp_path, by_rate, trials=12, at_once=2)
    assert len(jobs.lines) == 12
    for number, line in enumerate(jobs.lines):
        words = dict(word.split("=") for word in line)
        assert list(words) == ["seed", "optimizer.lr", "algorithm.group_size", "sweep.trial"]
        assert (words["seed"], words["sweep.trial"]) == ("3", str(number))
        assert 1e-5 <= float(words["optimizer.lr"]) <= 1e-3
        assert words["algorithm.group_size"] in ("4", "8")
    best = open_study(tmp_path / STUDY, SearchConfig()).best_trial
    assert best.value == max(by_rate(dict(word.split("=") for word in line))[1] for line in jobs.lines)


def test_it_draws_the_same_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    _, whole = search(tmp_path / "a", by_rate, trials=6)
    _, first = search(tmp_path / "b", by_rate, trials=3)
    _, rest = search(tmp_path / "b", by_rate, trials=6)
    assert first.lines == whole.lines[:3]
    assert [line[-1] for line in rest.lines] == ["sweep.trial=3", "sweep.trial=4", "sweep.trial=5"]
    _, nothing = search(tmp_path / "b", by_rate, trials=6)
    assert nothing.lines == []


def test_a_trial_that_was_going_on_when_it_was_stopped_is_asked_again(tmp_path: Path) -> None:
    _, stopped = search(tmp_path, lambda words: ("stopped", None), trials=3)
    _, again = search(tmp_path, by_rate, trials=1)
    assert [line[:-1] for line in stopped.lines] == [line[:-1] for line in again.lines]


def test_failed_and_nan_trials_are_named_and_end_the_search(tmp_path: Path) -> None:
    ends = iter([("done", 1.0), ("done", math.nan), ("failed", None), ("done", None)])
    made, jobs = search(tmp_path, lambda words: next(ends), trials=9)
    assert len(jobs.lines) == 1 + MAX_FAILED
    assert made.failures == [
        "trial 1 gave no objective: val/reward is nan",
        "trial 2 gave no objective: its run failed",
        "trial 3 gave no objective: val/reward is None",
    ]


@pytest.mark.parametrize(("overrides", "message"), [
    (["seed=3"], "nothing to search; sweep a key"),
    (["reward=glob(*)"], r"reward=glob\(\*\): must be interval"),
])  # fmt: skip
def test_what_cannot_be_searched(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        search(tmp_path, by_rate, trials=1, overrides=overrides)


@pytest.mark.parametrize("name", ["lr_kl_group", "reward_weights"])
def test_the_packaged_spaces_compose(name: str, tmp_path: Path) -> None:
    words = ["command=train", f"hparams_search={name}", f"hydra.sweep.dir={tmp_path}"]
    with compose.hydra("train") as engine:
        assert compose.is_sweep(engine, words)
        assert compose.sweep(engine, words, ())[1] == []
        config = compose._compose(engine, words, compose.RunMode.MULTIRUN)
        assert sweeper.is_search(config)
        _, jobs = _composed(tmp_path, sweeper.swept(engine, config))
        for line in jobs.lines:
            compose.single(engine, [*line, "hydra.mode=RUN"], ())


def _composed(folder: Path, overrides: Sequence[Any]) -> tuple[Search, Launcher]:
    jobs = Launcher(lambda words: ("done", 1.0))
    made = Search(jobs, folder, SearchConfig(trials=4), 1)
    made.run(overrides)
    return made, jobs


def test_a_run_that_is_worse_than_the_others_ends(tmp_path: Path) -> None:
    """Through the launcher: earlier trials had 100 after their first step, so this one is given up there."""
    study = open_study(tmp_path / STUDY, SearchConfig(startup_trials=1))
    for _ in range(2):
        trial = study.ask({"optimizer.lr": optuna.distributions.FloatDistribution(1e-5, 1e-3, log=True)})
        trial.report(100.0, 1)
        study.tell(trial, 100.0)
    line = ["-m", "hydra/sweeper=optuna", "optimizer.lr=tag(log, interval(1e-5,1e-3))", "sweep.search.trials=3", "debug=fast",
            "sweep.search.startup_trials=1", "segmenter=box_fill", "algorithm.steps=3", "evaluation.every=1"]  # fmt: skip
    command = [sys.executable, "-P", "-m", "grasp_rl.cli.main", "train", *line, f"hydra.sweep.dir={tmp_path}"]
    subprocess.run(command, check=True, capture_output=True)  # Hydra sets up the logging of the process that runs jobs
    (result,) = tmp_path.glob("*/result.json")
    found = read_json(result)
    assert found is not None
    assert (found["steps"], found["pruned_at"]) == (1, 1)
    assert "giou" in found["after"]
    assert [trial.state.name for trial in open_study(tmp_path / STUDY, SearchConfig()).trials] == [
        "COMPLETE",
        "COMPLETE",
        "PRUNED",
    ]
