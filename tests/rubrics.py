"""The packaged rubrics, composed as the launcher composes them."""

from __future__ import annotations

from functools import lru_cache

from grasp_rl.config.targets import instantiate
from grasp_rl.launch.compose import option
from grasp_rl.rewards.rubric import Rubric


@lru_cache
def rubric(name: str, *changes: str) -> Rubric:
    """The rubric of ``reward=<name>``; each change is an override of a term's argument, such as ``count.weight=1``."""
    built = instantiate(option(f"reward/{name}", *(f"reward.terms.{change}" for change in changes)), key="reward")
    assert isinstance(built, Rubric)
    return built
