"""The versions to install, as constraints for pip: `locked REPORT` of a resolution, or `oldest`, every lower bound."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

BESIDE_TORCH = re.compile(r"(nvidia|cuda|triton)\b")
"""What only a CUDA build of torch brings; that build names the exact versions itself."""

LOCKED = """\
# Written by `make lock`: the versions that `make demo`, `make test`, `make parity` and CI install (Python 3.11).
# torch has no local version, so that a CPU build and a CUDA build both satisfy it.
"""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(report: dict[str, Any]) -> list[str]:
    """`name==version` of everything that pip would install, without the project itself."""
    pins = {}
    for item in report["install"]:
        name, version = normal(item["metadata"]["name"]), item["metadata"]["version"]
        if not item.get("is_direct") and not BESIDE_TORCH.match(name):
            pins[name] = f"{name}=={version.partition('+')[0]}"
    return [pins[name] for name in sorted(pins)]


def oldest(settings: dict[str, Any], extra: str) -> list[str]:
    """`name==bound` for what the package, its build and an extra require, followed through the project's own extras."""
    project = settings["project"]
    name, optional = normal(project["name"]), project["optional-dependencies"]
    pins, waiting = [], [*settings["build-system"]["requires"], *project["dependencies"], *optional[extra]]
    for requirement in waiting:
        plain = requirement.partition(";")[0].strip()
        own = re.fullmatch(rf"{name}\[(.+)\]", plain)
        if own:
            waiting += [inner for other in own[1].split(",") for inner in optional[other.strip()]]
            continue
        bound = re.fullmatch(r"([A-Za-z0-9._-]+)>=([^,<]+)(,<.+)?", plain)
        if bound is None:
            raise SystemExit(f"bounds: {requirement!r} has no lower bound")
        pins.append(f"{normal(bound[1])}=={bound[2]}")
    return sorted(set(pins))


def main() -> None:
    if sys.argv[1] == "locked":
        lines = locked(json.loads(Path(sys.argv[2]).read_text()))
        sys.stdout.write(LOCKED)
    else:
        lines = oldest(tomllib.loads(Path("pyproject.toml").read_text()), "dev")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
