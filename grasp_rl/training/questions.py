"""Which questions of the training split a run learns from: all, some of each category, or those of a list."""

from __future__ import annotations

from typing import Any

from grasp_rl.config.schema import RunConfig
from grasp_rl.data.few_shot import numbers_of
from grasp_rl.data.subset import Subset
from grasp_rl.interfaces import Dataset
from grasp_rl.training.mining import listed


def chosen(config: RunConfig, dataset: Dataset) -> Dataset:
    """The samples of the training split ``dataset`` that ``config.regime`` leaves.

    Raises:
        ConfigError: there are no categories to take shots of, or the list is not of this split.
    """
    regime = config.regime
    if regime.shots is not None:
        records: Any = getattr(dataset, "records", dataset)
        dataset = Subset(dataset, numbers_of(records, regime.shots, config.seed, dataset.name, "regime.shots"))
    return dataset if regime.mining.reuse is None else listed(regime.mining.reuse, dataset)
