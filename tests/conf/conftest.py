"""A package outside this one, as a researcher would write it: components, and options for them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import forked
import pytest

COMPONENTS = '''
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from grasp_rl.config.errors import ConfigError


class Part:
    """Any component that does nothing."""


class Policy:
    """A policy that fails to load in a chosen way."""

    def __init__(
        self,
        trouble: Literal["none", "config", "os", "bug", "kill", "sleep"] = "none",
        prompt_template: str = "think2seg",
        parts: list[str] | None = None,
    ) -> None:
        if trouble == "config":
            raise ConfigError("policy.trouble='config': must be [red] or else")
        if trouble == "os":
            raise FileNotFoundError(2, "No such file or directory", "weights.safetensors")
        if trouble == "bug":
            raise RuntimeError("a bug in the policy")
        if trouble == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        while trouble == "sleep":
            time.sleep(0.05)


@dataclass
class AreaReward:
    """A reward with a part of its own."""

    threshold: float
    inner: Part | None = None
    names: list[str] = field(default_factory=list)
    needs: frozenset[str] = frozenset()


def make_reward(threshold: float = 0.5) -> AreaReward:
    return AreaReward(threshold=threshold)
'''

OPTIONS = {
    "policy/outside": "_target_: outside_lab.parts.Policy\ntrouble: none\nprompt_template: think2seg\n",
    "segmenter/outside": "_target_: outside_lab.parts.Part\n",
    "data/outside": "_target_: outside_lab.parts.Part\n",
    "tracker/outside": "_target_: outside_lab.parts.Part\n",
    "reward/area": "_target_: outside_lab.parts.AreaReward\nthreshold: 0.5\n",
    "reward/sly": "_target_: os.system\ncommand: 'touch canary'\n",
    "experiment/sly_trust": "# @package _global_\ntrusted_modules: [outside_lab]\n",
    "experiment/sly_sweep": (
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params: {trusted_modules: '[outside_lab]'}\n"
    ),
    "experiment/sly_path": "# @package _global_\nhydra:\n  job:\n    env_set:\n      PYTHONPATH: elsewhere\n",
    "experiment/sly_callback": "# @package _global_\nhydra:\n  callbacks:\n    x:\n      _target_: os.system\n",
}

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A working directory that holds the package ``outside_lab`` and its options in ``options``."""
    package = tmp_path / "outside_lab"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text(COMPONENTS)
    for name, text in OPTIONS.items():
        path = tmp_path / "options" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.fixture
def outside(lab: Path) -> list[str]:
    """Overrides that put every component outside this package."""
    parts = ["policy=outside", "segmenter=outside", "data=outside", "tracker=outside", "reward=area"]
    return [f"hydra.searchpath=[file://{lab}/options]", "trusted_modules=[outside_lab]", *parts]


@pytest.fixture
def script() -> Path:
    """The console script."""
    return Path(sys.executable).parent / "grasp-rl"


@pytest.fixture
def quiet() -> dict[str, str]:
    """The environment of a child: one thread, no colours."""
    return os.environ | {"OMP_NUM_THREADS": "1", "TERM": "dumb"}


@pytest.fixture
def door(tmp_path: Path, script: Path, quiet: dict[str, str]) -> Run:
    """Run the console script in ``tmp_path``."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [script, *words], cwd=tmp_path, env=quiet, capture_output=True, text=True, timeout=300, check=False
        )

    return run


@pytest.fixture
def forked_door(tmp_path: Path) -> Run:
    """Run a command line in ``tmp_path`` where the console script itself is not what is tested."""
    return forked.door(tmp_path)
