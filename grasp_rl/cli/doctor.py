"""`grasp-rl doctor`: what is installed, what computes, what is missing and the command that adds it."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from grasp_rl import __version__
from grasp_rl.runs.environment import extras, requirements, version_of
from grasp_rl.utils.files import Record

_SHOWN_EXTRAS = ("track", "launch", "train", "bench", "geo", "demo")


def main(argv: Sequence[str]) -> int:
    """Print the findings; 0 if the base works."""
    parser = argparse.ArgumentParser(prog="grasp-rl doctor", description=(__doc__ or "").split(": ", 1)[1])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args(argv)
    findings = examine()
    if arguments.json:
        sys.stdout.write(json.dumps(findings) + "\n")
    else:
        _print(findings)
    return 0 if findings["ok"] else 1


def examine() -> Record:
    """Versions, devices, problems and remedies."""
    base = [_package(str(r.name), str(r.specifier)) for r in requirements()]
    problems = [
        {"problem": f"{p['name']} {p['found'] or 'is missing'}, wanted {p['wanted']}", "remedy": "pip install grasp-rl"}
        for p in base
        if not p["ok"]
    ]
    devices, failures = _devices()
    problems += failures
    return {
        "grasp_rl": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "devices": devices,
        "packages": base,
        "extras": [_extra(name) for name in _SHOWN_EXTRAS if name in extras()],
        "problems": problems,
        "ok": not problems,
    }


def _package(name: str, specifier: str) -> Record:
    from packaging.specifiers import SpecifierSet

    result = version_of(name)
    ok = result is not None and SpecifierSet(specifier).contains(result, prereleases=True)
    return {"name": name, "found": result, "wanted": specifier or "any", "ok": ok}


def _extra(name: str) -> Record:
    packages = [_package(str(r.name), str(r.specifier)) for r in requirements(name)]
    missing = [p["name"] for p in packages if not p["ok"]]
    return {"name": name, "missing": missing, "remedy": f"pip install 'grasp-rl[{name}]'" if missing else None}


def _devices() -> tuple[list[Record], list[Record]]:
    """What torch can compute on, and what stops it or the libraries beside it from loading."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return [], [{"problem": f"torch does not import: {error}", "remedy": "pip install torch"}]
    devices: list[Record] = [{"name": "cpu", "detail": f"{torch.get_num_threads()} threads"}]
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        detail = f"{about.name}, {about.total_memory / 2**30:.0f} GiB"
        devices.append({"name": f"cuda:{index}", "detail": detail, "bf16": torch.cuda.is_bf16_supported()})
    if version_of("torchvision") is None:
        return devices, []
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as error:
        text = f"torchvision does not load and takes transformers with it: {str(error).splitlines()[0]}"
        return devices, [{"problem": text, "remedy": "pip uninstall torchvision (nothing here needs it)"}]
    return devices, []


def _print(findings: Record) -> None:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(f"grasp_rl {findings['grasp_rl']}, Python {findings['python']}, {findings['platform']}")
    for device in findings["devices"]:
        console.print(f"device {device['name']}: {device['detail']}")
    table = Table(box=None, pad_edge=False)
    for heading in ("package", "found", "wanted"):
        table.add_column(heading)
    for package in findings["packages"]:
        table.add_row(
            package["name"], package["found"] or "missing", package["wanted"], style="" if package["ok"] else "red"
        )
    console.print(table)
    for extra in findings["extras"]:
        remedy = f"missing {', '.join(extra['missing'])}: {extra['remedy']}" if extra["missing"] else "complete"
        console.print(f"extra {extra['name']}: {remedy}")
    for item in findings["problems"]:
        console.print(f"PROBLEM {item['problem']}\n  {item['remedy']}")
    console.print("the base works" if findings["ok"] else "the base does not work")
