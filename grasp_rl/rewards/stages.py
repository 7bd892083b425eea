"""A reward with a rubric for every turn, or for every task, of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grasp_rl.config.errors import ConfigError
from grasp_rl.interfaces import Labels, WeakLabels
from grasp_rl.rewards.rubric import Rubric
from grasp_rl.types import Answer, MaskPrediction, RewardBreakdown

FIRST = "first"
"""Name of the first turn, and of a run's only one."""


class StageRubrics:
    """A rubric for each stage: ``first`` and the names of ``rollout.turns``, or those of ``rollout.tasks``.

    Args:
        stages: rubrics by the stage's name, in the stages' order.

    Raises:
        ConfigError: a stage is no rubric.
    """

    def __init__(self, stages: dict[str, Any]) -> None:
        for name, rubric in stages.items():
            if not isinstance(rubric, Rubric):
                raise ConfigError(f"reward.stages.{name}={rubric!r}: must be an option with the _target_ of a rubric")
        if not stages:
            raise ConfigError("reward.stages={}: must name one stage or more")
        self.stages: Mapping[str, Rubric] = stages
        self.needs: frozenset[str] = frozenset().union(*(rubric.needs for rubric in stages.values()))

    def stage(self, name: str) -> Rubric:
        """The rubric of a stage.

        Raises:
            ConfigError: there is none of that name.
        """
        if name not in self.stages:
            raise ConfigError(
                f"reward.stages: has {', '.join(self.stages)}, but the run has a stage {name!r}; take a reward for it, "
                "or the rollout that the reward was made for"
            )
        return self.stages[name]

    def score_group(
        self,
        answers: Sequence[Answer],
        labels: WeakLabels | Labels,
        predictions: Sequence[MaskPrediction | None],
        step: int | None = None,
    ) -> list[RewardBreakdown]:
        """The rewards of the last stage's answers."""
        return list(self.stages.values())[-1].score_group(answers, labels, predictions, step)
