"""What Hydra itself instantiates: its installed launchers and sweepers with plain values, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from grasp_rl.config.errors import ConfigError
from grasp_rl.launch import compose

BASIC = "_target_: hydra._internal.core_plugins.basic_launcher.BasicLauncher\n"
SWEEPER = "_target_: hydra._internal.core_plugins.basic_sweeper.BasicSweeper\nmax_batch_size: null\nparams: {}\n"
PATH = '{_target_: pathlib.Path.write_text, _args_: [{_target_: pathlib.Path, _args_: ["canary"]}, "x"]}'
PAYLOADS = {
    "a nested target": ("launcher", f"{BASIC}x: {PATH}\n", "hydra.launcher.x._target_"),
    "a target in a list": ("launcher", f"{BASIC}x: [[{PATH}]]\n", r"hydra.launcher.x\[0\]\[0\]._target_"),
    "a target by reference": ("launcher", f"{BASIC}x: ${{data}}\n", "hydra.launcher.x._target_"),
    "positional arguments": ("launcher", f"{BASIC}_args_: [1]\n", "hydra.launcher._args_"),
    "partial": ("sweeper", f"{SWEEPER}_partial_: true\n", "hydra.sweeper._partial_"),
    "another class": ("launcher", "_target_: pathlib.Path.write_text\nx: 1\n", "hydra.launcher._target_='pathlib.Path.write_text'"),
    "a sweeper's value": (
        "sweeper", SWEEPER.replace("null", "{_target_: joblib.load, filename: pickled}"), "hydra.sweeper.max_batch_size",
    ),
    "a plugin of the other kind": ("launcher", SWEEPER, "must be an installed plugin of Hydra"),
    "no class": ("launcher", "x: 1\n", "hydra.launcher._target_=None"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "sweep"), [*((name, False) for name in PAYLOADS), ("a nested target", True)])
def test_a_folder_of_configs_instantiates_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, sweep: bool
) -> None:
    group, text, said = PAYLOADS[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"hydra/{group}").mkdir(parents=True)
    (tmp_path / f"hydra/{group}/theirs.yaml").write_text(text)
    (tmp_path / "experiment").mkdir()
    use = f"# @package _global_\ndefaults:\n  - override /hydra/{group}: theirs\n"
    (tmp_path / "experiment/theirs.yaml").write_text(use)
    words = ["command=train", f"hydra.searchpath=[file://{tmp_path}]", "experiment=theirs"]
    composed = compose.sweep if sweep else compose.single
    with compose.hydra("train") as engine, pytest.raises(ConfigError, match=said):
        composed(engine, [*words, *(["seed=0,1"] if sweep else [])], ())
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("launcher", ["serial", "joblib", "slurm"])
def test_the_shipped_launchers_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: str) -> None:
    pytest.importorskip("hydra_plugins", reason="needs pip install 'grasp-rl[launch]'")
    monkeypatch.chdir(tmp_path)
    with compose.hydra("train") as engine:
        _, jobs, _ = compose.sweep(engine, ["command=train", f"launcher={launcher}", "seed=0,1"], ())
    assert len(jobs) == 2
