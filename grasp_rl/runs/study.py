"""The study of a search (`hydra/sweeper=optuna`): a journal file in the folder of the sweep, shared by its runs.

Nothing of a config says where it is: a run that is a trial looks in the folder above its own.
"""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import SearchConfig

log = logging.getLogger(__name__)

STUDY = "study.journal"
_NAME = "search"


def load_optuna() -> Any:
    """The package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        optuna = importlib.import_module("optuna")
        importlib.import_module("optuna.storages.journal")
    except ImportError as error:
        raise ConfigError(f"hydra/sweeper=optuna: {error}; pip install 'grasp-rl[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def open_study(path: Path, settings: SearchConfig) -> Any:
    """The ``optuna.Study`` in the journal at ``path``, begun where there is none.

    Its sampler draws by ``settings.seed`` and the number of trials so far, so that a search that goes on does not draw
    again what it has drawn.
    """
    optuna = load_optuna()
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    study = optuna.create_study(
        study_name=_NAME, storage=storage, direction="maximize", load_if_exists=True, pruner=_pruner(settings)
    )
    seed = settings.seed + len(study.get_trials(deepcopy=False))
    samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    study.sampler = samplers[settings.sampler](seed=seed)
    return study


def _pruner(settings: SearchConfig) -> Any:
    pruners = load_optuna().pruners
    if settings.pruner == "none":
        return pruners.NopPruner()
    return pruners.MedianPruner(n_startup_trials=settings.startup_trials)


class TrialReport:
    """A run's side of its trial: what it tells the study after each validation, and whether it is to go on.

    Args:
        path: of the study's journal.
        number: of the trial.
        settings: of the search.
    """

    def __init__(self, path: Path, number: int, settings: SearchConfig) -> None:
        optuna, self.study = load_optuna(), open_study(path, settings)
        known = self.study.get_trials(deepcopy=False)
        if number >= len(known):
            raise ConfigError(f"sweep.trial={number}: {path} has {len(known)} trials")
        self.metric = settings.metric
        self._trial = optuna.trial.Trial(self.study, known[number]._trial_id)

    def validated(self, step: int, value: float) -> bool:
        """Tell the value of the metric after ``step`` optimizer steps; whether the run is not worth going on."""
        self._trial.report(value, step)
        return bool(self._trial.should_prune())
