"""Where a run was started: relative paths in its config are meant from there, wherever they are read again."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.targets import load_raw
from grasp_rl.runs import data_record, received
from grasp_rl.runs.environment import FOLDER
from grasp_rl.runs.run_dir import CONFIG, ENVIRONMENT
from grasp_rl.utils.files import Record, read_json


def config_of(run_dir: Path, named: Collection[str], parts: Sequence[str]) -> Record:
    """The config of the run in ``run_dir``, its local paths such that they mean from here what they meant to the run.

    Args:
        run_dir: the folder.
        named: keys and groups that the command line gives.
        parts: sections of the config that are acted on.

    Raises:
        ConfigError: see :func:`grasp_rl.runs.received.read`.
    """
    config, start = received.read(run_dir, named, str(run_dir), parts), _start_of(run_dir)
    here = start is None or os.path.realpath(start) == os.path.realpath(Path.cwd())
    return config if start is None or here else _moved(config, start)


def demand_same_data(run_dir: Path) -> None:
    """See that the data of a run that did not write down where it was started are those that its config means here.

    Raises:
        ConfigError: the files that it read lie elsewhere than a relative ``data.root`` from here.
    """
    read = data_record.files(run_dir)
    if _start_of(run_dir) is not None or not read:
        return
    for root in _roots(load_raw(run_dir / CONFIG).get("data") or {}):
        here = Path(os.path.abspath(root))
        if not any(here in (path, *path.parents) for path in read):
            raise ConfigError(
                f"data.root={root!r}: from here that is {here}, and the run {run_dir} read {read[0]}; go to the folder "
                "that it was started in, or name the data, data=OPTION data.root=FOLDER"
            )


def _start_of(run_dir: Path) -> Path | None:
    folder = (read_json(run_dir / ENVIRONMENT) or {}).get(FOLDER)
    return Path(folder) if isinstance(folder, str) else None


def _moved(config: Record, start: Path) -> Record:
    """``config`` with its relative paths made absolute from ``start``, as far as they name files there."""
    result = dict(config)
    for part, key in (("segmenter", "path"), ("prompt", "template")):
        value = (config.get(part) or {}).get(key)
        if isinstance(value, str) and (start / value).exists():
            result[part] = config[part] | {key: str(start / value)}
    return result | ({"data": _with_roots(config["data"], start)} if isinstance(config.get("data"), dict) else {})


def _with_roots(data: Record, start: Path) -> Record:
    """``data`` with ``root``, and that of each set of a mixture, from ``start``."""
    result: dict[str, Any] = dict(data)
    if isinstance(data.get("root"), str):
        result["root"] = str(start / data["root"])
    if isinstance(data.get("sets"), dict):
        result["sets"] = {k: _with_roots(v, start) if isinstance(v, dict) else v for k, v in data["sets"].items()}
    return result


def _roots(data: Record) -> list[str]:
    nodes = [data, *(data.get("sets") or {}).values()]
    return [node["root"] for node in nodes if isinstance(node, dict) and isinstance(node.get("root"), str)]
