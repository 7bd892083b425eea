"""Where a result comes from: versions, machine, commit and command line; never the environment's variables."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from grasp_rl.config.errors import ConfigError
from grasp_rl.utils.files import Record, read_json, write_json

FOLDER = "folder"
"""Key of environment.json: the folder that a run was started in."""
_PACKAGE = "grasp-rl"
_SECRET_NAME = re.compile(
    r"((api|access|auth|secret|private)[-_.]?key|(^|[-_.])(token|auth)|secret|passw(or)?d|credentials?)$", re.I
)
_SECRET_VALUE = re.compile(
    r"(hf_|sk-|ghp_|gho_|github_pat_|xox[abp]-|AKIA|wandb_v1_)[\w-]{8,}|\b[0-9a-f]{40}\b|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)

_MASK = "***"


def requirements(extra: str = "") -> list[Requirement]:
    """What the installed package declares: its own requirements, or those that ``extra`` adds."""
    declared = [Requirement(line) for line in importlib.metadata.requires(_PACKAGE) or []]
    external = [r for r in declared if r.name != _PACKAGE]
    if not extra:
        return [r for r in external if r.marker is None or r.marker.evaluate({"extra": ""})]
    return [
        r for r in external if r.marker and r.marker.evaluate({"extra": extra}) and not r.marker.evaluate({"extra": ""})
    ]


def extras() -> list[str]:
    """Names of the extras that the installed package declares."""
    return list(importlib.metadata.metadata(_PACKAGE).get_all("Provides-Extra") or [])


def version_of(package: str) -> str | None:
    """The installed version of ``package``, None where it is not installed. Imports nothing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def masked(command: Sequence[str]) -> list[str]:
    """``command`` with everything that looks like a secret replaced by ``***``."""
    args: list[str] = []
    hide_next = False
    for word in command:
        name, equals, _ = word.partition("=")
        if hide_next:
            args.append(_MASK)
        elif equals and _SECRET_NAME.search(name):
            args.append(f"{name}={_MASK}")
        else:
            args.append(_SECRET_VALUE.sub(_MASK, word))
        hide_next = not equals and word.startswith("-") and bool(_SECRET_NAME.search(word))
    return args


def refuse_secrets(node: Any, key: str = "") -> None:
    """See that no value of a config is a secret, which config.yaml, a model card or a tracker would pass on.

    Raises:
        ConfigError: a value looks like a token, or is an address with a user and password; the value is not quoted.
    """
    if isinstance(node, Mapping):
        for name, value in node.items():
            refuse_secrets(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list | tuple):
        for place, value in enumerate(node):
            refuse_secrets(value, f"{key}[{place}]")
    elif isinstance(node, str) and not key.endswith("revision") and _SECRET_VALUE.search(node):
        raise ConfigError(
            f"{key}: looks like a token, or an address with user and password, which config.yaml would pass on; leave "
            "it out: keys come from `wandb login`, `hf auth login`, or the variable that generator.api_key_env names"
        )


def git(folder: Path) -> Record | None:
    """Commit, branch and whether tracked files differ from it; None outside a repository or without git."""
    command = ["git", "-C", str(folder), "--no-optional-locks", "status", "--porcelain=v2", "--branch"]
    try:
        answer = subprocess.run(
            [*command, "--untracked-files=no"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    lines = answer.stdout.splitlines()
    head = {line.split()[1]: line.split()[2] for line in lines if line.startswith("# branch.")}
    return {
        "commit": head.get("branch.oid"),
        "branch": head.get("branch.head"),
        "dirty": any(not line.startswith("#") for line in lines),
    }


def add_conversions(path: Path, conversions: Mapping[str, int]) -> None:
    """Add to the environment.json in ``path`` what was done to the stored values of images, and to how many of them."""
    if conversions:
        write_json(path, (read_json(path) or {}) | {"image_conversions": dict(conversions)})


def environment(command: Sequence[str]) -> Record:
    """What environment.json holds."""
    names = sorted({r.name for r in requirements()} | {r.name for extra in extras() for r in requirements(extra)})
    return {
        "command": masked(command),
        FOLDER: str(Path.cwd()),
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "packages": {_PACKAGE: version_of(_PACKAGE)} | {n: v for n in names if (v := version_of(n)) is not None},
        "git": {"package": git(Path(__file__).parent), "working_directory": git(Path.cwd())},
    }


def overrides_of(environment: Mapping[str, Any]) -> dict[str, str]:
    """The command-line overrides in an environment.json, by key; Hydra's own are none of the run's."""
    overrides = environment.get("overrides")
    pairs = [str(word).lstrip("+~").partition("=") for word in overrides] if isinstance(overrides, list) else []
    return {key: value for key, _, value in pairs if not key.startswith("hydra")}
