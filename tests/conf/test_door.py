"""The door itself: help, speed, what it does not import, tab completion, the wheel."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import grasp_rl
from grasp_rl.cli import doctor
from grasp_rl.cli.main import COMMANDS
from grasp_rl.runs import environment

Run = Callable[..., subprocess.CompletedProcess[str]]

HEAVY = ("torch", "transformers", "numpy", "cv2", "scipy", "matplotlib", "joblib", "wandb")


def _cpu_seconds(command: list[str | Path], variables: dict[str, str]) -> float:
    """The least CPU time of three runs, start of the interpreter included."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, env=variables, stdout=subprocess.DEVNULL, check=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def test_help_names_every_verb(door: Run) -> None:
    ended = door("--help")
    assert ended.returncode == 0
    for command in COMMANDS:
        assert f"\n  {command} " in ended.stdout
    assert door().stdout == ended.stdout
    assert door("--version").stdout == f"grasp-rl {grasp_rl.__version__}\n"


def test_verb_help_lists_options_and_values(door: Run) -> None:
    ended = door("train", "--help")
    assert ended.returncode == 0, ended.stderr
    for text in (
        "algorithm: cispo, dapo, dr_grpo, grpo, gspo, none, resap, rloo, sam_r1",
        "launcher: joblib, ray, serial, slurm",
        "group_size: 8",
        "--json",
    ):
        assert text in ended.stdout


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["train", "--cfg", "job"]], ids=" ".join)
def test_under_a_second(script: Path, quiet: dict[str, str], words: list[str]) -> None:
    assert _cpu_seconds([script, *words], quiet) < 1.0


@pytest.mark.parametrize("words", [["--help"], ["train", "--cfg", "job"], ["train", "algorithm.steps=0"]], ids=" ".join)
def test_nothing_heavy_is_imported(words: list[str], tmp_path: Path, quiet: dict[str, str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "grasp_rl.cli.main", *words]
    ended = subprocess.run(command, cwd=tmp_path, env=quiet, capture_output=True, text=True, timeout=60, check=False)
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in ended.stderr.splitlines() if "|" in line}
    assert "grasp_rl" in imported
    assert sorted(imported & set(HEAVY)) == []
    if words == ["--help"]:
        assert sorted(imported & {"hydra", "omegaconf", "rich"}) == []


def test_cfg_job_prints_the_config(door: Run) -> None:
    ended = door("train", "--cfg", "job", "algorithm=gspo", "-p", "algorithm")
    assert ended.returncode == 0
    assert "importance: sequence" in ended.stdout
    assert ended.stderr == ""


@pytest.mark.parametrize(
    ("line", "some", "none"),
    [
        ("grasp-rl ", ["train", "doctor"], []),
        ("grasp-rl ev", ["evaluate"], ["train"]),
        ("grasp-rl train algorithm=g", ["algorithm=grpo", "algorithm=gspo"], ["algorithm=dapo"]),
        ("grasp-rl train --json algorithm.cl", ["algorithm.clip_low=", "algorithm.clip_high="], []),
        ("grasp-rl sft -m launcher=", ["launcher=joblib"], []),
        ("grasp-rl train ", ["seed=", "reward=", "optimizer."], []),
        ("grasp-rl predict x", [], ["seed="]),
    ],
)
def test_tab_completion(
    door: Run, monkeypatch: pytest.MonkeyPatch, quiet: dict[str, str], line: str, some: list[str], none: list[str]
) -> None:
    monkeypatch.setitem(quiet, "COMP_LINE", line)
    found = door("-sc", "query=bash").stdout.split()
    assert set(some) <= set(found)
    assert not set(none) & set(found)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_tab_completion_in_bash(script: Path, quiet: dict[str, str]) -> None:
    lines = (
        'eval "$(grasp-rl -sc install=bash)"; complete -p grasp-rl >/dev/null || exit 3\n'
        'COMP_LINE="grasp-rl train algorithm=d" COMP_POINT=26 COMP_CWORD=2\n'
        'hydra_bash_completion grasp-rl; echo "${COMPREPLY[@]}"\n'
    )
    variables = quiet | {"PATH": f"{script.parent}:{os.environ['PATH']}"}
    ended = subprocess.run(
        ["bash", "-c", lines], env=variables, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.stdout.split() == ["algorithm=dapo", "algorithm=dr_grpo"], ended.stderr


def test_doctor(door: Run, forked_door: Run) -> None:
    ended = door("doctor", "--json")
    found = json.loads(ended.stdout)
    assert (ended.returncode == 0) == found["ok"]
    assert found["devices"][0]["name"] == "cpu"
    assert {"torch", "hydra-core"} <= {package["name"] for package in found["packages"]}
    assert [extra["name"] for extra in found["extras"]] == ["track", "launch", "train", "bench", "geo", "demo"]
    text = forked_door("doctor").stdout
    assert "device cpu" in text
    assert "extra track" in text


def test_doctor_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = environment.version_of
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name in ("rich", "wandb") else installed(name))
    found = doctor.examine()
    assert not found["ok"]
    assert any("rich is missing" in item["problem"] and "pip install" in item["remedy"] for item in found["problems"])
    track = next(extra for extra in found["extras"] if extra["name"] == "track")
    assert track["missing"] == ["wandb"]
    assert track["remedy"] == "pip install 'grasp-rl[track]'"


def test_wheel_ships_the_configs(tmp_path: Path) -> None:
    root = Path(grasp_rl.__file__).parent.parent
    if not (root / "pyproject.toml").exists():
        pytest.skip("installed without its source tree")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("grasp_rl", "conf"):
        shutil.copytree(root / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    (source / "experiments").mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "experiments/published.yaml"):
        shutil.copy(root / name, source / name)
    code = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True, timeout=120)
    wheel = zipfile.ZipFile(next(source.glob("*.whl")))
    shipped = {name for name in wheel.namelist() if name.startswith("grasp_rl/conf/") and name.endswith(".yaml")}
    assert "grasp_rl/experiments/published.yaml" in wheel.namelist()
    assert shipped == {f"grasp_rl/conf/{path.relative_to(root / 'conf')}" for path in (root / "conf").rglob("*.yaml")}
