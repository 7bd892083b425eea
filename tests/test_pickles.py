"""Pickles that would run something when they are read: ten ways, in both of torch's file formats, at every door."""

from __future__ import annotations

import builtins
import functools
import operator
import os
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import OptimizerConfig
from grasp_rl.distributed.local import LocalEngine
from grasp_rl.policies.backbones.base import ImageSize
from grasp_rl.policies.pretrained import HfVlmPolicy
from grasp_rl.rehearsal import models as tiny_models
from grasp_rl.segmenters.sam2 import Sam2Segmenter


class Call:
    """Unpickles as what ``function(*words)`` returns."""

    def __init__(self, function: Any, *words: Any) -> None:
        self.made = function, words

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.made


class Stateful:
    """Runs code when its state is set."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __getstate__(self) -> dict[str, str]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, str]) -> None:
        Path(state["path"]).touch()


def crafted(canary: Path, script: Path) -> dict[str, Any]:
    """What leaves ``canary`` behind when it is unpickled, by name."""
    path = str(canary)
    return {
        "os.system": Call(os.system, f"touch {path}"),
        "subprocess.run": Call(subprocess.run, ["touch", path]),
        "exec": Call(builtins.exec, f"open({path!r}, 'w')"),
        "eval": Call(builtins.eval, f"open({path!r}, 'w')"),
        "open": Call(builtins.open, path, "w"),
        "method": Call(Path.touch, canary),
        "methodcaller": Call(operator.methodcaller("touch"), canary),
        "partial": Call(functools.partial(os.mkdir), path),
        "runpy": Call(runpy.run_path, str(script)),
        "copyfile": Call(shutil.copyfile, str(script), path),
        "state": Stateful(path),
    }


NAMES = tuple(crafted(Path("x"), Path("y")))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("qwen2_5_vl", tmp_path_factory.mktemp("qwen"))


def planted(tmp_path: Path, name: str) -> tuple[Any, Path]:
    """The object of that name, and the canary; the object works where nobody minds."""
    canary, script = tmp_path / "canary", tmp_path / "script.py"
    script.write_text(f"open({str(canary)!r}, 'w')\n")
    return crafted(canary, script)[name], canary


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", NAMES)
def test_the_canaries_sing_where_nobody_minds(tmp_path: Path, name: str) -> None:
    thing, canary = planted(tmp_path, name)
    torch.save({"x": thing}, tmp_path / "w.pt")
    torch.load(tmp_path / "w.pt", weights_only=False)
    assert canary.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", NAMES)
def test_no_door_runs_a_crafted_pickle(qwen: Path, tmp_path: Path, name: str, zipped: bool) -> None:
    """A policy's and a segmenter's weights, trusted as pickles, and the optimizer's state of a checkpoint."""
    thing, canary = planted(tmp_path, name)
    folder = tmp_path / "policy"
    shutil.copytree(qwen, folder)
    (folder / "model.safetensors").unlink()
    weights = folder / "pytorch_model.bin"
    torch.save({"x": torch.zeros(1), "y": thing}, weights, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ConfigError, match="holds more than weights; refused"):
        HfVlmPolicy(str(folder), ImageSize(), dtype="float32", allow_pickle_weights=True)
    shutil.copy(weights, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="holds more than tensors"):
        Sam2Segmenter(str(tmp_path / "w.pt"), architecture="hiera_tiny", allow_pickle_weights=True)
    shutil.copy(weights, tmp_path / "optimizer.pt")
    with pytest.raises(ConfigError, match=r"holds more than tensors and plain values"):
        LocalEngine(torch.nn.Linear(1, 1), OptimizerConfig(), 1).load(tmp_path)
    assert not canary.exists()
