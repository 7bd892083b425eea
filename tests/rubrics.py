"""The packaged rubrics, composed as the launcher composes them."""

from __future__ import annotations

from functools import lru_cache

from grasp_rl.config.targets import instantiate
from grasp_rl.launch.compose import option
from grasp_rl.rewards.rubric import Rubric

THRESHOLDS = ("answer_format.weight=2.0", "box_iou.mode=threshold", "points.mode=threshold")
"""Changes of ``grasp`` that make it the thresholds of VisionReasoner, without the quirks of its code."""


@lru_cache
def rubric(name: str, *changes: str) -> Rubric:
    """The rubric of ``reward=<name>``; each change is an override of a term's argument, such as ``count.weight=1``."""
    words = [change if "reward." in change else f"reward.terms.{change}" for change in changes]
    built = instantiate(option(f"reward/{name}", *words), key="reward")
    assert isinstance(built, Rubric)
    return built
