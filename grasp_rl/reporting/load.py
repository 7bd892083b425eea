"""Run folders read back: what a report is made of. Missing or broken pieces become notes, never an end."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.messages import of_system
from grasp_rl.config.schema import MOST_DRAWS
from grasp_rl.evaluation import predictions
from grasp_rl.evaluation.significance import Interval, paired_difference
from grasp_rl.reporting import axes
from grasp_rl.reporting.types import Scored, StudiedRun
from grasp_rl.runs import data_record
from grasp_rl.runs.run_dir import (
    CONFIG,
    ENVIRONMENT,
    ERROR,
    LOG,
    METRICS,
    MINING,
    RESULT,
    STATUS,
    TIMINGS,
    seconds_between,
    stages_in,
    state_of,
)
from grasp_rl.tracking.metrics_log import read_rows
from grasp_rl.utils.files import Record, Unreadable, foreign_entry, last_lines, read_json, read_yaml, sha256_of, to_json

_Read = dict[str, tuple[Record, ...]]
"""Records of evaluations by the SHA-256 of their file: runs of one warm start share the evaluation before training."""
DIAGNOSIS = "diagnosis.json"
"""What grasp_rl.evaluation.diagnose leaves in a run directory."""
_DEPTH = 6
"""Folders below the one that is named in which runs are looked for."""
_LOG_LINES, _LOG_BYTES = 3, 20_000
_MAPPINGS = {
    CONFIG: (
        *("prompt", "evaluation", "evaluation.protocol", "evaluation.protocol.protocols", "inference", "engine"),
        *("algorithm", "policy", "segmenter", "reward", "data", "rollout"),
    ),
    ENVIRONMENT: ("git", "git.package", "packages"),
    DIAGNOSIS: ("lost", "by"),
}
"""Values that can only be mappings, by file and dotted key."""


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def read_study(*folders: Path) -> list[StudiedRun]:
    """The runs in ``folders`` and in the folders below them, at any depth, by name; each run once.

    Raises:
        ConfigError: there is none in one of them.
    """
    paths: dict[Path, Path] = {}
    for folder in folders:
        runs = list(_runs_below(folder, _DEPTH))
        if not runs:
            result = "no such folder" if not folder.is_dir() else "neither a run nor a folder of runs"
            raise ConfigError(f"{folder}: {result}; must be what a train, sft or evaluate command wrote")
        for path in runs:
            paths.setdefault(path.resolve(), path)
    distinct, twins = _distinct(list(paths.values()))
    read: _Read = {}
    runs_read = axes.labelled([_read_run(path, read) for path in distinct])
    return [replace(run, notes=(*run.notes, *twins.get(run.folder, ()))) for run in runs_read]


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
    """Run folders in ``folder``; none is looked for inside of a run."""
    if _is_run(folder):
        yield folder
    elif depth:
        for path in sorted(folder.glob("*/")):
            if not path.name.startswith("."):
                yield from _runs_below(path, depth - 1)


def _distinct(folders: Sequence[Path]) -> tuple[list[Path], dict[Path, list[str]]]:
    """The folders without those that hold the same run as another, and a note of each of these at the one that stays.

    Of several the first that is done stays, else the first.
    """
    statuses = {path: _read_json(path / STATUS) or {} for path in folders}
    kept: dict[object, Path] = {}
    for path in sorted(folders, key=lambda path: statuses[path].get("state") != "done"):
        kept.setdefault(_hash_of(statuses[path]) or path, path)
    twins: dict[Path, list[str]] = {}
    for path in folders:
        if path not in kept.values():
            original = kept[_hash_of(statuses[path])]
            name = path.name if path.parent == original.parent else str(path)
            twins.setdefault(original, []).append(f"{name} is the same run, left out")
    return [path for path in folders if path in kept.values()], twins


def _hash_of(status: Record) -> str:
    return str(status.get("config_hash") or "")


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (STATUS, CONFIG))


def _read_json(path: Path) -> Record | None:
    """The JSON object in ``path``, None where there is none that can be read."""
    try:
        return read_json(path)
    except (OSError, UnicodeDecodeError):
        return None


def _read_run(folder: Path, read: _Read) -> StudiedRun:
    notes: list[str] = []
    foreign = foreign_entry(folder)
    if foreign is not None:
        where = os.path.relpath(foreign, os.path.realpath(folder))
        return _nothing_of(folder, f"{where} in it leads out of it or is no file, so nothing of it was read")
    status = _read_json(folder / STATUS) or {}
    config = _read_config(folder, notes)
    rows = _rows(folder / METRICS, notes)
    if not rows and config.get("command", config.get("verb")) == "train":
        notes.append(f"no {METRICS}, so no curves")
    if change := data_record.sentence(folder):
        notes.append(f"{change}; its scores are of other answers than a run now would have")
    before = _read_scored(folder / "eval_before", notes, read)
    scheme = (config.get("prompt") or {}).get("scheme")
    result = (
        _read_scored(folder / name, notes, read) for name in ("eval_after", "eval", f"eval_{scheme}")
    )  # train, evaluate, sft
    after = next((scored for scored in result if scored is not None), None)
    state = "unknown" if "state" not in status else state_of(folder) or "unknown"
    return StudiedRun(
        folder=folder,
        label=folder.name,
        axes={},
        state=state,
        error=_why(folder) if state == "failed" else None,
        config=config,
        environment=_mapped(_read_json(folder / ENVIRONMENT) or {}, ENVIRONMENT, notes),
        seconds=seconds_between(status.get("started"), status.get("ended")),
        rows=tuple(row for row in rows if "reward" in row or "loss" in row),
        validations=tuple(row for row in rows if any(key.startswith("val/") for key in row)),
        timings=tuple(_rows(folder / TIMINGS, notes)),
        before=before,
        after=after,
        difference=_difference(before, after, config, notes),
        notes=tuple(notes),
        diagnosis=_mapped(_read_json(folder / DIAGNOSIS) or {}, DIAGNOSIS, notes) or None,
        earlier=tuple(_read_run(stage, read) for stage in stages_in(folder)),
        mining=_read_json(folder / MINING),
        best_step=_whole((_read_json(folder / RESULT) or {}).get("best_step")),
    )


def _read_config(folder: Path, notes: list[str]) -> Record:
    """config.yaml as it stands, of whatever version."""
    try:
        config = read_yaml(folder / CONFIG)
    except (OSError, Unreadable, yaml.YAMLError) as error:
        notes.append(f"{CONFIG} cannot be read ({' '.join(of_system(error).split())[:120]})")
        return {}
    return _mapped(to_json(config), CONFIG, notes) if isinstance(config, dict) else {}


def _mapped(record: Record, name: str, notes: list[str]) -> Record:
    """``record`` without what stands where a mapping has to; each is a note."""
    for key in _MAPPINGS[name]:
        *parents, last = key.split(".")
        node: Any = record
        for parent in parents:
            node = node.get(parent) or {}
        if node.get(last) is not None and not isinstance(node[last], dict):
            notes.append(f"{name}: {key} is no mapping, left out")
            del node[last]
    return record


def _rows(path: Path, notes: list[str]) -> list[Record]:
    try:
        return read_rows(path)
    except (OSError, Unreadable) as error:
        notes.append(f"{path.name} cannot be read ({of_system(error)})")
        return []


def _nothing_of(folder: Path, note: str) -> StudiedRun:
    """A run of which nothing could be read."""
    return StudiedRun(
        folder=folder, label=folder.name, axes={}, state="unknown", error=None, config={}, environment={}, seconds=None,
        rows=(), validations=(), timings=(), before=None, after=None, difference=None, notes=(note,),
    )  # fmt: skip


def _why(folder: Path) -> str:
    """The error of a failed run, or the end of its log."""
    error = _read_json(folder / ERROR)
    if error is not None and error.get("message"):
        return str(error["message"])
    lines = last_lines(folder / LOG, _LOG_BYTES)
    return " / ".join(lines[-_LOG_LINES:]) or "it left no word in its log"


def _read_scored(folder: Path, notes: list[str], read: _Read) -> Scored | None:
    if not folder.is_dir():
        return None
    metrics = _read_json(folder / predictions.METRICS)
    if metrics is None:
        notes.append(f"{folder.name} is not complete: no {predictions.METRICS}")
        return None
    records: tuple[Record, ...] = ()
    path = folder / predictions.PREDICTIONS
    try:
        digest = _digest(path)
        records = read.get(digest) or tuple(predictions.read_predictions(path))
        read[digest] = records
    except ConfigError as error:
        notes.append(str(error))
    overlays = {path.name: path for path in sorted((folder / predictions.OVERLAYS).glob("*.png"))}
    return Scored(metrics=metrics, records=records, overlays=overlays)


def _digest(path: Path) -> str:
    """The file's SHA-256; empty where it cannot be read, which its reader says."""
    try:
        return sha256_of(path) if path.is_file() else ""
    except OSError:
        return ""


def _difference(before: Scored | None, after: Scored | None, config: Record, notes: list[str]) -> Interval | None:
    """The paired difference of the IoU that the run's own protocol gave each sample."""
    if before is None or after is None or not before.records or not after.records:
        return None
    settings = config.get("evaluation") or {}
    try:
        first, last = (
            {record["sample_id"]: record["iou"] for record in scored.records if record["iou"] is not None}
            for scored in (before, after)
        )
        draws = _whole(settings.get("bootstrap_samples"))
        if draws is None or not 1 <= draws <= MOST_DRAWS:
            draws = 2000
        return paired_difference(first, last, bootstrap_samples=draws)
    except (KeyError, ValueError) as error:  # records of another version, or of other samples
        notes.append(f"no paired difference: {error}")
        return None
