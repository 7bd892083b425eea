"""Shared by all tests: one thread, no network, and the small real things that many of them need."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import pytest
import torch

from grasp_rl.config import ParsingConfig, PromptConfig
from grasp_rl.data.synthetic import SyntheticSource
from grasp_rl.policies.tiny import TinyPolicy
from grasp_rl.types import Sample

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def source() -> SyntheticSource:
    return SyntheticSource()


@pytest.fixture(scope="session")
def samples(source: SyntheticSource) -> list[Sample]:
    """Eight drawn training samples."""
    split = source.split("train")
    return [split[index] for index in range(8)]


@pytest.fixture
def random_policy() -> TinyPolicy:
    """A fresh random policy of the tiny shape."""
    return TinyPolicy(weights="random")


@pytest.fixture
def compact() -> PromptConfig:
    return PromptConfig(template="compact")


@pytest.fixture
def strict() -> ParsingConfig:
    return ParsingConfig()
