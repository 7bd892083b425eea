"""The points of a sweep: Hydra's product of comma-separated values, times lists that move together."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.messages import quoted
from grasp_rl.launch.compat import BasicSweeper, Callbacks, Hydra
from grasp_rl.launch.search import SEARCH, Search


def multirun(engine: Hydra, config_name: str, task: Callable[[DictConfig], Any], overrides: list[str]) -> Search | None:
    """``engine.multirun``, which knows of ``sweep.zip`` and ``sweep.search``.

    Returns the search that was run, if it was one.
    """
    config = engine.compose_config(config_name, overrides, RunMode.MULTIRUN, with_log_configuration=True)
    if not config.sweep.zip and not is_search(config):
        engine.multirun(config_name, task, overrides)
        return None
    context = HydraContext(config_loader=engine.config_loader, callbacks=Callbacks(config))
    sweeper: Any = Plugins.instance().instantiate_sweeper(hydra_context=context, task_function=task, config=config)
    if is_search(config):
        settings: Any = OmegaConf.to_object(config.sweep.search)
        search = Search(
            sweeper.launcher, Path(config.hydra.sweep.dir), settings, int(config.hydra.launcher.get("n_jobs") or 1)
        )
        search.run(swept(engine, config))
        return search
    # Hydra's own sweeper, with these points in place of its product
    sweeper.split_arguments = lambda overrides, _: [split_points(overrides, config.sweep.zip)]
    sweeper.sweep(list(config.hydra.overrides.task))
    return None


def is_search(config: DictConfig) -> bool:
    """Whether the jobs of a sweep are proposed by Optuna."""
    return bool(config.hydra.runtime.choices["hydra/sweeper"] == SEARCH)


def swept(engine: Hydra, config: DictConfig) -> list[Override]:
    """The overrides of a sweep's jobs: those of the config's sweeper, then those of the command line."""
    params = config.hydra.sweeper.get("params") or {}
    lines = [*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task]
    return OverridesParser.create(engine.config_loader).parse_overrides(lines)


def split_points(overrides: list[Override], zipped: Mapping[str, Sequence[Any]]) -> list[list[str]]:
    """The overrides of every job, in order: the product of what is swept, for each row of the lists that are paired.

    Raises:
        ConfigError: the paired lists are not lists of one length, or a key of them is overridden, too.
    """
    points = [point for batch in BasicSweeper.split_arguments(overrides, None) for point in batch]
    lists = OmegaConf.to_container(OmegaConf.create(dict(zipped)), resolve=True)
    assert isinstance(lists, dict)
    if not lists:
        return points
    lengths = {str(key): len(values) if isinstance(values, list) else 0 for key, values in lists.items()}
    if len(set(lengths.values())) > 1 or not all(lengths.values()):
        raise ConfigError(f"sweep.zip: must be lists of one length; found {lengths} values")
    twice = {override.key_or_group for override in overrides} & set(lengths)
    if twice == set(lengths):  # the whole list gave way to the command line
        return points
    if twice:
        left = ", ".join(sorted(set(lengths) - twice))
        raise ConfigError(
            f"sweep.zip.{min(twice)}: moves together with {left} and is not overridden alone; override all of these, "
            "or write an experiment of your own"
        )
    rows = zip(*lists.values(), strict=True)
    paired = [[f"{key}={_word(value)}" for key, value in zip(lengths, row, strict=True)] for row in rows]
    return [[*point, *pairs] for pairs in paired for point in points]


def _word(value: Any) -> str:
    """``value`` in Hydra's grammar."""
    if isinstance(value, str):
        return value if re.fullmatch(r"[A-Za-z][\w./-]*", value) else quoted(value)
    if isinstance(value, list):
        return f"[{','.join(_word(item) for item in value)}]"
    return json.dumps(value)
