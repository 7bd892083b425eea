"""The packaged rubrics, composed as the launcher composes them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from grasp_rl.config.targets import instantiate
from grasp_rl.rewards.rubric import Rubric


@lru_cache
def option(name: str, *changes: str) -> Any:
    """The composed option ``reward=<name>``; each change is an override of a key in it, such as ``count.weight=1``."""
    with initialize_config_module("grasp_rl.conf", version_base="1.3"):
        overrides = [f"reward.terms.{change}" for change in changes]
        return OmegaConf.to_container(compose(f"reward/{name}", overrides).reward)


def rubric(name: str, *changes: str) -> Rubric:
    built = instantiate(option(name, *changes), key="reward")
    assert isinstance(built, Rubric)
    return built
