"""What an evaluation of a run's weights does otherwise than that run did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from grasp_rl.config.differences import differences
from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import RunConfig
from grasp_rl.config.targets import load_raw
from grasp_rl.runs import data_record
from grasp_rl.runs.run_dir import CONFIG

_SECTIONS = ("data", "segmenter", "prompt", "parsing", "reward", "inference", "evaluation.protocol")
"""What decides about a score, beside the weights."""
_MOST = 8
"""Keys named at most."""


def remarks(config: RunConfig) -> list[str]:
    """Sentences about the run that ``config.init_from`` lies in: data that changed since, and settings that differ."""
    if config.init_from is None:
        return []
    folders = [Path(config.init_from), *Path(config.init_from).absolute().parents[:3]]
    return [*_changed_data(config.init_from, folders), *_other_settings(config, folders)]


def _changed_data(init_from: str, folders: list[Path]) -> Iterator[str]:
    run_dir = next((folder for folder in folders if (folder / data_record.DATA).is_file()), None)
    change = None if run_dir is None else data_record.sentence(run_dir)
    if change:
        yield f"init_from={init_from}: {change}; its own scores are of other answers than these"


def _other_settings(config: RunConfig, folders: list[Path]) -> Iterator[str]:
    """The keys of _SECTIONS whose values are others than in the run's config.yaml, those that both have."""
    path = next((folder / CONFIG for folder in folders if (folder / CONFIG).is_file()), None)
    if path is None:
        return
    try:
        theirs = load_raw(path)
    except ConfigError:
        return  # of another version, or no run of ours: nothing to compare with
    found = [f"{key}={here} ({there} there)" for key, here, there in _differences(asdict(config), theirs)]
    if found:
        more = f" and {len(found) - _MOST} more" if len(found) > _MOST else ""
        yield (
            f"init_from={config.init_from} gives the weights alone; otherwise than the run did, this evaluation takes "
            f"{', '.join(found[:_MOST])}{more}"
        )


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for section in _SECTIONS:
        here: Any = ours
        there: Any = theirs
        for part in section.split("."):
            here, there = (side.get(part) if isinstance(side, Mapping) else None for side in (here, there))
        if isinstance(here, Mapping) and isinstance(there, Mapping):
            yield from differences(here, there, section)
