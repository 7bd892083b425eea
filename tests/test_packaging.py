"""What is installed: the lock, the bounds, the commands that use them, and a torchvision that somebody brings along."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
if not (ROOT / "pyproject.toml").exists():
    pytest.skip("installed without its source tree", allow_module_level=True)

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PIN = re.compile(r"([a-z0-9-]+)==([0-9][0-9a-z.]*)")


def requirements(*extras: str) -> dict[str, Requirement]:
    """Of the package, its build and some extras, followed through the project's own extras."""
    project = PROJECT["project"]
    waiting = [*project["dependencies"], *PROJECT["build-system"]["requires"]]
    for extra in extras:
        waiting += project["optional-dependencies"][extra]
    found = {}
    for text in waiting:
        requirement = Requirement(text)
        if requirement.name == project["name"]:
            for extra in requirement.extras:
                waiting += project["optional-dependencies"][extra]
        else:
            found[canonicalize_name(requirement.name)] = requirement
    return found


@pytest.fixture(scope="module")
def lines() -> list[str]:
    text = (ROOT / "constraints.txt").read_text()
    return [line for line in text.splitlines() if not line.startswith("#")]


@pytest.fixture(scope="module")
def pins(lines: list[str]) -> dict[str, Version]:
    return {name: Version(version) for name, _, version in (line.partition("==") for line in lines)}


def test_the_lock_holds_names_and_versions_only(lines: list[str]) -> None:
    """No address, no path, no marker, no local version: an index with CPU builds and one with CUDA builds both serve it."""
    assert [line for line in lines if not PIN.fullmatch(line)] == []
    assert len({line.partition("==")[0] for line in lines}) == len(lines)
    assert [line for line in lines if re.match(r"nvidia|cuda|triton|torchvision|grasp-rl", line)] == []


def test_the_lock_is_within_the_bounds(pins: dict[str, Version]) -> None:
    wanted = requirements("dev")
    assert sorted(set(wanted) - set(pins)) == []
    outside = {n: str(pins[n]) for n, r in wanted.items() if not r.specifier.contains(pins[n], prereleases=True)}
    assert outside == {}, "run make lock"


def test_the_lock_names_all_that_the_installed_ones_require(pins: dict[str, Version]) -> None:
    """Requirements of requirements, by the metadata of this environment; versions of other years require other names."""
    from importlib.metadata import PackageNotFoundError, requires, version

    try:
        same = all(Version(version(name)).public == str(pin) for name, pin in pins.items() if name != "wheel")
    except PackageNotFoundError:
        same = False
    if not same:
        pytest.skip("not the environment of the lock (make test)")
    missing = set()
    for name in pins.keys() - {"wheel"}:
        for text in requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                missing.add(canonicalize_name(requirement.name))
    assert sorted(name for name in missing - pins.keys() if not re.match(r"nvidia|cuda|triton", name)) == []


def test_a_wheel_has_every_file_of_the_package() -> None:
    """Templates, weights, cards and configs: an editable installation would not miss one."""
    listed = subprocess.run(
        [sys.executable, "-c", _FILES], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    ).stdout.split("\n")
    tree = {
        str(path.relative_to(ROOT))
        for folder in ("grasp_rl", "conf")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert {name for name in tree if name.endswith((".jinja", ".safetensors", ".yaml", "MODEL_CARD.md"))}
    assert tree - set(listed) == set()
    assert "experiments/published.yaml" in listed


_FILES = """
from distutils.core import run_setup
from setuptools import Distribution
distribution = run_setup("setup.py", ["--quiet"], stop_after="init")
distribution.parse_config_files()
command = distribution.get_command_obj("build_py")
command.ensure_finalized()
for _, source, _, names in command.data_files:
    for name in names:
        print(f"{source}/{name}")
"""


def test_every_lower_bound_becomes_a_pin() -> None:
    oldest = subprocess.run(
        [sys.executable, "scripts/bounds.py", "oldest"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    found = dict(line.split("==") for line in oldest.split())
    wanted = requirements("dev")
    assert found.keys() == wanted.keys()
    assert all(wanted[name].specifier.contains(found[name]) for name in wanted)


def test_upper_bounds() -> None:
    """Where a removal has a date, or a newer release brings what this project does not want."""
    wanted = requirements("dev")
    assert not wanted["torch"].specifier.contains("2.14.0")
    assert not wanted["transformers"].specifier.contains("5.40.0")


@pytest.mark.parametrize("target", ["demo", "test", "test-page", "lint", "parity", "faults"])
def test_commands_install_the_lock(target: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe is not None
    first = recipe[1].splitlines()[0]
    assert re.fullmatch(r"\t@bash scripts/setup\.sh \$\(VENV\) (launch|dev)", first), first


def test_setup_takes_the_lock_unless_told_otherwise() -> None:
    setup = (ROOT / "scripts" / "setup.sh").read_text()
    assert "versions=${3:-locked}" in setup
    assert "locked) constraints=constraints.txt" in setup
    assert re.search(r"^want=.*constraints\.txt", setup, re.MULTILINE), "a new lock is installed by the next command"
    assert re.findall(r"torch[<>=]=?\d", setup) == [], "the bounds stand in pyproject.toml alone"


WORKING = """
import torch
kept = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    kept.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
WITHOUT_OPERATORS = """
import torch
@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold): ...
"""
MISMATCHED = WORKING + 'raise RuntimeError("compiled with different CUDA major versions")\n'


@pytest.mark.parametrize(
    ("package", "declared"),
    [(WORKING, ()), (WITHOUT_OPERATORS, ("nms", "qnms")), (MISMATCHED, ())],
    ids=["works", "has no operators", "fails otherwise"],
)
def test_a_torchvision_that_works_is_left_alone(package: str, declared: tuple[str, ...], tmp_path: Path) -> None:
    """The first lines of conftest.py under a stand-in torchvision: an operator declared twice ends the interpreter."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(package)
    imports = "" if package is MISMATCHED else "import torchvision; "
    run = subprocess.run(
        [sys.executable, "-c", f"import torchvision_operators as t; print(t.declare_missing()); {imports}print('alive')"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "tests")])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[:2] == [str(declared), "alive"]
