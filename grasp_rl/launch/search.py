"""A search for hyper-parameters: Optuna proposes the jobs of a sweep and learns from how they ended.

The study is a journal file in the folder of the sweep, ``study.journal``, which a search that is started again goes on
with, and through which each run tells its validation values and hears whether it is worth going on
(grasp_rl.training.pruning).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override, RangeSweep

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import SearchConfig
from grasp_rl.runs.study import STUDY, load_optuna, open_study

SEARCH = "optuna"
"""The option of ``hydra/sweeper``."""
MAX_FAILED = 3
"""Trials in a row that failed, after which a search stops."""


class Search:
    """The points of a sweep that a study asks for, run a batch at a time.

    Args:
        launcher: Hydra's, which runs jobs.
        folder: of the sweep.
        settings: of the search.
        at_once: trials that are begun before the first of them has ended.
    """

    def __init__(self, launcher: Any, folder: Path, settings: SearchConfig, at_once: int) -> None:
        self.launcher, self.folder, self.settings, self.at_once = launcher, folder, settings, at_once
        self.failures: list[str] = []
        """A sentence for each trial that gave no objective."""

    def run(self, overrides: Sequence[Override]) -> None:
        """Run trials until ``settings.trials`` of the study gave an objective or were pruned.

        Args:
            overrides: of the config and the command line, the last of a key wins. Those that sweep span the space:
                ``interval(a, b)``, ``tag(log, interval(a, b))``, ``range(a, b, step)``, ``choice(a, b)``.

        Raises:
            ConfigError: Optuna is not installed, or what is swept is nothing that it can draw from.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        last = {override.get_key_element(): override for override in overrides}
        fixed = [str(override.input_line) for override in last.values() if not override.is_sweep_override()]
        space = {key: distribution(override) for key, override in last.items() if override.is_sweep_override()}
        if not space:
            raise ConfigError(
                "hydra/sweeper=optuna: nothing to search; sweep a key, such as optimizer.lr='interval(1e-5,1e-3)'"
            )
        states = load_optuna().trial.TrialState
        study = open_study(self.folder / STUDY, self.settings)
        for trial in study.get_trials(states=(states.RUNNING,)):  # begun when an earlier start was stopped
            study.tell(trial.number, state=states.FAIL)
            study.enqueue_trial(trial.params)
        failed = 0  # in a row
        while (left := self.settings.trials - len(study.get_trials(states=(states.COMPLETE, states.PRUNED)))) > 0:
            trials = [study.ask(space) for _ in range(min(left, self.at_once))]
            jobs = self.launcher.launch([_line(fixed, trial) for trial in trials], initial_job_idx=trials[0].number)
            for trial, job in zip(trials, jobs, strict=True):
                state, value = job.return_value
                if state == "stopped":
                    return
                failed = 0 if self._tell(study, trial, state, value) else failed + 1
            if failed >= MAX_FAILED:
                return

    def sentences(self) -> list[str]:
        """What is to be said at the end: the trials that gave no objective, and the best one so far."""
        study, complete = open_study(self.folder / STUDY, self.settings), load_optuna().trial.TrialState.COMPLETE
        count = len(study.get_trials(deepcopy=False, states=(complete,)))
        if not count:
            return [*self.failures, "no trial has ended with an objective"]
        params = " ".join(f"{key}={value}" for key, value in study.best_params.items())
        best = f"trial {study.best_trial.number}, {study.best_value:.4f}"
        return [*self.failures, f"best of {count} trials: {params} ({best})"]

    def _tell(self, study: Any, trial: Any, state: str, value: float | None) -> bool:
        """Tell the study how a trial ended; whether it says anything about the space."""
        states = load_optuna().trial.TrialState
        if state == "pruned":
            study.tell(trial, state=states.PRUNED)
        elif state == "done" and value is not None and math.isfinite(value):
            study.tell(trial, value)
        else:
            study.tell(trial, state=states.FAIL)
            why = f"val/{self.settings.metric} is {value}" if state == "done" else f"its run {state}"
            self.failures.append(f"trial {trial.number} gave no objective: {why}")
            return False
        return True


def _line(fixed: Sequence[str], trial: Any) -> list[str]:
    """The overrides of a trial's job."""
    return [*fixed, *(f"{key}={_word(value)}" for key, value in trial.params.items()), f"sweep.trial={trial.number}"]


def distribution(override: Override) -> Any:
    """What Optuna draws a swept key from.

    Raises:
        ConfigError: it is swept by a glob, or by numbers that no distribution has.
    """
    optuna, value = load_optuna(), override.value()
    if isinstance(value, IntervalSweep):
        whole = isinstance(value.start, int) and isinstance(value.end, int)
        kind = optuna.distributions.IntDistribution if whole else optuna.distributions.FloatDistribution
        return kind(value.start, value.end, log="log" in value.tags)
    if isinstance(value, RangeSweep):
        return optuna.distributions.CategoricalDistribution(list(value.range()))
    if isinstance(value, ChoiceSweep) and not isinstance(value, Glob):
        return optuna.distributions.CategoricalDistribution([_plain(item) for item in value.list])
    raise ConfigError(f"{override.input_line}: must be interval(a,b), range(a,b,step) or choice(a,b,...)")


def _plain(value: Any) -> Any:
    """A choice as Optuna stores it; a quoted string without its quotes, a list as it is written."""
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    text = getattr(value, "text", None)
    return text if text is not None else str(value)


def _word(value: Any) -> str:
    return (
        {True: "true", False: "false", None: "null"}[value] if value is None or isinstance(value, bool) else str(value)
    )
